"""A fake internet on this machine: names, addresses that look public, and misbehaving servers."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from siglip_onnx.web.addresses import Address
from siglip_onnx.web.fetch import Fetcher
from siglip_onnx.web.settings import Limits

PUBLIC = "93.184.216.34"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_watching: list[list[tuple[str, Any]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        for events in _watching:
            events.append((event, arguments))


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched_sockets() -> Iterator[list[tuple[str, Any]]]:
    """Yield the list of names resolved and addresses connected to, by any code of this process."""
    events: list[tuple[str, Any]] = []
    _watching.append(events)
    try:
        yield events
    finally:
        _watching.remove(events)


class FakeInternet:
    """Resolves names from a table, and connects every dialed address to one local server."""

    def __init__(self, answers: dict[str, list[str]] | None = None, port: int = 0) -> None:
        self.answers = answers or {}
        self.port = port
        self.resolved: list[str] = []
        self.dialed: list[tuple[str, int]] = []

    async def resolve(self, host: str, _port: int) -> list[str]:
        self.resolved.append(host)
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        if host not in self.answers:
            raise OSError("unknown name")
        return self.answers[host]

    async def dial(self, address: Address, port: int) -> socket.socket:
        self.dialed.append((str(address), port))
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        return connection

    def fetcher(self, *domains: str, tls: ssl.SSLContext | None = None, **options: Any) -> Fetcher:
        return Fetcher(Limits(), domains, resolve=self.resolve, dial=self.dial, tls=tls, **options)


@contextlib.asynccontextmanager
async def serving(serve: Serve, internet: FakeInternet, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:

    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            connections.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    internet.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        if connections:
            await asyncio.wait(list(connections), timeout=5)
        await asyncio.sleep(0)


def answering(*responses: bytes) -> Serve:
    """Return a server that sends one response after the other, and then repeats the last."""
    remaining = list(responses)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(remaining.pop(0) if len(remaining) > 1 else remaining[0])
        await writer.drain()

    return serve


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def redirect(location: str) -> bytes:
    return response(b"", f"Location: {location}", status="302 Found")


@contextlib.contextmanager
def serving_in_thread(serve: Serve, internet: FakeInternet) -> Iterator[None]:
    """Like :func:`serving`, for clients in another thread."""
    loop = asyncio.new_event_loop()
    stop, started = asyncio.Event(), threading.Event()

    async def main() -> None:
        async with serving(serve, internet):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
