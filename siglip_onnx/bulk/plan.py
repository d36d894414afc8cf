"""Assign the inputs to shards, an input always to the same one, so that new inputs only add shards; report progress."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

from ..errors import ImageError, JobError
from ..options import ImageLimits
from ..system.threads import available_threads
from ..system.workers import in_batches, map_in_order
from .job import Job
from .known_inputs import KnownInputs
from .listing import Listing, read_content
from .progress import Changes
from .records import OK, Input

_BATCH = 1000
_Content = tuple[int | None, str]  # size and sha256
_NO_SHARD = -1  # of inputs that are new in this listing


def update_plan(job: Job, listing: Listing, *, prune: bool) -> Changes:
    """Add new inputs to the plan, update changed ones, and with ``prune`` drop those that no longer exist.

    New inputs fill the last shard, if it is not full, and then new shards. A new input with the content of one that no
    longer exists takes its place, so that it is not embedded again.

    Raises:
        JobError: ``prune`` is set, but the listing is empty or incomplete, and cannot tell what is missing.
    """
    update = _PlanUpdate(job)
    for batch in in_batches(listing, _BATCH):
        update.append(update.match(batch))
    update.close()
    update.match_moved()
    update.keep_existing()
    if prune and (update.missing or (listing.unlisted and update.changes.unlisted)):
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

    def match_moved(self) -> None:
        """Give the places of inputs that no longer exist to inputs with the same content that are not embedded yet."""
        fresh = self._find_fresh() if self.missing else []
        gone = self._find_gone() if fresh else {}
        by_name: defaultdict[tuple[_Content, str], deque[int]] = defaultdict(deque)
        for content, places in gone.items():
            for number, old in places.items():
                by_name[content, _name(old.path)].append(number)
        moves: list[tuple[_Place, _Place, Input]] = []  # the old place, the new one, and the input
        for place, item, sha256 in self._hash_candidates(fresh, {size for size, _ in gone}):
            content = item.size_bytes, sha256
            if candidates := gone.get(content):
                same_name = by_name[content, _name(item.path)]
                while same_name and same_name[0] not in candidates:
                    same_name.popleft()
                number = same_name.popleft() if same_name else next(iter(candidates))
                moves.append((candidates.pop(number), place, item))
        if moves:
            self._move(moves)

    def _find_fresh(self) -> list[tuple[_Place, Input]]:
        """Return the listed inputs that are not embedded yet, new or planned by a run that was interrupted."""
        fresh = []
        for shard in self._job.shards():
            receipt = self._job.receipt(shard, read_files=False)
            if receipt is not None and self._job.is_done(shard, receipt):
                continue
            embedded = set() if receipt is None else {row.path for row in self._job.read_rows(shard)}
            inputs = self._job.read_plan(shard)
            for item, number in zip(inputs, self._known.find(inputs), strict=True):
                if self._known.seen[number] and item.path not in embedded:
                    place = _Place(item.path, shard, number)
                    fresh.append((place, self._known.latest(item.path, number)))
        return fresh

    def _find_gone(self) -> dict[_Content, OrderedDict[int, _Place]]:
        """Return the places of missing inputs whose files no longer exist, by size and sha256, and by their number."""
        gone: dict[_Content, OrderedDict[int, _Place]] = {}
        missing = set(self.missing)
        for shard in sorted({self._known.shards[number] for number in missing}):
            if self._job.receipt(shard, read_files=False) is None:
                continue
            sha256s = {row.path: row.sha256 for row in self._job.read_rows(shard) if row.status == OK}
            inputs = self._job.read_plan(shard)
            for item, number in zip(inputs, self._known.find(inputs), strict=True):
                sha256 = sha256s.get(item.path)
                if number in missing and sha256 is not None and _is_gone(item.path):
                    places = gone.setdefault((item.size_bytes, sha256), OrderedDict())
                    places[number] = _Place(item.path, shard, number)
        return gone

    def _hash_candidates(
        self, fresh: Sequence[tuple[_Place, Input]], sizes: Set[int | None]
    ) -> Iterator[tuple[_Place, Input, str]]:
        """Yield the inputs of these sizes with their sha256, without those that cannot be read."""
        limits = ImageLimits(**self._job.facts.preprocessing["image_limits"])

        def hash_content(candidate: tuple[_Place, Input]) -> tuple[_Place, Input, str] | None:
            place, item = candidate
            try:
                content, read = read_content(item.path, limits)
            except ImageError:
                return None  # its row will say why
            return place, read, hashlib.sha256(content).hexdigest()

        candidates = [
            (place, item) for place, item in fresh if item.size_bytes is not None and item.size_bytes in sizes
        ]
        yield from (result for result in map_in_order(hash_content, candidates, available_threads()) if result)

    def _move(self, moves: Sequence[tuple[_Place, _Place, Input]]) -> None:
        """Write the plans with each input in its old place.

        First all inputs are dropped from their new places: if this is interrupted, none is planned twice, and the next
        run lists the dropped ones as new again.
        """
        moved = {item.path for _, _, item in moves}
        others: list[Input] = []  # new ones in the same shards, which would leave shards with few inputs
        for shard in sorted({new.shard for _, new, _ in moves}):
            inputs = [item for item in self._job.read_plan(shard) if item.path not in moved]
            is_new = [number >= self._num_planned for number in self._known.find(inputs)]
            others += itertools.compress(inputs, is_new)
            kept = [item for item, new in zip(inputs, is_new, strict=True) if not new]
            if kept:
                self._job.write_plan(shard, kept)
            else:
                self._job.remove_shard(shard)
        replacements = {old.path: item for old, _, item in moves}
        for shard in sorted({old.shard for old, _, _ in moves}):
            self._job.write_plan(shard, [replacements.get(item.path, item) for item in self._job.read_plan(shard)])
        writer = _ShardWriter(self._job, self._job.shards())
        writer.append(others)
        writer.close()
        numbers = {old.number for old, _, _ in moves}
        self.missing = [number for number in self.missing if number not in numbers]
        self.changes.moved = len(moves)
        self.changes.missing -= len(moves)
        self.changes.new -= sum(new.number >= self._num_planned for _, new, _ in moves)

    def keep_existing(self) -> None:
        """Leave to the missing inputs only those whose files no longer exist, or were none when they were listed."""
        unlisted, self.missing = set(self.missing), []
        for shard in sorted({self._known.shards[number] for number in unlisted}):
            inputs = self._job.read_plan(shard)
            for item, number in zip(inputs, self._known.find(inputs), strict=True):
                if number in unlisted and (item.size_bytes is None or _is_gone(item.path)):
                    self.missing.append(number)
        self.changes.missing = len(self.missing)
        self.changes.unlisted = len(unlisted) - len(self.missing)

    def rewrite(self, *, prune: bool) -> None:
        """Write the plans of changed shards with the latest sizes and times; with ``prune``, without missing inputs."""
        dropped = set(self.missing) if prune else set()
        self._changed_shards |= {self._known.shards[number] for number in dropped}
        for shard in sorted(self._changed_shards):
            inputs = self._job.read_plan(shard)
            kept = [
                self._known.latest(item.path, number)
                for item, number in zip(inputs, self._known.find(inputs), strict=True)
                if number not in dropped
            ]
            if kept:
                self._job.write_plan(shard, kept)
            else:
                self._job.remove_shard(shard)


class _Place(NamedTuple):
    """The path of a planned input, its shard, and its number."""

    path: str
    shard: int
    number: int


def _is_gone(path: str) -> bool:
    """Say whether nothing has this path any more, rather than that it cannot be examined."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return True
    except OSError:
        pass
    return False


def _name(path: str) -> str:
    return path.rpartition(os.sep)[2]


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
