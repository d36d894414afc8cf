"""A table of inputs by path that needs about 50 bytes per input."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Input

_MISSING = -1  # size and time of an input that is not a regular file


class _Level(NamedTuple):
    """Sorted hashes of paths S16 ``(N,)``, and the number of each input i64 ``(N,)``."""

    hashes: NDArray[np.bytes_]
    numbers: NDArray[np.int64]


class KnownInputs:
    """Inputs numbered in the order in which they were added: shard, size, time, and whether they were listed again.

    Paths are stored as hashes in sorted arrays, which takes a fraction of the memory of a dict or of SQLite's time.
    """

    def __init__(self) -> None:
        self.shards = array("q")
        self.seen = bytearray()
        self._sizes, self._times = array("q"), array("q")
        self._levels: list[_Level] = []

    def __len__(self) -> int:
        return len(self.seen)

    def add(self, inputs: Sequence[Input], shard: int, *, seen: bool = False) -> None:
        """Add inputs of one shard; their numbers follow those of the inputs added before."""
        if not inputs:
            return
        numbers = np.arange(len(self), len(self) + len(inputs))
        self._sizes.extend(_to_int(item.size_bytes) for item in inputs)
        self._times.extend(_to_int(item.mtime_ns) for item in inputs)
        self.shards.extend([shard] * len(inputs))
        self.seen.extend(bytes([seen]) * len(inputs))
        hashes = _hash_paths(inputs)
        order = np.argsort(hashes)
        level = _Level(hashes[order], numbers[order])
        # Levels double in size, so that adding is cheap and few levels must be searched.
        while self._levels and len(self._levels[-1].hashes) <= len(level.hashes):
            level = _merge(self._levels.pop(), level)
        self._levels.append(level)

    def find(self, inputs: Sequence[Input]) -> list[int]:
        """Return the number of each input, -1 where its path is not known."""
        hashes = _hash_paths(inputs)
        numbers = np.full(len(inputs), -1, np.int64)
        for level in self._levels:
            indices = np.minimum(np.searchsorted(level.hashes, hashes), len(level.hashes) - 1)
            equal = level.hashes[indices] == hashes
            numbers[equal] = level.numbers[indices[equal]]
        result: list[int] = numbers.tolist()
        return result

    def mark_seen(self, number: int, listed: Input) -> bool:
        """Mark an input as seen, store its size and time, and return whether they differ from those before.

        An input that is listed twice keeps the size and time of its first appearance.
        """
        if self.seen[number]:
            return False
        self.seen[number] = True
        size, time = _to_int(listed.size_bytes), _to_int(listed.mtime_ns)
        if (size, time) == (self._sizes[number], self._times[number]):
            return False
        self._sizes[number], self._times[number] = size, time
        return True

    def latest(self, path: str, number: int) -> Input:
        """Return an input with the size and time that were stored last."""
        size, time = self._sizes[number], self._times[number]
        return Input(path, None, None) if size == _MISSING else Input(path, size, time)


def _hash_paths(inputs: Sequence[Input]) -> NDArray[np.bytes_]:
    """Return 128 bits of hash per path: among a billion paths, two are equal with a probability of 1e-21."""
    hashes = [hashlib.blake2b(os.fsencode(item.path), digest_size=16).digest() for item in inputs]
    return np.array(hashes, "S16")


def _merge(left: _Level, right: _Level) -> _Level:
    hashes = np.concatenate([left.hashes, right.hashes])
    order = np.argsort(hashes, kind="stable")
    return _Level(hashes[order], np.concatenate([left.numbers, right.numbers])[order])


def _to_int(value: int | None) -> int:
    return _MISSING if value is None else value
