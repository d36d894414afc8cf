"""SSRF vectors: URLs of private networks, each of which must be refused before any socket is opened."""

from typing import NamedTuple


class Vector(NamedTuple):
    """A URL, and the addresses to which its host resolves; an address resolves to itself."""

    name: str
    url: str
    answers: tuple[str, ...] = ()


def _addresses(**addresses: str) -> list[Vector]:
    """Return two vectors per address: the address itself, and a name that resolves to it."""
    return [
        vector
        for name, address in addresses.items()
        for vector in (
            Vector(name, f"http://[{address}]/" if ":" in address else f"http://{address}/"),
            Vector(f"name of {name}", "http://inside.example/", (address,)),
        )
    ]


VECTORS = [
    *_addresses(
        loopback="127.0.0.1", loopback_elsewhere="127.255.255.254", this_network="0.0.0.0",  # noqa: S104
        private_10="10.0.0.1", private_172="172.16.0.1", private_192="192.168.1.1",
        link_local_metadata="169.254.169.254", task_metadata="169.254.170.2", carrier="100.64.0.1",
        carrier_metadata="100.100.100.200", cloud_wire_server="168.63.129.16", ietf_assignments="192.0.0.8",
        relays_6to4="192.88.99.1", benchmarking="198.18.0.1", documentation="203.0.113.7",
        multicast="224.0.0.1", reserved="240.0.0.1", broadcast="255.255.255.255", loopback_6="::1",
        unspecified_6="::", unique_local="fd00:ec2::254", link_local_6="fe80::1", site_local="fec0::1",
        multicast_6="ff02::1", documentation_6="2001:db8::1", discard_6="100::1", mapped="::ffff:127.0.0.1",
        mapped_metadata="::ffff:169.254.169.254", compatible="::7f00:1", siit="::ffff:0:7f00:1",
        nat64="64:ff9b::a9fe:a9fe", nat64_local="64:ff9b:1::7f00:1", of_6to4="2002:7f00:1::",
        of_6to4_private="2002:0a00:0001::1", isatap="2600:1f18::5efe:7f00:1",
        teredo="2001:0:4136:e378:8000:63bf:80ff:fffe",  # client 127.0.0.1
    ),
    Vector("mixed answer", "http://mixed.example/", ("93.184.216.34", "127.0.0.1")),
    Vector("mixed families", "http://mixed.example/", ("2606:2800:220:1::1", "::1")),
    Vector("no answer", "http://empty.example/", ()),
    Vector("localhost", "http://localhost/", ("127.0.0.1", "::1")),
    Vector("localhost with a dot", "http://localhost./", ("127.0.0.1",)),
    Vector("decimal", "http://2130706433/"),
    Vector("hexadecimal", "http://0x7f000001/"),
    Vector("dotted hexadecimal", "http://0x7f.0.0.1/"),
    Vector("octal", "http://0177.0.0.1/"),
    Vector("short", "http://127.1/"),
    Vector("leading zeros", "http://127.000.000.001/"),
    Vector("address with a dot", "http://127.0.0.1./"),
    Vector("full-width digits", "http://１２７.０.０.１/"),
    Vector("circled digits", "http://①②⑦.⓪.⓪.①/"),
    Vector("ideographic full stops", "http://127。0。0。1/"),
    Vector("percent in the host", "http://127.0.0.1%2f@example.com/"),
    Vector("zone", "http://[fe80::1%25lo]/"),
    Vector("user name", "http://example.com@127.0.0.1/"),
    Vector("user name of a public host", "http://127.0.0.1@example.com/", ("93.184.216.34",)),
    Vector("backslash", "http://example.com\\@127.0.0.1/"),
    Vector("line break", "http://example.com/\r\nHost: 127.0.0.1", ("93.184.216.34",)),
    Vector("tab in the scheme", "ht\ttp://example.com/", ("93.184.216.34",)),
    Vector("space", "http://example.com /", ("93.184.216.34",)),
    Vector("file", "file:///etc/passwd"),
    Vector("file on a share", "file://192.168.1.1/share/a.png"),
    Vector("ftp", "ftp://example.com/a.png", ("93.184.216.34",)),
    Vector("gopher", "gopher://example.com/_", ("93.184.216.34",)),
    Vector("data", "data:image/png;base64,AAAA"),
    Vector("javascript", "javascript:alert(1)"),
    Vector("no scheme", "//example.com/a.png", ("93.184.216.34",)),
    Vector("no host", "http:///a.png"),
    Vector("port of ssh", "http://example.com:22/", ("93.184.216.34",)),
    Vector("port of redis", "http://example.com:6379/", ("93.184.216.34",)),
    Vector("https port over http", "http://example.com:443/", ("93.184.216.34",)),
    Vector("port out of range", "http://example.com:99999/", ("93.184.216.34",)),
    Vector("unclosed bracket", "http://[::1/"),
    Vector("too long", "http://example.com/" + "a" * 4000, ("93.184.216.34",)),
]  # fmt: skip
# Redirects to private networks from a public server.
REDIRECTS = [
    "http://169.254.169.254/latest/meta-data/",
    "http://127.0.0.1/",
    "//127.0.0.1/",
    "http://[::ffff:127.0.0.1]/",
    "file:///etc/passwd",
    "http://localhost/",
    "http://rebound.example/",
    "http://example.com:22/",
]
