"""Progress on stderr: of a bulk job its rate, time left and errors so far; of an export its steps."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping

import click

from ..bulk.progress import Changes, Progress
from ..bulk.records import OK
from .output import format_count

AUTO, PLAIN, OFF = "auto", "plain", "off"
_SECONDS_BETWEEN = {AUTO: 0.2, PLAIN: 30.0}
_SECONDS_BETWEEN_STEPS = {True: 0.2, False: 10.0}  # by whether the line is redrawn


class ProgressLine(Progress):
    """A line that is redrawn on a terminal; ``plain`` prints a line every half minute, for logs."""

    def __init__(self, mode: str = AUTO) -> None:
        """Print nothing if ``mode`` is ``off``, or if it is ``auto`` and stderr is not a terminal."""
        self._mode = OFF if mode == AUTO and not sys.stderr.isatty() else mode
        self._last_printed = self._began = time.monotonic()
        self._total = self._here = 0
        self._is_shown = False
        self._counts = Counter[str]()
        self.missing = self.unlisted = 0

    def start(self, num_inputs: int, done: Mapping[str, int] | None = None) -> None:
        """Start to count; ``done`` are the inputs that are done already, by status."""
        self._total, self._counts = num_inputs, Counter(done or {})
        self._last_printed = self._began = time.monotonic()

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """Start: the plan is known, and how many of its inputs are done."""
        self.start(num_inputs, done)
        self.missing, self.unlisted = changes.missing, changes.unlisted
        if self._mode != OFF:
            left = f"{num_inputs - sum(done.values()):,} to do"
            moved = f"{changes.moved:,} moved, " if changes.moved else ""
            news = f"{changes.new:,} new, {changes.changed:,} changed, {moved}{changes.missing:,} missing"
            click.echo(f"{num_inputs:,} inputs ({news}), {left}", err=True)

    def image_done(self, status: str) -> None:
        """Count an input that is done."""
        self._counts[status] += 1
        self._here += 1
        self._print()

    def worker_died(self, lost: Mapping[str, int]) -> None:
        """Uncount inputs that must be done again."""
        self._counts.subtract(lost)
        self._here -= sum(lost.values())

    def finish(self) -> None:
        """Print the final state and end the line."""
        if self._mode != OFF and self._here:
            click.echo(f"\r{self.line()}{_clear(self._mode)}", err=True)

    def clear(self) -> None:
        """Erase the line, so that something else can be printed."""
        if self._mode == AUTO and self._is_shown:
            click.echo(f"\r{_clear(self._mode)}", err=True, nl=False)
            self._is_shown, self._last_printed = False, 0.0  # it is drawn again after the next input

    def line(self) -> str:
        """Return the state of the job: ``1,200 of 10,000 (12 %), 18.3/s, 8 min left, 3 errors``."""
        done = sum(self._counts.values())
        rate = self._here / max(time.monotonic() - self._began, 1e-3)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        share = 100 * done / max(self._total, 1)
        errors = done - self._counts[OK]
        return (
            f"{done:,} of {self._total:,} ({share:.0f} %), {rate:.1f}/s, {human_seconds(left)} left, "
            f"{format_count(errors, 'error')}"
        )

    def _print(self) -> None:
        now = time.monotonic()
        if self._mode == OFF or now - self._last_printed < _SECONDS_BETWEEN[self._mode]:
            return
        self._last_printed = now
        if self._mode == PLAIN:
            click.echo(self.line(), err=True)
        else:
            click.echo(f"\r{self.line()}{_clear(self._mode)}", err=True, nl=False)
            self._is_shown = True


class StepLine:
    """The steps of an export, one line each; within a step a line that is redrawn, in logs one every ten seconds."""

    def __init__(self) -> None:
        """Start the clock."""
        self._redraw = sys.stderr.isatty()
        self._began = self._last_printed = time.monotonic()

    def step(self, text: str) -> None:
        """Print the start of a step."""
        self._print(text, end=True)

    def progress(self, part: str, done: int, total: int) -> None:
        """Print how much of a part of the step is done, unless a line was printed a moment ago."""
        if time.monotonic() - self._last_printed >= _SECONDS_BETWEEN_STEPS[self._redraw]:
            self._print(f"{part}: {done} of {total}", end=not self._redraw)

    def _print(self, text: str, *, end: bool) -> None:
        self._last_printed = time.monotonic()
        line = f"[{self._last_printed - self._began:6.1f} s] {text}"
        click.echo(f"\r{line}{_clear(AUTO)}" if self._redraw else line, err=True, nl=end)


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
