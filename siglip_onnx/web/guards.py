"""Request guards: Host and Origin checks against DNS rebinding and other sites, API key, CORS, security headers."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Container, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, error_reply
from .hosts import ANY, DEFAULT_PORTS, HostNames, host_name, parse_origin
from .proxies import route_path
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
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-API-Key",
    "Access-Control-Allow-Private-Network": "true",
    "Access-Control-Max-Age": "600",
}


class Guard:
    """Refuses forbidden requests, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._names = HostNames(settings.allowed_hosts)
        self._origins = frozenset(parse_origin(origin, "--allow-origin") for origin in settings.allowed_origins)
        self._headers = security_headers(settings.frame_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_headers = Headers(scope=scope)
        origin = self._allowed_origin(request_headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-store")
                if self._origins:
                    headers.add_vary_header("Origin")
                if origin is not None:
                    headers.update(cors_headers(ANY if ANY in self._origins else origin))
            await send(message)

        is_preflight = (
            origin is not None and scope["method"] == "OPTIONS" and "access-control-request-method" in request_headers
        )
        try:
            check_length(request_headers)
            self._check_sender(scope, request_headers, other_site_allowed=origin is not None)
            if needs_key(route_path(scope)) and self._settings.api_key is not None and not is_preflight:
                check_key(request_headers, self._settings.api_key)
        except RequestError as error:
            await error_reply(error)(scope, receive, send_with_headers)
            return
        answer = Response(status_code=204, headers=_PREFLIGHT_HEADERS) if is_preflight else self._app
        await answer(scope, receive, send_with_headers)

    def _check_sender(self, scope: Scope, headers: Headers, *, other_site_allowed: bool) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not is_allowed_host(hosts[0], self._settings.host, self._names):
            raise RequestError(
                403,
                "forbidden_host",
                "The Host header is not a name of this server; allow it with --allow-host NAME.",
            )
        if not other_site_allowed:
            check_origin(headers, hosts[0], route_path(scope), self._names)

    def _allowed_origin(self, headers: Headers) -> str | None:
        """Return the Origin of a request if its pages may use the API."""
        origin = headers.get("origin")
        return origin if origin is not None and not self._origins.isdisjoint((origin.lower(), ANY)) else None


def security_headers(frame_origins: Sequence[str]) -> dict[str, str]:
    """Return the security headers of every response; pages of ``frame_origins`` may show it in a frame."""
    if not frame_origins:
        return SECURITY_HEADERS
    ancestors = " ".join(("'self'", *(parse_origin(origin, "--allow-frame") for origin in frame_origins)))
    policy = CONTENT_SECURITY_POLICY.replace("frame-ancestors 'none'", f"frame-ancestors {ancestors}")
    headers = SECURITY_HEADERS | {"Content-Security-Policy": policy}
    del headers["X-Frame-Options"]  # it cannot name origins
    return headers


def cors_headers(origin: str) -> dict[str, str]:
    """Return the headers by which a browser lets a page of ``origin`` read a response."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Retry-After",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


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


def is_allowed_host(header: str, bound_to: str, names: Container[str | None]) -> bool:
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


def check_origin(headers: Headers, host: str, path: str, names: Container[str | None] = ()) -> None:
    """Refuse requests from pages of other sites.

    Raises:
        RequestError: the request's origin is not this server, or the browser marks it as cross-site.
    """
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    # Links from other sites to the page may be followed; its API and images are for the page itself.
    followed = headers.get("sec-fetch-mode") == "navigate" and path == "/"
    if (origin is not None and not is_same_origin(origin, host, names)) or (
        site not in ("none", "same-origin") and not followed
    ):
        raise RequestError(
            403, "forbidden_origin",
            "Requests from pages of other sites are refused. If a proxy serves this page under another name, allow the "
            "name with --allow-host NAME; allow another site with --allow-origin ORIGIN.",
        )  # fmt: skip


def is_same_origin(origin: str, host: str, names: Container[str | None] = ()) -> bool:
    """Return whether an Origin header is that of this server.

    It has the host and port of the Host header, or one of the further ``names`` of this server and any port: a proxy
    may have changed the scheme, the host and the port.
    """
    scheme, separator, authority = origin.lower().partition("://")
    if not separator or scheme not in DEFAULT_PORTS:
        return False
    port = f":{DEFAULT_PORTS[scheme]}"
    return authority.removesuffix(port) == host.lower().removesuffix(port) or host_name(authority) in names


def needs_key(path: str) -> bool:
    """Return whether a path requires the API key: all of /v1, and the metrics."""
    # The router takes a path with a line feed at its end for the same path.
    return path.startswith("/v1/") or path.rstrip("\n") == "/metrics"


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
