"""How far a bulk job is: rate, time left and errors so far, on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..bulk.facts import Receipt
    from ..bulk.plan import Changes

AUTO, PLAIN, OFF = "auto", "plain", "off"
_SECONDS_BETWEEN = {AUTO: 0.2, PLAIN: 30.0}
_OK = "ok"


class Progress:
    """Redraws one line on a terminal; ``plain`` prints a line every half minute, for logs."""

    def __init__(self, mode: str = AUTO) -> None:
        """Say nothing if ``mode`` is ``off``, or ``auto`` and stderr is no terminal."""
        self._mode = OFF if mode == AUTO and not sys.stderr.isatty() else mode
        self._told = self._began = time.monotonic()
        self._total = self._here = 0
        self._counts = Counter[str]()
        self.missing = 0

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """Begin."""
        self._total, self._counts, self._began = num_inputs, Counter(done), time.monotonic()
        self.missing = changes.missing
        if self._mode != OFF:
            left = f"{num_inputs - sum(done.values()):,} to do"
            news = f"{changes.new:,} new, {changes.changed:,} changed, {changes.missing:,} missing"
            click.echo(f"{num_inputs:,} inputs ({news}), {left}", err=True)

    def image_done(self, status: str) -> None:
        """Count one."""
        self._counts[status] += 1
        self._here += 1
        self._tell()

    def worker_died(self, lost: Mapping[str, int]) -> None:
        """Count what must be done again."""
        self._counts.subtract(lost)
        self._here -= sum(lost.values())

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """Nothing new: its images were counted."""

    def finish(self) -> None:
        """End the line."""
        if self._mode != OFF and self._here:
            click.echo(f"\r{self.line()}{_clear(self._mode)}", err=True)

    def line(self) -> str:
        """Return how far the job is: ``1,200 of 10,000 (12 %), 18.3/s, 8 min left, 3 errors``."""
        done = sum(self._counts.values())
        rate = self._here / max(time.monotonic() - self._began, 1e-3)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        share = 100 * done / max(self._total, 1)
        errors = done - self._counts[_OK]
        return (
            f"{done:,} of {self._total:,} ({share:.0f} %), {rate:.1f}/s, {human_seconds(left)} left, "
            f"{errors:,} error{'' if errors == 1 else 's'}"
        )

    def _tell(self) -> None:
        now = time.monotonic()
        if self._mode == OFF or now - self._told < _SECONDS_BETWEEN[self._mode]:
            return
        self._told = now
        if self._mode == PLAIN:
            click.echo(self.line(), err=True)
        else:
            click.echo(f"\r{self.line()}{_clear(self._mode)}", err=True, nl=False)


def human_seconds(seconds: float) -> str:
    """Return a duration with one unit: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days" if seconds < float("inf") else "unknown time"


def _clear(mode: str) -> str:
    return "\x1b[K" if mode == AUTO else ""
