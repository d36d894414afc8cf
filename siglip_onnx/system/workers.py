"""Map a function over inputs with a bounded pool of threads, with the results in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2  # inputs per worker that are read ahead, so that no worker waits for the reader


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, computed by ``workers`` threads, in the order of the items.

    Items are read as they are needed and at most ``2 * workers`` are held at once, so ``items`` may be endless. An
    exception is raised at its item's turn. A caller that stops early waits only for calls in progress.
    """
    if workers == 1:
        yield from map(function, items)
        return
    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="siglip_onnx")
    try:
        pending.extend(pool.submit(function, item) for item in itertools.islice(remaining, _AHEAD * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of up to ``size`` items."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
