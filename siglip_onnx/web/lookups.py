"""Look up host names in threads of their own: the system's resolver may wait for long, and cannot be stopped.

asyncio's own threads are few, and a lookup stays in one of them after its request has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from concurrent.futures import Future

MAX_LOOKUPS = 200  # that run at the same time


class Lookups:
    """Lookups that run now: one for each host and port, shared by all that wait for it."""

    def __init__(self, most: int = MAX_LOOKUPS) -> None:
        """Run at most this number at the same time."""
        self._most = most
        self._running: dict[tuple[str, int], Future[list[str]]] = {}
        self._lock = threading.Lock()

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return every address that the system's resolver gives for a host; an address is its own.

        Raises:
            OSError: the name cannot be resolved, or too many lookups run.
            UnicodeError: it is not a name.
        """
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        # Of several requests that wait, one that ends must not cancel the lookup.
        return await asyncio.shield(asyncio.wrap_future(self._start(host, port)))

    def _start(self, host: str, port: int) -> Future[list[str]]:
        key = host, port
        with self._lock:
            if key in self._running:
                return self._running[key]
            if len(self._running) >= self._most:
                raise OSError("too many lookups of host names are waiting for an answer")
            future = self._running[key] = Future()
        future.set_running_or_notify_cancel()
        # A daemon, so that a lookup does not delay the end of the process.
        threading.Thread(target=self._look_up, args=(host, port, future), daemon=True).start()
        return future

    def _look_up(self, host: str, port: int, future: Future[list[str]]) -> None:
        try:
            results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in results))
        except Exception as error:
            self._forget(host, port)
            future.set_exception(error)
        else:
            self._forget(host, port)
            future.set_result(addresses)

    def _forget(self, host: str, port: int) -> None:
        with self._lock:
            del self._running[host, port]


resolve_host = Lookups().resolve
