"""Embed one shard and commit it: the same function whoever schedules it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..model import SigLIP
from ..options import ImageLimits
from .facts import JobFacts, Receipt
from .files import read_file
from .job import Job
from .records import CRASH, OK, Input, Row

Vector = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One shard to do.

    ``suspects`` are the places of inputs at which a worker died: they come first, and every picture runs by itself.
    ``crashes`` are those at which one died twice, with how it ended: they are not opened again.
    """

    shard: int
    retry_errors: bool = False
    suspects: tuple[int, ...] = ()
    crashes: tuple[tuple[int, str], ...] = ()

    def after_death(self, place: int, how: str) -> Task:
        """Return what to do next when a worker died at an input."""
        if place not in self.suspects:
            return replace(self, suspects=(*self.suspects, place))
        others = tuple(one for one in self.suspects if one != place)
        return replace(self, suspects=others, crashes=(*self.crashes, (place, how)))


@dataclass(frozen=True)
class Watch:
    """What is told on the way: the place of the input begun (None: none is), and the status of one that is done."""

    begin: Callable[[int | None], None]
    end: Callable[[str], None]


def embed_shard(job: Job, model: SigLIP, task: Task, watch: Watch) -> Receipt:
    """Embed the pictures of a shard, take over what an earlier run has of them, and commit.

    Raises:
        JobError: the job's folder cannot be written.
        BundleError: the model fails.
    """
    inputs = job.read_plan(task.shard)
    attempt = _Attempt(job.facts, inputs, _read_earlier(job, task), model, watch)
    for place, how in task.crashes:
        attempt.finish(place, _row(inputs[place], CRASH, message=f"It ended its worker twice: {how}."))
    crashed = {place for place, _ in task.crashes}
    places = [*task.suspects, *(place for place in range(len(inputs)) if place not in {*task.suspects, *crashed})]
    one_by_one = bool(task.suspects or crashed)
    for group in [[place] for place in places] if one_by_one else [places]:
        attempt.embed(group)
    watch.begin(None)
    rows, vectors = attempt.result(model.embedding_dim)
    return job.commit(task.shard, inputs, rows, vectors)


class _Attempt:
    """The rows and vectors of one shard, by the place of their input."""

    def __init__(
        self,
        facts: JobFacts,
        inputs: list[Input],
        earlier: dict[str, tuple[Row, Vector | None]],
        model: SigLIP,
        watch: Watch,
    ) -> None:
        self._inputs, self._earlier, self._model, self._watch = inputs, earlier, model, watch
        self._limits = ImageLimits(**facts.preprocessing["image_limits"])
        self._fast_decode = bool(facts.preprocessing["fast_decode"])
        self._rows: dict[int, Row] = {}
        self._vectors: dict[int, Vector] = {}

    def embed(self, places: Iterable[int]) -> None:
        """Embed the inputs at these places; on the CPU each picture is run before the next is read."""
        opened: deque[tuple[int, str]] = deque()
        for found in self._model.stream_embeddings(self._read(places, opened)):
            place, sha256 = opened.popleft()
            one = self._inputs[place]
            if isinstance(found, ImageError):
                self.finish(place, _failed(one, found))
                continue
            # Of a fast decode the size is that of the reduced picture.
            width, height = (None, None) if self._fast_decode else (found.width, found.height)
            row = _row(one, OK, width=width, height=height, sha256=sha256, truncated=found.truncated)
            self.finish(place, row, found.embedding)

    def finish(self, place: int, row: Row, vector: Vector | None = None) -> None:
        """Store what became of an input."""
        self._rows[place] = row
        if vector is not None:
            self._vectors[place] = vector
        self._watch.end(row.status)

    def result(self, embedding_dim: int) -> tuple[list[Row], Vector]:
        """Return the rows in the order of the plan, and the vectors of those that are ok."""
        places = sorted(self._vectors)
        numbers = {place: number for number, place in enumerate(places)}
        rows = [replace(row, row=numbers.get(place)) for place, row in sorted(self._rows.items())]
        vectors = np.array([self._vectors[place] for place in places]).reshape(len(places), embedding_dim)
        return rows, vectors

    def _read(self, places: Iterable[int], opened: deque[tuple[int, str]]) -> Iterator[bytes]:
        """Yield the files that must be embedded; finish the other inputs on the way."""
        for place in places:
            self._watch.begin(place)
            one = self._inputs[place]
            row, vector = self._earlier.get(one.path, (None, None))
            if row is not None and row.input == one:
                self.finish(place, row, vector)
                continue
            try:
                content = read_file(one.path, self._limits)
            except ImageError as error:
                self.finish(place, _failed(one, error))
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            if row is not None and row.sha256 == sha256:
                self.finish(place, replace(row, size_bytes=one.size_bytes, mtime_ns=one.mtime_ns), vector)
            else:
                opened.append((place, sha256))
                yield content


def _read_earlier(job: Job, task: Task) -> dict[str, tuple[Row, Vector | None]]:
    """Return by path the rows and vectors that a trusted receipt vouches for, without those to be tried again."""
    if job.receipt(task.shard, read_files=True) is None:
        return {}
    vectors = np.array(job.read_vectors(task.shard))  # a copy: the file is about to be replaced
    return {
        row.path: (row, None if row.row is None else vectors[row.row])
        for row in job.read_rows(task.shard)
        if row.status == OK or not task.retry_errors
    }


def _failed(one: Input, error: ImageError) -> Row:
    return _row(one, error.status, message=str(error))


def _row(one: Input, status: str, **facts: Any) -> Row:
    return Row(*one, status=status, **facts)
