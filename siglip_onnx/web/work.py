"""A bounded request queue and its worker threads, which decode images and run the models."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from .errors import RequestError
from .metrics import Metrics
from .settings import Limits

Result = TypeVar("Result")
Steps = Generator[None, None, Result]  # work that others may interrupt where it yields
WORKERS = "siglip_onnx.web"  # prefix of the names of worker threads
TURN_SECONDS = 0.1  # after which the next yield ends a turn, if other work waits
SLOW_BODY_SECONDS = 5.0  # after which a body that is still being received makes room for another request
_MAX_RETRY_S = 60
_FETCH_SHARE = 0.75  # of the memory, for images to fetch; the rest is left to uploads
_current = threading.local()  # client_gone, the event of the request that a worker thread is working for


def stop_if_client_gone() -> None:
    """End the work of a worker thread whose client has disconnected; to be called between images and texts.

    Raises:
        RequestError: it has.
    """
    event: threading.Event | None = getattr(_current, "client_gone", None)
    if event is not None and event.is_set():
        raise RequestError(499, "client_gone", "The client disconnected.")


@dataclass(eq=False)
class _Job:
    """The work of a request, done in one or more turns of a worker thread."""

    steps: Steps[Any]
    client_gone: threading.Event = field(default_factory=threading.Event)
    submitted: float = 0.0  # its next turn
    waited_s: float = 0.0
    worked_s: float = 0.0
    result: Any = None
    has_ended: bool = False


class WorkQueue:
    """Admits a bounded number of requests and bytes, and processes them in turns: first come, first served.

    A request ends its turn between two images or texts when it has lasted for :data:`TURN_SECONDS` and others wait; its
    next turn comes after theirs. Alone it is never interrupted.
    """

    def __init__(self, limits: Limits, workers: int, metrics: Metrics) -> None:
        self._limits = limits
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=WORKERS)
        self._requests = 0
        self._bytes = 0
        self._held = 0  # of these, for images to fetch
        self._fetching: dict[asyncio.Timeout, float] = {}  # since when images of each request are being fetched
        self._waiting: set[_Job] = set()  # for a worker thread
        self._mean_s = 0.1  # moving average of the work of one request
        self._metrics = metrics
        self._receiving: dict[asyncio.Timeout, float] = {}  # since when each body is being received

    @property
    def size(self) -> int:
        """Requests being received, queued or processed."""
        return self._requests

    @contextlib.contextmanager
    def admit(self, body_bytes: int) -> Iterator[Callable[[int], None]]:
        """Admit one request whose body has at most ``body_bytes``; if the queue is full, end one whose body is slow.

        Yields a function to be called with the size of the body when it has arrived.

        Raises:
            RequestError: the queue is full; the error says when to try again.
        """
        is_full = self._requests >= self._limits.requests or self._bytes + body_bytes > self._limits.pending_bytes
        if is_full and not _end_slowest(self._receiving):
            raise self._full()
        self._requests += 1
        self._bytes += body_bytes
        reserved = body_bytes

        def shrink(size_bytes: int) -> None:
            nonlocal reserved
            self._bytes -= reserved - size_bytes
            reserved = size_bytes

        try:
            yield shrink
        finally:
            self._requests -= 1
            self._bytes -= reserved

    @contextlib.contextmanager
    def receiving(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """Let :meth:`admit` end the reception of a body by its deadline."""
        self._receiving[deadline] = time.monotonic()
        try:
            yield
        finally:
            self._receiving.pop(deadline, None)

    @contextlib.contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Reserve memory for images to fetch; if there is no more, end a slow fetch.

        Raises:
            RequestError: admitted requests have reserved too much of it.
        """
        most = int(_FETCH_SHARE * self._limits.pending_bytes)
        is_full = self._held + size_bytes > most or self._bytes + size_bytes > self._limits.pending_bytes
        if is_full and not _end_slowest(self._fetching):
            raise self._full()
        self._bytes += size_bytes
        self._held += size_bytes
        try:
            yield
        finally:
            self._bytes -= size_bytes
            self._held -= size_bytes

    async def fetch(self, work: Awaitable[Result]) -> Result:
        """Return the result of ``work``, which fetches images, and let :meth:`hold` end it.

        Raises:
            RequestError: it was ended.
        """
        try:
            async with asyncio.timeout(None) as deadline:
                self._fetching[deadline] = time.monotonic()
                try:
                    return await work
                finally:
                    self._fetching.pop(deadline, None)
        except TimeoutError as error:
            raise RequestError(
                422, "fetch_failed", f"The images took longer than the {SLOW_BODY_SECONDS:.0f} seconds that a busy "
                "server waits.",
            ) from error  # fmt: skip

    def _full(self) -> RequestError:
        return RequestError(
            429, "queue_full", "The server is at its limit of requests; try again later.",
            retry_after_s=self.retry_after_s(),
        )  # fmt: skip

    def retry_after_s(self) -> int:
        """Return the seconds after which the queue should be empty."""
        return min(_MAX_RETRY_S, max(1, math.ceil(self._requests * self._mean_s / self._workers)))

    async def run(self, work: Callable[[], Result], gone: Callable[[], Awaitable[None]]) -> Result:
        """Return the result of ``work``, done in one turn; see :meth:`run_steps`.

        Raises:
            RequestError: the client disconnected.
        """
        return await self.run_steps(_one_step(work), gone)

    async def run_steps(self, steps: Steps[Result], gone: Callable[[], Awaitable[None]]) -> Result:
        """Return the result of ``steps``, run in worker threads; skip what is left when the client is ``gone``.

        Raises:
            RequestError: the client disconnected.
        """
        job = _Job(steps)
        watch = asyncio.ensure_future(gone())
        try:
            while not job.has_ended:
                job.submitted = time.perf_counter()
                self._waiting.add(job)
                future = asyncio.get_running_loop().run_in_executor(self._pool, partial(self._take_turn, job))
                await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
                if not future.done():
                    future.cancel()
                    job.client_gone.set()  # ends work that has begun, at its next image or text
                    raise RequestError(499, "client_gone", "The client disconnected before its turn.")
                future.result()
            result: Result = job.result
            return result
        finally:
            watch.cancel()
            self._waiting.discard(job)

    def _take_turn(self, job: _Job) -> None:
        """Work on a job until it ends, or has had its turn and others wait."""
        self._waiting.discard(job)
        started = time.perf_counter()
        job.waited_s += started - job.submitted
        _current.client_gone = job.client_gone
        job.has_ended = True  # also by an exception
        try:
            while True:
                next(job.steps)
                stop_if_client_gone()
                if self._waiting and time.perf_counter() - started >= TURN_SECONDS:
                    break
            job.has_ended = False
        except StopIteration as end:
            job.result = end.value
        finally:
            job.worked_s += time.perf_counter() - started
            if job.has_ended:
                self._metrics.observe("siglip_request_queue_duration", job.waited_s)
                self._mean_s += 0.1 * (job.worked_s - self._mean_s)

    def close(self) -> None:
        """Discard queued requests; running ones end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _one_step(work: Callable[[], Result]) -> Steps[Result]:
    """Return work as steps that nothing interrupts."""
    return work()
    yield  # makes this a generator


def _end_slowest(since: dict[asyncio.Timeout, float]) -> bool:
    """End the one that began first, if that is long ago; return whether it was."""
    deadline = next(iter(since), None)
    if deadline is None or time.monotonic() - since[deadline] < SLOW_BODY_SECONDS:
        return False
    del since[deadline]
    deadline.reschedule(asyncio.get_running_loop().time())
    return True
