"""A bounded request queue and its worker threads, which decode images and run the models."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .errors import RequestError
from .metrics import Metrics
from .settings import Limits

Result = TypeVar("Result")
WORKERS = "siglip_onnx.web"  # prefix of the names of worker threads
_MAX_RETRY_S = 60


class WorkQueue:
    """Admits a bounded number of requests and bytes, and processes them first come, first served."""

    def __init__(self, limits: Limits, workers: int, metrics: Metrics) -> None:
        self._limits = limits
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=WORKERS)
        self._requests = 0
        self._bytes = 0
        self._mean_s = 0.1  # moving average of the work of one request
        self._metrics = metrics

    @property
    def size(self) -> int:
        """Requests being received, queued or processed."""
        return self._requests

    @contextlib.contextmanager
    def admit(self, body_bytes: int) -> Iterator[None]:
        """Admit one request whose body has at most ``body_bytes``.

        Raises:
            RequestError: the queue is full; the error says when to try again.
        """
        if self._requests >= self._limits.requests:
            raise self._full()
        with self.hold(body_bytes):
            self._requests += 1
            try:
                yield
            finally:
                self._requests -= 1

    @contextlib.contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Reserve memory.

        Raises:
            RequestError: admitted requests have reserved too much of it.
        """
        if self._bytes + size_bytes > self._limits.pending_bytes:
            raise self._full()
        self._bytes += size_bytes
        try:
            yield
        finally:
            self._bytes -= size_bytes

    def _full(self) -> RequestError:
        return RequestError(
            429, "queue_full", "The server is at its limit of requests; try again later.",
            retry_after_s=self.retry_after_s(),
        )  # fmt: skip

    def retry_after_s(self) -> int:
        """Return the seconds after which the queue should be empty."""
        return min(_MAX_RETRY_S, max(1, math.ceil(self._requests * self._mean_s / self._workers)))

    async def run(self, work: Callable[[], Result], gone: Callable[[], Awaitable[None]]) -> Result:
        """Return the result of ``work``, run in a worker thread; skip it if the client is ``gone`` before its turn.

        Raises:
            RequestError: the client disconnected.
        """
        submitted = time.perf_counter()

        def timed() -> Result:
            started = time.perf_counter()
            self._metrics.observe("siglip_request_queue_duration", started - submitted)
            try:
                return work()
            finally:
                self._mean_s += 0.1 * (time.perf_counter() - started - self._mean_s)

        future = asyncio.get_running_loop().run_in_executor(self._pool, timed)
        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                future.cancel()
                raise RequestError(499, "client_gone", "The client disconnected before its turn.")
            return future.result()
        finally:
            watch.cancel()

    def close(self) -> None:
        """Discard queued requests; running ones end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
