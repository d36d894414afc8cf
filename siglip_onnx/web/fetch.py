"""Fetch an image from a URL without reaching into private networks (SSRF).

The only HTTP client of the package besides the Hub's. Every address that a host resolves to must be public, or belong
to the networks that are allowed; the connection goes to an address that was checked, also through a proxy; each
redirect is checked again. Size limits apply after decompression.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from .._version import __version__
from ..errors import ImageError
from ..options import ImageLimits
from .addresses import Address, is_ambiguous, is_public
from .bounded_http import BoundedConnection, TooManyEventsError
from .egress import MAX_HEAD_BYTES, EgressProxy, proxy_for, tunnel_status
from .errors import RequestError
from .hosts import HostNames, is_in, parse_contact, parse_networks
from .lookups import TooManyLookupsError, resolve_host
from .settings import Limits

PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 3
CONNECT_SECONDS = 5.0
ATTEMPT_SECONDS = 0.25  # for an address, before the next one is tried beside it
MAX_ADDRESSES = 8  # of a host that are tried
TOTAL_SECONDS = 15.0
MAX_URL_CHARACTERS = 2048
_CHUNK = 65536
_GZIP_OR_ZLIB = 47
# Those of Python's ssl module, without DHE+AES: a handshake with a large Diffie-Hellman group takes seconds, in which
# the event loop does nothing else.
_CIPHERS = "@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
_REDIRECTS = (301, 302, 303, 307, 308)
CONTACT_VARIABLE = "SIGLIP_ONNX_URL_CONTACT"
_HEADERS = (
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)

Resolve = Callable[[str, int], Awaitable[list[str]]]
Dial = Callable[[Address, int], Coroutine[Any, Any, socket.socket]]


async def dial_address(address: Address, port: int) -> socket.socket:
    """Return a socket connected to this address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True)
