"""Which addresses the server may fetch from: public ones, however they are written or wrapped."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beyond what ipaddress calls private, which differs between Python's versions.
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' networks; one cloud's metadata is 100.100.100.200
        "168.63.129.16/32",  # a cloud's own services at a public address
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "2001::/23",  # Teredo and other assignments of the IETF
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_WITH_IPV4_AT_THE_END = (
    _NAT64,
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # SIIT
)
_ISATAP = (0x00005EFE, 0x02005EFE)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_public(address: Address) -> bool:
    """Say whether an address, and every IPv4 address wrapped in it, belongs to the public internet."""
    if not all(_is_public_itself(wrapped) for wrapped in wrapped_ipv4(address)):
        return False
    return _is_public_itself(address) or (isinstance(address, ipaddress.IPv6Address) and _is_translated(address))


def wrapped_ipv4(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address leads to: mapped, compatible, NAT64, SIIT, 6to4, Teredo, ISATAP."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    last = int(address) & 0xFFFFFFFF
    if any(address in network for network in _WITH_IPV4_AT_THE_END) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(last)


def is_ambiguous(host: str) -> bool:
    """Say whether a host is a number that resolvers read in several ways: ``127.1``, ``0x7f.1``, ``2130706433``.

    As in the URL standard, a host whose last label is a number is an IPv4 address; only the usual form is taken.
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
    """Say whether an address is IPv4 in the form of a network that translates; what it wraps was checked."""
    return address in _NAT64 or address.ipv4_mapped is not None


def _is_public_itself(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
