"""Look up host names in threads of their own: the system's resolver may wait for long, and cannot be stopped.

asyncio's own threads are few, and a lookup stays in one of them after its request has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future

MAX_LOOKUPS = 200  # for which requests wait
MAX_ABANDONED = 800  # whose requests have ended; the system's resolver gives up after 10 to 60 seconds
Key = tuple[str, int]


class TooManyLookupsError(OSError):
    """A lookup was not started, because too many run."""


class Lookups:
    """Lookups that run now: one for each host and port, shared by all that wait for it."""

    def __init__(self, most: int = MAX_LOOKUPS, most_abandoned: int = MAX_ABANDONED) -> None:
        """Run at most these numbers at the same time: of lookups for which a request waits, and of others."""
        self._most, self._most_abandoned = most, most_abandoned
        self._running: dict[Key, Future[list[str]]] = {}
        self._waiting: Counter[Key] = Counter()  # requests
        self._lock = threading.Lock()

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return every address that the system's resolver gives for a host; an address is its own.

        Raises:
            TooManyLookupsError: too many lookups run.
            OSError: the name cannot be resolved.
            UnicodeError: it is not a name.
        """
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        key = host, port
        with self._waits_for(key) as future:
            # Of several requests that wait, one that ends must not cancel the lookup.
            return await asyncio.shield(asyncio.wrap_future(future))

    @contextlib.contextmanager
    def _waits_for(self, key: Key) -> Iterator[Future[list[str]]]:
        """Start a lookup, unless it runs, and count a request that waits for it."""
        with self._lock:
            future = self._running.get(key) or self._start(key)
            self._waiting[key] += 1
        try:
            yield future
        finally:
            with self._lock:
                self._waiting[key] -= 1
                self._waiting += Counter()  # drops those at 0

    def _start(self, key: Key) -> Future[list[str]]:
        num_abandoned = len(self._running.keys() - self._waiting.keys())
        if len(self._running) - num_abandoned >= self._most or num_abandoned >= self._most_abandoned:
            raise TooManyLookupsError("too many lookups of host names wait for an answer of the system's resolver")
        future: Future[list[str]] = Future()
        future.set_running_or_notify_cancel()
        # A daemon, so that a lookup does not delay the end of the process.
        thread = threading.Thread(target=self._look_up, args=(key, future), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise TooManyLookupsError("no thread can be started to look up host names") from error
        self._running[key] = future  # the lookup forgets it when it holds the lock
        return future

    def _look_up(self, key: Key, future: Future[list[str]]) -> None:
        try:
            results = socket.getaddrinfo(*key, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in results))
        except BaseException as error:
            self._forget(key)
            future.set_exception(error)
        else:
            self._forget(key)
            future.set_result(addresses)

    def _forget(self, key: Key) -> None:
        with self._lock:
            del self._running[key]


resolve_host = Lookups().resolve
