"""Other programs on this machine: how much of the CPUs they use, and waiting until they use little."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

QUIET_CPUS = 0.15  # which a machine without other work uses for itself
_WINDOW_SECONDS = 3.0


class OtherPrograms:
    """CPUs that other programs used since this was created, on average; None where the system does not say.

    This process, and those that it started and that have ended, are not other programs.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._began = _busy_seconds(), _own_seconds(), time.perf_counter()

    def cpus(self) -> float | None:
        """Return the number of CPUs, such as 0.1."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        others = busy - self._busy - (_own_seconds() - self._own)
        return round(max(0.0, others / (time.perf_counter() - self._began)), 2)


def watch(seconds: float) -> float | None:
    """Sleep, and return the CPUs that other programs used meanwhile."""
    others = OtherPrograms()
    time.sleep(seconds)
    return others.cpus()


class QuietMachine:
    """Waits for a quiet machine before measurements, for a limited time in all.

    Attributes:
        waited_s: seconds that were waited so far.
        gave_up: how often a measurement began on a busy machine, because no time was left to wait.
    """

    def __init__(
        self, limit_s: float, report: Callable[[str], None], watch: Callable[[float], float | None] = watch
    ) -> None:
        """Keep the limit; ``watch`` waits so many seconds and returns the CPUs that other programs used."""
        self._limit_s, self._report, self._watch = limit_s, report, watch
        self.waited_s = 0.0
        self.gave_up = 0

    def wait(self) -> None:
        """Return when other programs used less than ``QUIET_CPUS`` for some seconds, or when no time is left."""
        while (cpus := self._watch(_WINDOW_SECONDS)) is not None and cpus >= QUIET_CPUS:
            self.waited_s += _WINDOW_SECONDS
            if self.waited_s >= self._limit_s:
                self.gave_up += 1
                self._report(f"other programs use {cpus:.2f} CPUs, and no time is left to wait: measuring anyway")
                return
            self._report(f"waiting: other programs use {cpus:.2f} CPUs")


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _busy_seconds() -> float | None:
    """Return the CPU seconds that this system has worked, or that its host took from it, since it started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", maxsplit=1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, fields)
    return float((user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK"))
