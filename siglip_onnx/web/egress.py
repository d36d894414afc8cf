"""The proxy through which the environment tells a program to connect: ``http_proxy``, ``https_proxy``, ``no_proxy``."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from .errors import RequestError

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_DEFAULT_PORT = 80
MAX_HEAD_BYTES = 16_384


@dataclass(frozen=True)
class EgressProxy:
    """Host, port and credentials of an HTTP proxy."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)  # of Basic authentication

    def connect_request(self, address: str, port: int) -> bytes:
        """Return the request for a tunnel to an address, never to a name, which the proxy would resolve by itself."""
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.credentials:
            lines.append(f"Proxy-Authorization: Basic {self.credentials}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def proxy_for(scheme: str, host: str) -> EgressProxy | None:
    """Return the proxy of the environment for a host, or None.

    Raises:
        RequestError: it is not an HTTP proxy.
    """
    proxies = getproxies_environment()
    url = proxies.get(scheme) or proxies.get("all")
    if not url or proxy_bypass_environment(host):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        name, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError:
        parts, name, port = urlsplit(""), None, 0
    if parts.scheme != "http" or not name:
        raise RequestError(
            422, "fetch_failed",
            f"The URL could not be fetched: {scheme}_proxy or all_proxy of this server is not the URL of an HTTP "
            "proxy, such as http://proxy.example:3128.",
        )  # fmt: skip
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
    return EgressProxy(name, port, base64.b64encode(user.encode()).decode())


def tunnel_status(head: bytes) -> int:
    """Return the status of the answer to CONNECT; 0 if it is not an answer of HTTP."""
    match = _STATUS.match(head)
    return int(match[1]) if match else 0
