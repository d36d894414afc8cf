"""Interfaces through which a job reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from .facts import Receipt

if TYPE_CHECKING:
    from .plan import Changes


class ShardProgress(Protocol):
    """Receives what happens inside one shard."""

    def image_started(self, index: int | None) -> None:
        """An input of the shard was opened; None: all of them are done, and the shard is about to be committed."""

    def image_done(self, status: str) -> None:
        """An input has its row."""


class Progress(Protocol):
    """Receives what happens during a job."""

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """The plan is complete; ``done`` counts the inputs of each status that earlier runs committed."""

    def image_done(self, status: str) -> None:
        """An input has its row."""

    def worker_died(self, lost: Mapping[str, int]) -> None:
        """A worker died; what it had done of its shard, counted by status, must be done again."""

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """A shard was committed."""


class NoProgress:
    """Ignores all events."""

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """Ignore the plan."""

    def image_started(self, index: int | None) -> None:
        """Ignore the start of an input."""

    def image_done(self, status: str) -> None:
        """Ignore the end of an input."""

    def worker_died(self, lost: Mapping[str, int]) -> None:
        """Ignore a death."""

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """Ignore a committed shard."""
