"""What a job reports while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .records import Receipt


@dataclass
class Changes:
    """How a listing differs from the plan. ``missing`` inputs stay in the plan unless it is pruned.

    ``moved`` inputs are neither new nor missing: their content was found under a new path. ``unlisted`` inputs are not
    missing: their files exist, and stay in the plan.
    """

    new: int = 0
    changed: int = 0
    missing: int = 0
    listed: int = 0
    moved: int = 0
    unlisted: int = 0


class Progress:
    """Receives what happens during a job; this base class ignores it."""

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """The plan is complete; ``done`` counts the inputs of each status that earlier runs committed."""

    def image_started(self, index: int | None) -> None:
        """An input of the shard was opened; None: all of them are done, and the shard is about to be committed."""

    def image_done(self, status: str) -> None:
        """An input has its row."""

    def worker_died(self, lost: Mapping[str, int]) -> None:
        """A worker died; what it had done of its shard, counted by status, must be done again."""

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """A shard was committed."""
