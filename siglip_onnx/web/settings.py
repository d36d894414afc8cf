"""Settings of a server, as the command line sets them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from .limits import Limits

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5678


@dataclass(frozen=True)
class Settings:
    """Everything that stays fixed while a server runs.

    ``host`` is the address to listen on. ``allowed_hosts`` are further names accepted in the Host header.
    ``url_fetch`` lets the server fetch images whose URLs a request names, only from ``url_domains`` if any are given.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = None
    url_fetch: bool = True
    url_domains: tuple[str, ...] = ()
    workers: int = 1
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on ``host`` can be reached only from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
