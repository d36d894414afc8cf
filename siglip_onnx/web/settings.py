"""How the server is to run, as the command line says."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from .limits import Limits

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5678


@dataclass(frozen=True)
class Settings:
    """Everything that is fixed for the life of a server.

    ``host`` is the address it is bound to. ``allowed_hosts`` are further names that requests may call it by.
    ``url_fetch`` lets it fetch pictures that requests name, from ``url_domains`` alone if there are any.
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
    """Say whether an address to bind to is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
