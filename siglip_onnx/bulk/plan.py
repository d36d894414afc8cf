"""Assign the inputs to shards, an input always to the same one, so that new inputs only add shards; report progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import JobError
from ..system.workers import in_batches
from .job import Job
from .known_inputs import KnownInputs
from .listing import Listing
from .records import Input, Receipt

_BATCH = 1000
_NO_SHARD = -1  # of inputs that are new in this listing


@dataclass
class Changes:
    """How a listing differs from the plan. ``missing`` inputs stay in the plan unless it is pruned."""

    new: int = 0
    changed: int = 0
    missing: int = 0
    listed: int = 0


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


def update_plan(job: Job, listing: Listing, *, prune: bool) -> Changes:
    """Add new inputs to the plan, update changed ones, and with ``prune`` drop those that are no longer listed.

    New inputs fill the last shard, if it is not full, and then new shards.

    Raises:
        JobError: ``prune`` is set, but the listing is empty or incomplete, and cannot tell what is missing.
    """
    update = _PlanUpdate(job)
    for batch in in_batches(listing, _BATCH):
        update.append(update.match(batch))
    update.close()
    if prune and update.missing:
        _check_prune(job, listing, update.changes)
    update.rewrite(prune=prune)
    return update.changes


class _PlanUpdate:
    """The plan as it was, and what a new listing changes in it."""

    def __init__(self, job: Job) -> None:
        self.changes = Changes()
        self.missing: list[int] = []
        self._job = job
        self._known = KnownInputs()
        self._changed_shards: set[int] = set()
        shards = job.shards()
        for shard in shards:
            self._known.add(job.read_plan(shard), shard)
        self._num_planned = len(self._known)
        self._writer = _ShardWriter(job, shards)

    def match(self, batch: Sequence[Input]) -> list[Input]:
        """Compare listed inputs with the plan; return those that are new, each once."""
        self.changes.listed += len(batch)
        new: dict[str, Input] = {}
        for item, number in zip(batch, self._known.find(batch), strict=True):
            if number < 0:
                new.setdefault(item.path, item)
            elif self._known.mark_seen(number, item):
                self._changed_shards.add(self._known.shards[number])
                self.changes.changed += 1
        return list(new.values())

    def append(self, new: Sequence[Input]) -> None:
        """Assign new inputs to shards."""
        self._known.add(new, _NO_SHARD, seen=True)
        self._writer.append(new)
        self.changes.new += len(new)

    def close(self) -> None:
        """Write the last shard, and find the planned inputs that were not listed."""
        self._writer.close()
        self.missing = [number for number in range(self._num_planned) if not self._known.seen[number]]
        self.changes.missing = len(self.missing)

    def rewrite(self, *, prune: bool) -> None:
        """Write the plans of changed shards with the latest sizes and times; with ``prune``, without missing inputs."""
        if prune:
            self._changed_shards |= {self._known.shards[number] for number in self.missing}
        for shard in sorted(self._changed_shards):
            inputs = self._job.read_plan(shard)
            kept = [
                self._known.latest(item.path, number)
                for item, number in zip(inputs, self._known.find(inputs), strict=True)
                if self._known.seen[number] or not prune
            ]
            if kept:
                self._job.write_plan(shard, kept)
            else:
                self._job.remove_shard(shard)


class _ShardWriter:
    """Fills the last shard, then new ones; each plan is written as soon as its shard is full."""

    def __init__(self, job: Job, shards: Sequence[int]) -> None:
        self._job = job
        self._size = job.facts.shard_size
        self._shard = shards[-1] if shards else 0
        self._inputs = job.read_plan(self._shard) if shards else []
        self._num_written = len(self._inputs)

    def append(self, inputs: Iterable[Input]) -> None:
        for item in inputs:
            if len(self._inputs) >= self._size:
                self._write()
                self._shard, self._inputs, self._num_written = self._shard + 1, [], 0
            self._inputs.append(item)

    def close(self) -> None:
        self._write()
        self._inputs = []

    def _write(self) -> None:
        if len(self._inputs) > self._num_written:
            self._job.write_plan(self._shard, self._inputs)


def _check_prune(job: Job, listing: Listing, changes: Changes) -> None:
    if listing.unlisted:
        raise JobError(
            f"{listing.unlisted[0]} cannot be listed, so --prune cannot tell which inputs are missing. "
            "Run the command without --prune, or make the folder readable."
        )
    if not changes.listed:
        raise JobError(
            f"No inputs were found, so --prune would drop all of {job.path}. Check that the folder is there; "
            "to start over on purpose, use --overwrite."
        )
