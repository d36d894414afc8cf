"""Map a function over inputs with a bounded pool of threads, with the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ..errors import SiglipOnnxError

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2  # inputs per worker that are read ahead, so that no worker waits for the reader


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, computed by ``workers`` threads, in the order of the items.

    Items are read as they are needed and at most ``2 * workers`` are held at once, so ``items`` may be endless. An
    exception is raised at its item's turn, and one of ``items`` after the results of all items before it. A caller that
    stops early waits only for calls in progress. A forked child may continue.
    """
    if workers == 1:
        yield from map(function, items)
        return
    ahead = _Ahead(function, items, workers)
    try:
        while ahead.fill():
            yield ahead.next_result()
    finally:
        ahead.close()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of up to ``size`` items; an exception of ``items`` follows a shorter list of the items before it."""
    remaining = iter(items)
    batch: list[Item] = []
    try:
        for item in remaining:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Ahead(Generic[Item, Result]):
    """Items whose results are computed ahead by a pool of threads.

    A forked child has none of the threads, so that it would wait for their results forever: it computes the items
    that are pending once more, in threads of its own.
    """

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> None:
        self._function, self._remaining, self._workers = function, iter(items), workers
        self._pending: deque[tuple[Item, Future[Result]]] = deque()
        self._failure: Exception | None = None  # of the items; those before it come first
        self._start()

    def fill(self) -> bool:
        """Read items until enough are pending; return whether any is.

        Raises:
            Exception: that of the items, after all results.
        """
        if os.getpid() != self._process:
            items = [item for item, _ in self._pending]
            self._start()
            self._pending.clear()
            for item in items:
                self._submit(item)
        while self._failure is None and len(self._pending) < _AHEAD * self._workers:
            try:
                item = next(self._remaining)
            except StopIteration:
                break
            except Exception as error:
                self._failure = error
            else:
                self._submit(item)
        if not self._pending and self._failure is not None:
            raise self._failure
        return bool(self._pending)

    def next_result(self) -> Result:
        """Return the result of the first pending item, or raise its exception."""
        return self._pending.popleft()[1].result()

    def close(self) -> None:
        """Wait for calls in progress, and start no further one."""
        if os.getpid() == self._process:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, item: Item) -> None:
        try:
            self._pending.append((item, self._pool.submit(self._function, item)))
        except RuntimeError as error:  # no thread could be started
            raise SiglipOnnxError(
                f"{self._workers} threads cannot be started: {error}. Use fewer workers, or raise the limit of "
                "processes (ulimit -u)."
            ) from error

    def _start(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="siglip_onnx")
