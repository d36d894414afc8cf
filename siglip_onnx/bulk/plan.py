"""Deal the inputs out to shards: once dealt, an input stays in its shard, so that more inputs mean more shards only."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError
from ..system.workers import in_batches
from .job import Job
from .listing import Listing
from .records import Input

_BATCH = 1000
_UNKNOWN = -1  # size and time of what is no file


@dataclass
class Changes:
    """What a new listing changed in the plan. ``gone`` inputs stay in it unless it is pruned."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    listed: int = 0


def update_plan(job: Job, listing: Listing, *, prune: bool) -> Changes:
    """Add to the plan what is new, note what changed, and with ``prune`` drop what the listing does not have.

    The last shard is filled first, if it is not full; what is new beyond that goes to new shards.

    Raises:
        JobError: ``prune`` is asked for and the listing is empty or has gaps, so that it cannot say what is gone.
    """
    known = Index()
    shards = job.shards()
    for shard in shards:
        known.add(job.read_plan(shard), shard)
    num_planned = len(known)
    changes = Changes()
    dealer = _Dealer(job, shards)
    dirty: set[int] = set()
    for batch in in_batches(listing, _BATCH):
        changes.listed += len(batch)
        unknown: dict[str, Input] = {}
        for one, number in zip(batch, known.find(batch), strict=True):
            if number < 0:
                unknown.setdefault(one.path, one)
            elif known.note(number, one):
                dirty.add(known.shards[number])
                changes.changed += 1
        fresh = list(unknown.values())
        known.add(fresh, _UNKNOWN, seen=True)
        dealer.deal(fresh)
        changes.new += len(fresh)
    dealer.finish()
    gone = [number for number in range(num_planned) if not known.seen[number]]
    changes.gone = len(gone)
    if prune and gone:
        _check_prune(job, listing, changes)
        dirty |= {known.shards[number] for number in gone}
    for shard in sorted(dirty):
        _rewrite(job, shard, known, prune=prune)
    return changes


class Index:
    """Inputs by path, in about 50 bytes each: a hash of the path in sorted arrays, and the facts beside it."""

    def __init__(self) -> None:
        self.sizes, self.times, self.shards = array("q"), array("q"), array("q")
        self.seen = bytearray()
        self._levels: list[tuple[NDArray[np.bytes_], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return len(self.seen)

    def add(self, inputs: Sequence[Input], shard: int, *, seen: bool = False) -> None:
        """Add inputs of one shard, numbered on from those before."""
        if not inputs:
            return
        numbers = np.arange(len(self), len(self) + len(inputs))
        self.sizes.extend(_or_unknown(one.size_bytes) for one in inputs)
        self.times.extend(_or_unknown(one.mtime_ns) for one in inputs)
        self.shards.extend([shard] * len(inputs))
        self.seen.extend(bytes([seen]) * len(inputs))
        digests = _digests(inputs)
        order = np.argsort(digests)
        level = (digests[order], numbers[order])
        # Levels double in size, so that adding costs little and there are few to search.
        while self._levels and len(self._levels[-1][0]) <= len(level[0]):
            level = _merge(self._levels.pop(), level)
        self._levels.append(level)

    def find(self, inputs: Sequence[Input]) -> list[int]:
        """Return each input's number, -1 where its path is not known."""
        wanted = _digests(inputs)
        found = np.full(len(inputs), -1, np.int64)
        for digests, numbers in self._levels:
            places = np.minimum(np.searchsorted(digests, wanted), len(digests) - 1)
            equal = digests[places] == wanted
            found[equal] = numbers[places[equal]]
        numbers_found: list[int] = found.tolist()
        return numbers_found

    def note(self, number: int, found: Input) -> bool:
        """Mark an input as seen with these facts, and say whether they differ from those before.

        An input seen twice in a listing keeps what it was first.
        """
        if self.seen[number]:
            return False
        self.seen[number] = True
        size, time = _or_unknown(found.size_bytes), _or_unknown(found.mtime_ns)
        if (size, time) == (self.sizes[number], self.times[number]):
            return False
        self.sizes[number], self.times[number] = size, time
        return True

    def facts(self, path: str, number: int) -> Input:
        """Return an input as it was last seen."""
        size, time = self.sizes[number], self.times[number]
        return Input(path, None if size == _UNKNOWN else size, None if size == _UNKNOWN else time)


class _Dealer:
    """Fills the last shard, then new ones, each written as soon as it is full."""

    def __init__(self, job: Job, shards: Sequence[int]) -> None:
        self._job = job
        self._size = job.facts.shard_size
        self._shard = shards[-1] if shards else 0
        self._inputs = job.read_plan(self._shard) if shards else []
        self._written = len(self._inputs)

    def deal(self, inputs: Iterable[Input]) -> None:
        for one in inputs:
            if len(self._inputs) >= self._size:
                self._write()
                self._shard, self._inputs, self._written = self._shard + 1, [], 0
            self._inputs.append(one)

    def finish(self) -> None:
        self._write()
        self._inputs = []

    def _write(self) -> None:
        if len(self._inputs) > self._written:
            self._job.write_plan(self._shard, self._inputs)


def _rewrite(job: Job, shard: int, known: Index, *, prune: bool) -> None:
    """Write a shard's plan with the facts as they are now, and without what is gone."""
    inputs = job.read_plan(shard)
    numbers = known.find(inputs)
    kept = [
        known.facts(one.path, number)
        for one, number in zip(inputs, numbers, strict=True)
        if known.seen[number] or not prune
    ]
    if kept:
        job.write_plan(shard, kept)
    else:
        job.remove_shard(shard)


def _check_prune(job: Job, listing: Listing, changes: Changes) -> None:
    if listing.unlisted:
        raise JobError(f"{listing.unlisted[0]} cannot be listed, so --prune cannot know what is gone. Leave it out.")
    if not changes.listed:
        raise JobError(
            f"No inputs were found, so --prune would drop all of {job.path}. Is the folder there? "
            "If it is meant, begin anew with --overwrite."
        )


def _digests(inputs: Sequence[Input]) -> NDArray[np.bytes_]:
    """Return 128 bits of hash per path: among a billion paths two are alike with a chance of 1e-21."""
    hashes = [hashlib.blake2b(os.fsencode(one.path), digest_size=16).digest() for one in inputs]
    return np.array(hashes, "S16")


def _merge(
    one: tuple[NDArray[np.bytes_], NDArray[np.int64]], other: tuple[NDArray[np.bytes_], NDArray[np.int64]]
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    digests = np.concatenate([one[0], other[0]])
    order = np.argsort(digests, kind="stable")
    return digests[order], np.concatenate([one[1], other[1]])[order]


def _or_unknown(value: int | None) -> int:
    return _UNKNOWN if value is None else value
