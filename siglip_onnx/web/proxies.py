"""Undo what a proxy changes: the Host header, the path prefix, and HEAD requests that routes answer like GET."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .hosts import is_in, parse_networks, parse_root_path
from .settings import Settings


class Proxied:
    """Passes each request on as the client sent it to the proxy in front of this server, if there is one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._trusted = parse_networks(settings.trusted_proxies, "--trusted-proxy")
        self._root_path = parse_root_path(settings.root_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        scope = dict(scope)
        if is_head:
            scope["method"] = "GET"
        if self._trusted and is_in((scope.get("client") or (None,))[0], self._trusted):
            scope["headers"] = _with_forwarded_host(scope)
        app = self._prefix(scope)

        async def send_to_client(message: Message) -> None:
            if message["type"] == "http.response.start":
                _shorten_location(message)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await app(scope, receive, send_to_client)

    def _prefix(self, scope: Scope) -> ASGIApp:
        """Put the path prefix into the request, whether the proxy removed it or not; return what answers it."""
        path, prefix = scope["path"], self._root_path
        if not prefix:
            return self._app
        if path == prefix:
            return RedirectResponse(f"{prefix}/", 308)  # the page's own links are relative
        scope["root_path"] = prefix
        scope["path"] = path if path.startswith(f"{prefix}/") else prefix + path
        return self._app


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix of the proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _with_forwarded_host(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers with X-Forwarded-Host in place of Host; of several values the last is the proxy's own."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    forwarded = Headers(scope=scope).getlist("x-forwarded-host")
    if not forwarded:
        return headers
    host = forwarded[-1].rpartition(",")[2].strip()
    return [(name, value) for name, value in headers if name != b"host"] + [(b"host", host.encode("latin-1"))]


def _shorten_location(message: Message) -> None:
    """Leave out scheme and host of a redirect, of which this server knows only those that the proxy used."""
    headers = MutableHeaders(scope=message)
    if "location" in headers:
        headers["location"] = urlsplit(headers["location"])._replace(scheme="", netloc="").geturl()
