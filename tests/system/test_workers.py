"""Threads that work ahead: order, exceptions of the input, and forks."""

import os
import signal
from collections.abc import Iterator

import pytest

from siglip_onnx.system.workers import in_batches, map_in_order


def interrupted(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("the input broke")


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_results_before_an_exception_of_the_input_are_kept(workers: int, count: int) -> None:
    results: list[int] = []
    with pytest.raises(ValueError, match="the input broke"):
        results.extend(map_in_order(lambda number: number * 2, interrupted(count), workers))
    assert results == [number * 2 for number in range(count)]


def test_batches_before_an_exception_of_the_input_are_kept() -> None:
    batches: list[list[int]] = []
    with pytest.raises(ValueError, match="the input broke"):
        batches.extend(in_batches(interrupted(7), 3))
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_batches(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]


def test_no_more_is_read_than_may_be_pending() -> None:
    read = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = map_in_order(abs, items(), 2)
    assert [next(results), next(results)] == [0, 1]
    assert len(read) <= 6
    results.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("taken", [0, 1, 9])
def test_stream_continues_in_a_forked_child(taken: int) -> None:
    results = map_in_order(lambda number: number + 1, range(10), 3)
    first = [next(results) for _ in range(taken)]
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a hang ends here
        os._exit(0 if [*first, *results] == list(range(1, 11)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [*first, *results] == list(range(1, 11))
