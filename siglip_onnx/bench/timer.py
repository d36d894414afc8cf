"""The timer of every benchmark: single calls on distinct inputs, with their outputs."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")
WARM_UP = 10
WARM_UP_SECONDS = 0.5  # enough warm-up; a slow stage need not be called ten times


@dataclass(frozen=True)
class Limits:
    """How long a stage is timed over all rounds: until one of both limits is reached."""

    rounds: int = 3
    min_samples: int = 64
    min_seconds: float = 10.0

    @property
    def samples_per_round(self) -> int:
        """The samples that end a round."""
        return math.ceil(self.min_samples / self.rounds)

    @property
    def seconds_per_round(self) -> float:
        """The seconds that end a round."""
        return self.min_seconds / self.rounds


def time_calls(
    run: Callable[[Input], Output], inputs: Sequence[Input], limits: Limits
) -> tuple[list[float], list[Output]]:
    """Call ``run`` on each input in turn; return milliseconds per call, and the last output of each input.

    After warming up it continues until the round's samples or seconds are reached, and every input was used.
    """
    _warm_up(run, inputs)
    samples: list[float] = []
    outputs: dict[int, Output] = {}
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        while not _enough(len(samples), time.perf_counter() - began, len(inputs), limits):
            number = len(samples) % len(inputs)
            before = time.perf_counter_ns()
            outputs[number] = run(inputs[number])
            samples.append((time.perf_counter_ns() - before) / 1e6)
    finally:
        gc.enable()
    return samples, [outputs[number] for number in range(len(inputs))]


def _warm_up(run: Callable[[Input], Output], inputs: Sequence[Input]) -> None:
    began = time.perf_counter()
    for number in range(WARM_UP):
        run(inputs[number % len(inputs)])
        if time.perf_counter() - began > WARM_UP_SECONDS:
            return


def _enough(num_samples: int, seconds: float, num_inputs: int, limits: Limits) -> bool:
    if num_samples < num_inputs:
        return False
    return num_samples >= limits.samples_per_round or seconds >= limits.seconds_per_round
