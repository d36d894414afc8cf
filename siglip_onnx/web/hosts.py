"""Parse the names, origins and networks that the options of the server take, and match requests with them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from ..errors import OptionError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ANY = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")

_CONTACT = re.compile(r"[!-'*-~]+")  # printable ASCII without spaces and parentheses


class HostNames:
    """Names and addresses of hosts; ``*.photos.example`` stands for every subdomain of ``photos.example``."""

    def __init__(self, options: Iterable[str] = (), *, flag: str = "--allow-host", subdomains: bool = False) -> None:
        """Parse the values of an option; with ``subdomains`` each name stands for its subdomains too.

        Raises:
            OptionError: a value cannot be the name of a host.
        """
        parsed = [parse_host(option, flag) for option in options]
        self._names = frozenset(name for name in parsed if not name.startswith("*."))
        self._suffixes = tuple(f".{name.removeprefix('*.')}" for name in parsed if subdomains or name.startswith("*."))

    def __bool__(self) -> bool:
        """Return whether there is a name."""
        return bool(self._names or self._suffixes)

    def __contains__(self, host: object) -> bool:
        """Return whether a name or address, in lower case and without a port, is one of these."""
        return isinstance(host, str) and (host in self._names or host.endswith(self._suffixes))


def parse_host(option: str, flag: str) -> str:
    """Return a host in lower case and in ASCII; a scheme, a port and the last dot are ignored.

    Raises:
        OptionError: it is not the name or the address of a host.
    """
    scheme, separator, rest = option.strip().rpartition("://")
    rest = rest.removesuffix("/") if separator else rest
    if separator and scheme.lower() not in DEFAULT_PORTS:
        raise OptionError(f"{flag} {option} has a scheme other than http and https.")
    if any(mark in rest for mark in "/?#@"):
        raise OptionError(
            f"{flag} {option} has more than a host name and a port. Give the name alone; see --root-path for a path."
        )
    if rest == ANY:
        raise OptionError(f"{flag} {option} would allow every host. Name the hosts, such as *.photos.example.")
    wildcard = "*." if rest.startswith("*.") else ""
    host = host_name(_to_ascii(rest.removeprefix("*.")))
    if host is None or not is_host(host) or (wildcard and is_address(host)):
        raise OptionError(
            f"{flag} {option} is not the name or address of a host, such as photos.example or *.photos.example."
        )
    return wildcard + host


def host_name(header: str) -> str | None:
    """Return the name or address in a Host header, in lower case and without its last dot; None if it is malformed."""
    if header.count(":") > 1 and is_address(header):
        return _address(header)  # IPv6 without brackets, as in an option
    name, separator, port = header.partition("]") if header.startswith("[") else header.partition(":")
    if separator == "]":
        name, port = name[1:], port.removeprefix(":")
    name = name.removesuffix(".")
    if not name or not (port == "" or (port.isascii() and port.isdigit())):
        return None
    return _address(name) if is_address(name) else name.lower()


def is_host(name: str) -> bool:
    """Return whether a name in lower case can be that of a host, or is an IP address."""
    return is_address(name) or _NAME.fullmatch(name) is not None


def is_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_origin(option: str, flag: str) -> str:
    """Return an origin as browsers send it: ``https://app.example:8443``, or ``*`` for every origin.

    Raises:
        OptionError: it is not an origin.
    """
    if option.strip() == ANY:
        return ANY
    try:
        parts = urlsplit(option.strip().lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = host_name(_to_ascii(parts.netloc))
    if parts.scheme not in DEFAULT_PORTS or host is None or not is_host(host) or parts.path not in ("", "/"):
        raise OptionError(f"{flag} {option} is not an origin; give a scheme and a host, such as https://app.example.")
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + (f":{port}" if port not in (None, DEFAULT_PORTS[parts.scheme]) else "")


def parse_networks(options: Sequence[str], flag: str) -> tuple[Network, ...]:
    """Return networks, of which a single address is the smallest.

    Raises:
        OptionError: an option is neither.
    """
    networks = []
    for option in options:
        try:
            networks.append(ipaddress.ip_network(option.strip()))
        except ValueError as error:
            raise OptionError(
                f"{flag} {option} is not an address or a network; give one such as 192.168.1.7 or 192.168.1.0/24."
            ) from error
    return tuple(networks)


def is_in(address: str | None, networks: Iterable[Network]) -> bool:
    """Return whether an address, also an IPv4 address written as IPv6, belongs to one of the networks."""
    if address is None or not is_address(address):
        return False
    parsed = ipaddress.ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed in network for network in networks if network.version == parsed.version)


def parse_root_path(option: str) -> str:
    """Return a path prefix with a slash at its beginning and none at its end; ``""`` for none.

    Raises:
        OptionError: it is not a plain path.
    """
    path = option.strip().strip("/")
    parts = path.split("/")
    if path and any(part in ("", ".", "..") or not re.fullmatch(r"[\w.~-]+", part, re.ASCII) for part in parts):
        raise OptionError(f"--root-path {option} is not a path of plain names; give one such as /siglip.")
    return f"/{path}" if path else ""


def parse_contact(option: str, flag: str) -> str:
    """Return an e-mail address or a URL that a header can hold.

    Raises:
        OptionError: it is neither.
    """
    if not _CONTACT.fullmatch(option) or not ("@" in option or option.startswith(("http://", "https://"))):
        raise OptionError(f"{flag} {option} is not an e-mail address or a URL; give one such as me@photos.example.")
    return option


def _address(host: str) -> str:
    return str(ipaddress.ip_address(host))


def _to_ascii(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""
