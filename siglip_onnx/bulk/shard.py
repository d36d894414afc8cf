"""Embed one shard and commit it: the same function whoever schedules it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..model import SigLIP
from .job import Job, Receipt
from .picture import PictureReader
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


def embed_shard(job: Job, model: SigLIP, reader: PictureReader, task: Task, watch: Watch) -> Receipt:
    """Embed the pictures of a shard, take over what an earlier run has of them, and commit.

    Raises:
        JobError: the job's folder cannot be written.
        BundleError: the model fails.
    """
    inputs = job.read_plan(task.shard)
    attempt = _Attempt(inputs, _read_earlier(job, task), model, reader, watch)
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
        inputs: list[Input],
        earlier: dict[str, tuple[Row, Vector | None]],
        model: SigLIP,
        reader: PictureReader,
        watch: Watch,
    ) -> None:
        self._inputs, self._earlier = inputs, earlier
        self._model, self._reader, self._watch = model, reader, watch
        self._rows: dict[int, Row] = {}
        self._vectors: dict[int, Vector] = {}

    def embed(self, places: Iterable[int]) -> None:
        """Embed the inputs at these places; on the CPU each picture is run before the next is opened."""
        opened: deque[tuple[int, Row]] = deque()
        for vector in self._model.stream_images(self._open(places, opened)):
            place, row = opened.popleft()
            if isinstance(vector, ImageError):
                self.finish(place, _failed(self._inputs[place], vector))
            else:
                self.finish(place, row, vector)

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

    def _open(self, places: Iterable[int], opened: deque[tuple[int, Row]]) -> Iterator[Image.Image]:
        """Yield the pictures that must be embedded; finish the other inputs on the way."""
        for place in places:
            self._watch.begin(place)
            one = self._inputs[place]
            row, vector = self._earlier.get(one.path, (None, None))
            if row is not None and row.input == one:
                self.finish(place, row, vector)
                continue
            try:
                content = self._reader.read(one.path)
                if row is not None and vector is not None and row.sha256 == content.sha256:
                    self.finish(place, replace(row, size_bytes=one.size_bytes, mtime_ns=one.mtime_ns), vector)
                    continue
                picture = self._reader.decode(content)
            except ImageError as error:
                self.finish(place, _failed(one, error))
                continue
            width, height = picture.rgb.size
            found = _row(one, OK, width=width, height=height, sha256=content.sha256, truncated=picture.truncated)
            opened.append((place, found))
            yield picture.rgb


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
