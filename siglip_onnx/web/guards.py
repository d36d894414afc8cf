"""Request guards: Host and Origin checks against DNS rebinding and other sites, API key, security headers."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, error_reply
from .settings import Settings, is_loopback

# Scripts and styles come only from files of this server; images that the user chose are blobs.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Guard:
    """Refuses forbidden requests, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._names = frozenset(name.lower() for name in settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
        except RequestError as error:
            await error_reply(error)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        check_length(headers)
        if len(hosts) != 1 or not is_allowed_host(hosts[0], self._settings.host, self._names):
            raise RequestError(
                403,
                "forbidden_host",
                "The Host header is not a name of this server; allow it with --allow-host NAME.",
            )
        check_origin(headers, hosts[0], scope["path"])
        if needs_key(scope["path"]) and self._settings.api_key is not None:
            check_key(headers, self._settings.api_key)


def check_length(headers: Headers) -> None:
    """Refuse requests whose length is ambiguous, which a proxy and this server could read differently.

    Raises:
        RequestError: two lengths, or a length and a transfer encoding.
    """
    lengths, encodings = headers.getlist("content-length"), headers.getlist("transfer-encoding")
    if len(lengths) + len(encodings) > 1:
        raise RequestError(
            400, "bad_request", "The request declares its length more than once; send Content-Length or chunks."
        )
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
        raise RequestError(400, "bad_request", "Content-Length is not a number.")


def is_allowed_host(header: str, bound_to: str, names: Iterable[str]) -> bool:
    """Return whether a Host header names this server.

    A page of another site can reach the server only under a name that its owner resolves to this machine (DNS
    rebinding). So a name must be known. An address cannot be rebound, and is allowed if it is a loopback address or
    the server listens on more than loopback.
    """
    host = host_name(header)
    if host is None:
        return False
    if host == "localhost" or host in names:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(bound_to)


def host_name(header: str) -> str | None:
    """Return the name or address in a Host header, in lower case, or None if it is malformed."""
    name, separator, port = header.partition("]") if header.startswith("[") else header.partition(":")
    if separator == "]":
        name, port = name[1:], port.removeprefix(":")
    return name.lower() if name and (port == "" or (port.isascii() and port.isdigit())) else None


def check_origin(headers: Headers, host: str, path: str) -> None:
    """Refuse requests from pages of other sites.

    Raises:
        RequestError: the request's origin is not this server, or the browser marks it as cross-site.
    """
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    # Links from other sites to the page may be followed; its API and images are for the page itself.
    followed = headers.get("sec-fetch-mode") == "navigate" and path == "/"
    if (origin is not None and not is_same_origin(origin, host)) or (
        site not in ("none", "same-origin") and not followed
    ):
        raise RequestError(403, "forbidden_origin", "Requests from pages of other sites are refused.")


def is_same_origin(origin: str, host: str) -> bool:
    """Compare an Origin header with the Host header; a TLS proxy may have changed the scheme."""
    scheme, separator, authority = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return bool(separator and port) and authority.removesuffix(port or "") == host.lower().removesuffix(port or "")


def needs_key(path: str) -> bool:
    """Return whether a path requires the API key: all of /v1, and the metrics."""
    return path.startswith("/v1/") or path == "/metrics"


def check_key(headers: Headers, key: str) -> None:
    """Compare the key in ``Authorization: Bearer`` or ``X-API-Key``, in constant time.

    Raises:
        RequestError: the key is missing or wrong.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode("latin-1"), key.encode(errors="surrogateescape")):  # read as Latin-1
        raise RequestError(
            401, "unauthorized", "This server requires an API key; send it in the header Authorization: Bearer KEY."
        )
