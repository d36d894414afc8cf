"""Undo what a proxy changes: the Host header, the path prefix, and HEAD requests that routes answer like GET."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
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
        self._prefix(scope)

        async def send_to_client(message: Message) -> None:
            if message["type"] == "http.response.start":
                _shorten_location(message, scope["path"])
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, send_to_client)

    def _prefix(self, scope: Scope) -> None:
        """Put the path prefix into the request, whether the proxy removed it or not."""
        path, prefix = scope["path"], self._root_path
        if prefix:
            scope["root_path"] = prefix
            scope["path"] = path if path == prefix or path.startswith(f"{prefix}/") else prefix + path


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


def _shorten_location(message: Message, path: str) -> None:
    """Make a redirect relative: this server does not know the client's scheme and host, nor a prefix that is removed.

    All redirects add or remove a slash at the end of the path.
    """
    headers = MutableHeaders(scope=message)
    if "location" in headers:
        target = urlsplit(headers["location"])._replace(scheme="", netloc="")
        name = target.path.rstrip("/").rpartition("/")[2]
        if name and target.path == f"{path}/":
            target = target._replace(path=f"./{name}/")
        elif name and f"{target.path}/" == path:
            target = target._replace(path=f"../{name}")
        headers["location"] = target.geturl()