class Target:
    """Target of one request: the parts of its URL, and its checked addresses."""

    url: SplitResult
    host: str  # ASCII, without brackets
    port: int
    addresses: tuple[Address, ...]
    is_public: bool  # otherwise in a network that is allowed

    @property
    def path(self) -> str:
        """The request target: path and query."""
        return (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else "")

    @property
    def host_header(self) -> str:
        """Value of the Host header; a default port is omitted."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.url.scheme] else f"{name}:{self.port}"


def fetch_image(url: str, limits: ImageLimits) -> bytes:
    """Return the content of an image's public URL, of at most ``limits.max_bytes``.

    Raises:
        ImageError: it cannot be fetched.
    """
    try:
        return asyncio.run(Fetcher(Limits(image=limits)).fetch(url))
    except RequestError as error:
        status = "too_large" if error.code == "too_large" else "io_error"
        raise ImageError(f"{url}: {error}", status=status) from error


class Fetcher:
    """Fetches images from public addresses; only from ``domains`` and their subdomains if any are given.

    Addresses of ``networks`` need not be public, nor of these domains; there any port is allowed, and no proxy is used.
    ``contact``, an e-mail address or a URL, is part of the User-Agent; without it that of the environment variable
    ``SIGLIP_ONNX_URL_CONTACT``.
    """

    def __init__(
        self,
        limits: Limits,
        domains: Sequence[str] = (),
        *,
        networks: Sequence[str] = (),
        contact: str | None = None,
        resolve: Resolve = resolve_host,
        dial: Dial = dial_address,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = limits.image.max_bytes
        self._domains = HostNames(domains, flag="--url-allow-domain", subdomains=True)
        self._networks = parse_networks(networks, "--url-allow-network")
        self._headers = (("User-Agent", user_agent(contact or os.environ.get(CONTACT_VARIABLE))), *_HEADERS)
        self._resolve = resolve
        self._dial = dial
        self._tls = tls

    async def fetch(self, url: str) -> bytes:
        """Return the content of a URL.

        Raises:
            RequestError: the URL is refused, or cannot be fetched within the limits.
        """
        try:
            async with self.deadline():
                return await self._follow(url)
        except (OSError, h11.ProtocolError, zlib.error) as error:
            raise _failed(_reason(error)) from error

    @contextlib.asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Bound the time of all URLs of a request together.

        Raises:
            RequestError: the block took longer.
        """
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                yield
        except TimeoutError as error:
            raise _failed(f"it took more than {TOTAL_SECONDS:.0f} seconds") from error

    async def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = await self.check(url)
            async with self._connect(target) as (reader, writer):
                response = await _Exchange(reader, writer, self._max_bytes).get(target, self._headers)
            if isinstance(response, bytes):
                return response
            url = _join(url, response.location)
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    async def check(self, url: str) -> Target:
        """Resolve and check a URL.

        Raises:
            RequestError: it must not be fetched, or its host cannot be resolved.
        """
        parts, host, port = parse_url(url)
        if port != PORTS[parts.scheme] and not self._networks:
            raise _refused("only port 80 for http and port 443 for https are supported")
        if self._domains and host not in self._domains and not is_in(host, self._networks):
            raise _refused("this server fetches only from other domains")
        try:
            resolved = await self._resolve(host, port)
        except TooManyLookupsError as error:
            raise _failed(f"{error}; try it again later") from error
        except (OSError, UnicodeError) as error:
            raise _failed("its host name cannot be resolved") from error
        addresses = tuple(ipaddress.ip_address(address) for address in resolved)
        # A mix of public and private addresses is a sign of DNS rebinding.
        if addresses and all(is_in(str(address), self._networks) for address in addresses):
            return Target(parts, host, port, addresses, is_public=False)
        if not addresses or not all(is_public(address) for address in addresses):
            raise _refused("its host does not have a public address")
        if port != PORTS[parts.scheme]:
            raise _refused("only port 80 for http and port 443 for https are supported")
        return Target(parts, host, port, addresses, is_public=True)

    @contextlib.asynccontextmanager
    async def _connect(self, target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._dial_any(target)
                tls = self._tls_context() if target.url.scheme == "https" else None
                reader, writer = await asyncio.open_connection(
                    sock=connection, ssl=tls, server_hostname=target.host if tls else None, limit=_CHUNK
                )
        except TimeoutError as error:
            raise _failed(f"no connection within {CONNECT_SECONDS:.0f} seconds") from error
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_ciphers(_CIPHERS)
        return self._tls

    async def _dial_any(self, target: Target) -> socket.socket:
        proxy = proxy_for(target.url.scheme, target.host) if target.is_public else None
        if proxy is None:
            return await _first(target.addresses, lambda address: self._dial(address, target.port))
        problem = OSError("no address")
        for address in target.addresses[:MAX_ADDRESSES]:  # the proxy may take its time for each, and then answers
            try:
                return await _dial_through(proxy, address, target.port)
            except OSError as error:
                problem = error
        raise problem


async def _first(
    addresses: Sequence[Address], connect: Callable[[Address], Coroutine[Any, Any, socket.socket]]
) -> socket.socket:  # fmt: skip
    """Return the first connection to one of several addresses; after a moment, the next one is tried beside the others.

    Source: RFC 8305, section 5.

    Raises:
        OSError: that of the last one.
    """
    waiting = list(addresses[:MAX_ADDRESSES])
    problem: BaseException = OSError("no address")
    running: set[asyncio.Task[socket.socket]] = set()
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(connect(waiting.pop(0))))
            done, running = await asyncio.wait(
                running, timeout=ATTEMPT_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            connected = [task.result() for task in done if task.exception() is None]
            for other in connected[1:]:
                other.close()
            if connected:
                return connected[0]
            problem = next((error for task in done if (error := task.exception()) is not None), problem)
    finally:
        for task in running:
            task.add_done_callback(_close_connection)
            task.cancel()
    raise problem


def _close_connection(task: asyncio.Task[socket.socket]) -> None:
    """Close the connection of an attempt that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


class ProxyError(OSError):
    """The proxy cannot be reached, or does not connect."""


async def _dial_through(proxy: EgressProxy, address: Address, port: int) -> socket.socket:
    """Return a socket that a proxy has connected to this address.

    Raises:
        ProxyError: the proxy cannot be reached, or does not connect.
    """
    loop = asyncio.get_running_loop()
    try:
        addresses = [ipaddress.ip_address(address) for address in await resolve_host(proxy.host, proxy.port)]
        connection = await _first(addresses, partial(dial_address, port=proxy.port))
    except (OSError, UnicodeError) as error:
        raise ProxyError("the proxy of this server cannot be reached") from error
    head = b""
    try:
        await loop.sock_sendall(connection, proxy.connect_request(str(address), port))
        while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
            chunk = await loop.sock_recv(connection, MAX_HEAD_BYTES)
            if not chunk:
                break
            head += chunk
        if tunnel_status(head) != 200 or not head.endswith(b"\r\n\r\n"):
            raise ProxyError(f"the proxy of this server answered {tunnel_status(head)} to CONNECT")
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True)
class _Redirect:
    location: str


class _Exchange:
    """One request and its response on a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        self._max_bytes = max_bytes
        self._http = BoundedConnection(h11.CLIENT)

    async def get(self, target: Target, headers: Sequence[tuple[str, str]]) -> bytes | _Redirect:
        request_headers = [("Host", target.host_header), *headers]
        sent = self._http.send(h11.Request(method="GET", target=target.path, headers=request_headers))
        self._writer.write((sent or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()
        response = await self._next()
        while isinstance(response, h11.InformationalResponse):
            response = await self._next()
        if not isinstance(response, h11.Response):
            raise _failed("its server closed the connection without a response")
        answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        if response.status_code in _REDIRECTS and "location" in answered:
            return _Redirect(answered["location"])
        if response.status_code != 200:
            hint = (
                ", perhaps because it asks for a contact (--url-contact)" if response.status_code in (403, 429) else ""
            )
            raise _failed(f"its server answered {response.status_code}{hint}")
        return await self._read(answered.get("content-encoding", "identity").strip().lower())

    async def _read(self, encoding: str) -> bytes:
        inflater = _inflater(encoding)
        body, received = bytearray(), 0
        while isinstance(event := await self._next(), h11.Data):
            received += len(event.data)
            content = bytes(event.data)
            body += content if inflater is None else inflater.decode(content, self._max_bytes + 1 - len(body))
            if max(received, len(body)) > self._max_bytes:
                raise RequestError(422, "too_large", f"The image has more than {self._max_bytes:,} bytes.")
        if not isinstance(event, h11.EndOfMessage):
            raise _failed("its server closed the connection early")
        if inflater is not None:
            inflater.check_end()
        return bytes(body)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        await asyncio.sleep(0)  # many events may be there already; others get their turn between them
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_CHUNK))
        return event


def user_agent(contact: str | None) -> str:
    """Return the User-Agent in the form that sites ask for: name, version, and how to reach who runs the server.

    Raises:
        OptionError: the contact is neither an e-mail address nor a URL.
    """
    return f"siglip-onnx/{__version__}" + (f" ({parse_contact(contact, CONTACT_VARIABLE)})" if contact else "")


def parse_url(url: str) -> tuple[SplitResult, str, int]:
    """Return the parts of a URL, its host in ASCII, and its port.

    Raises:
        RequestError: not http or https, a user name, or an ambiguous host.
    """
    if len(url) > MAX_URL_CHARACTERS or any(character <= " " or character in "\\\x7f" for character in url):
        raise _refused("it is too long, or contains spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        host = host.removesuffix(".")
    except ValueError as error:
        raise _refused("it is malformed") from error
    if parts.scheme not in PORTS:
        raise _refused("only http and https are supported")
    if "@" in parts.netloc:
        raise _refused("it contains a user name")
    if not host or "%" in host or is_ambiguous(host):
        raise _refused("its host is neither a name nor an ordinary address")
    if port == 0:
        raise _refused("its port is 0")
    return parts._replace(path=_ascii(parts.path), query=_ascii(parts.query)), host, port or PORTS[parts.scheme]


def _join(url: str, location: str) -> str:
    """Return the target of a redirect.

    Raises:
        RequestError: it is malformed.
    """
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _refused("it redirects to a malformed URL") from error


def _ascii(part: str) -> str:
    return "".join(
        character
        if character.isascii()
        else "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))
        for character in part
    )


def _inflater(encoding: str) -> _Inflater | None:
    """Return what decompresses a body; None if it is not compressed."""
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _failed("its server uses a content encoding that is not supported")
    return _Inflater()


class _Inflater:
    """Decompresses one gzip or zlib stream, which is the whole body."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)

    def decode(self, data: bytes, limit: int) -> bytes:
        """Return the content of the next part of a body, at most ``limit`` bytes.

        Raises:
            zlib.error: it is damaged, or goes on after the end of the stream.
        """
        if self._stream.eof:
            raise zlib.error("data after the end of the stream")
        content = self._stream.decompress(data, limit)
        if self._stream.unused_data:
            raise zlib.error("data after the end of the stream")
        return content

    def check_end(self) -> None:
        """Check that the stream has ended with the body.

        Raises:
            zlib.error: it is cut short.
        """
        if not self._stream.eof:
            raise zlib.error("the stream is cut short")


def _refused(reason: str) -> RequestError:
    return RequestError(422, "url_refused", f"The URL is refused: {reason}.")


def _failed(reason: str) -> RequestError:
    return RequestError(422, "fetch_failed", f"The URL could not be fetched: {reason}.")


def _reason(error: Exception) -> str:
    if isinstance(error, ProxyError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return f"its TLS certificate or connection is not trusted ({error.reason or type(error).__name__})"
    if isinstance(error, TooManyEventsError):
        return f"its server sends {error}"
    if isinstance(error, h11.ProtocolError):
        return "its server violates the HTTP protocol"
    if isinstance(error, zlib.error):
        return "its compressed content is damaged"
    return "its server cannot be reached"
