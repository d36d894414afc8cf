"""One connection of a client: deadlines, a bound on chunks, and an orderly end after an early answer."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from .bounded_http import BoundedConnection
from .errors import RequestError, error_reply
from .guards import SECURITY_HEADERS
from .hosts import Network, is_in
from .log_limit import LogLimit

if sys.platform != "win32":
    import resource


def max_open_files() -> int:
    """Return how many files and sockets this process may open."""
    if sys.platform == "win32":
        return 8192
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1_000_000 if files == resource.RLIM_INFINITY else files


HEADER_SECONDS = 10.0  # to receive the headers of a request
STALLED_SECONDS = 30.0  # without reading, while an answer is sent
LINGER_SECONDS = 2.0  # to let a client read an early answer before the connection closes
LINGER_BYTES = 100_000_000  # of its body, discarded meanwhile
MAX_CONNECTIONS = min(1000, max_open_files() // 2)
MAX_PER_ADDRESS = max(8, MAX_CONNECTIONS // 4)  # of one client, unless it is a trusted proxy
BACKLOG = min(128, max_open_files() // 8)  # asyncio accepts this many at once, before those too many are closed
_log = logging.getLogger(__name__)
_log_limit = LogLimit(_log)


class Connection(H11Protocol):
    """uvicorn's connection, which by itself waits forever for headers, and reads bodies that nobody needs."""

    def __init__(self, *arguments: Any, trusted: Sequence[Network] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address = ""
        self._trusted = trusted
        self._idle_since = 0.0
        self.conn = BoundedConnection(h11.SERVER)
        self._app = self.app
        self.app = self._answer
        self._headers_due: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._ended = False
        self._left_to_discard = LINGER_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline for headers; if there are too many connections, close one of them, or else this one."""
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._idle_since = self.loop.time()
        if not self._is_admitted():
            transport.abort()
            return
        super().connection_made(cast("asyncio.Transport", _EndingTransport(transport, self)))
        self._watch_headers()

    @property
    def idleness(self) -> tuple[bool, float] | None:
        """Order in which idle connections are closed, those without a first answer first; None if it is not idle."""
        if self._ended or not (self.cycle is None or self.cycle.response_complete):
            return None
        return self.cycle is not None, self._idle_since

    def on_response_complete(self) -> None:
        """Note the end of an answer."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _is_admitted(self) -> bool:
        """Return whether there is room for this connection, for which an idle one may be closed."""
        others = [connection for connection in self.connections if isinstance(connection, Connection)]
        if not is_in(self.address, self._trusted):
            own = [each for each in others if each.address == self.address and not each.is_ended]
            if len(own) >= MAX_PER_ADDRESS:
                _log_limit.warning(
                    "There are too many connections of one address, of which idle ones are closed; if it is a proxy, "
                    "name it with --trusted-proxy."
                )
                if not _close_idle(own):
                    return False
        if len(self.connections) < MAX_CONNECTIONS:
            return True
        _log_limit.warning("There are too many connections; idle ones are closed.")
        return _close_idle(others)

    def abort(self) -> None:
        """Close the connection at once."""
        self._ended = True
        self.connections.discard(self)
        self._cancel_deadlines()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all deadlines."""
        self._ended = True
        self._cancel_deadlines()
        if self.transport is not None:  # it is None if there were too many connections
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process bytes; after an early answer, discard them."""
        if self._ended:
            self._left_to_discard -= len(data)
            if self._left_to_discard < 0:
                self.transport.abort()
            return
        super().data_received(data)
        self._watch_headers()

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read its answer."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that deadline."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def shutdown(self) -> None:
        """Close the connection when its answer is complete; one that is about to close is left alone."""
        if not self._ended:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP, unless an answer is under way; then close."""
        del msg  # uvicorn's text; the answer has the form of all errors
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application stops waiting for the body
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reply = error_reply(RequestError(400, "bad_request", "The request is not valid HTTP."))
            headers = {"Cache-Control": "no-store", "Connection": "close"} | SECURITY_HEADERS | dict(reply.headers)
            for event in (
                h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"),
                h11.Data(data=bytes(reply.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def end(self, transport: asyncio.Transport) -> None:
        """Close the connection.

        While a client still sends, its bytes are discarded for a short time: closing at once would reset the
        connection, and the client could lose the answer.
        """
        if self._ended:
            return
        self._ended = True
        self._cancel_deadlines()
        if self.conn.their_state in (h11.SEND_BODY, h11.ERROR) and transport.can_write_eof():
            self.flow.resume_reading()
            transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, transport.close)
        else:
            transport.close()
        self.loop.call_later(STALLED_SECONDS, transport.abort)  # does nothing to a closed connection

    @property
    def is_ended(self) -> bool:
        """Whether the connection is closed or about to close."""
        return self._ended

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; if the answer starts before the body has arrived, it is the last of the connection."""
        cycle = self.cycle

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                message = {**message, "headers": [*message.get("headers", ()), CLOSE_HEADER]}
            await send(message)

        try:
            await self._app(scope, receive, send_last)
        except asyncio.CancelledError:  # the server stops
            cycle.disconnected = True
            self.transport.abort()

    def _watch_headers(self) -> None:
        """Run the deadline while headers are incomplete. Between requests, uvicorn's keep-alive timeout runs."""
        if self._ended or self.conn.their_state is not h11.IDLE:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cancel_deadlines(self) -> None:
        for deadline in (self._headers_due, self._stalled, self.timeout_keep_alive_task):
            if deadline is not None:
                deadline.cancel()


def _close_idle(connections: Iterable[Connection]) -> bool:
    """Close the connection that has been idle for longest; return whether there was one."""
    idle = [(connection.idleness, connection) for connection in connections if connection.idleness is not None]
    if idle:
        min(idle, key=lambda entry: entry[0])[1].abort()
    return bool(idle)


class _EndingTransport:
    """A transport that is closed by :meth:`Connection.end`."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._connection.end(self._transport)

    def is_closing(self) -> bool:
        return self._connection.is_ended or self._transport.is_closing()
