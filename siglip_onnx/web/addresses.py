"""Check that an address is public, also one that is embedded in another or written in an unusual form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# In addition to the private networks of ipaddress, which differ between Python versions.
_BLOCKED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; also one cloud's metadata, 100.100.100.200
        "168.63.129.16/32",  # a cloud's internal services at a public address
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "2001::/23",  # Teredo and other IETF assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_EMBEDS_IPV4 = (
    _NAT64,
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # SIIT
)
_ISATAP = (0x00005EFE, 0x02005EFE)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_public(address: Address) -> bool:
    """Return whether an address, and every IPv4 address embedded in it, belongs to the public internet."""
    if not all(_is_public_itself(embedded) for embedded in embedded_ipv4(address)):
        return False
    return _is_public_itself(address) or (isinstance(address, ipaddress.IPv6Address) and _is_translated(address))


def embedded_ipv4(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses embedded in an IPv6 address: mapped, compatible, NAT64, SIIT, 6to4, Teredo, ISATAP."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    last = int(address) & 0xFFFFFFFF
    if any(address in network for network in _EMBEDS_IPV4) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(last)


def is_ambiguous(host: str) -> bool:
    """Return whether a host is a number that resolvers read in different ways: ``127.1``, ``0x7f.1``, ``2130706433``.

    As in the URL standard, a host whose last label is a number is an IPv4 address; only the dotted form is accepted.
    """
    last = host.rstrip(".").rsplit(".", maxsplit=1)[-1]
    if not _NUMERIC_LABEL.fullmatch(last):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def _is_translated(address: ipaddress.IPv6Address) -> bool:
    """Return whether an address is a translated IPv4 address; the embedded address was checked before."""
    return address in _NAT64 or address.ipv4_mapped is not None


def _is_public_itself(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _BLOCKED if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
