"""Embed one shard and commit it; every engine calls this function."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..model import SigLIP
from ..options import ImageLimits
from .job import Job
from .listing import read_file
from .plan import Progress
from .records import CRASH, OK, Input, JobFacts, Receipt, Row

Vector = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One shard to embed.

    ``suspects`` are the indices of inputs at which a worker crashed: they come first, and every image runs alone.
    ``crashes`` are the indices of inputs at which a worker crashed twice, and why: they are not opened again.
    """

    shard: int
    retry_errors: bool = False
    suspects: tuple[int, ...] = ()
    crashes: tuple[tuple[int, str], ...] = ()

    def after_crash(self, index: int, reason: str) -> Task:
        """Return the task to run after a worker crashed at an input."""
        if index not in self.suspects:
            return replace(self, suspects=(*self.suspects, index))
        suspects = tuple(suspect for suspect in self.suspects if suspect != index)
        return replace(self, suspects=suspects, crashes=(*self.crashes, (index, reason)))


def embed_shard(job: Job, model: SigLIP, task: Task, progress: Progress) -> Receipt:
    """Embed the images of a shard, reuse unchanged results of an earlier run, and commit.

    Raises:
        JobError: the job's folder cannot be written.
        BundleError: the model fails.
    """
    inputs = job.read_plan(task.shard)
    attempt = _Attempt(job.facts, inputs, _read_earlier(job, task), model, progress)
    for index, reason in task.crashes:
        attempt.finish(index, Row(*inputs[index], status=CRASH, message=f"It crashed its worker twice: {reason}."))
    crashed = {index for index, _ in task.crashes}
    indices = [*task.suspects, *(index for index in range(len(inputs)) if index not in {*task.suspects, *crashed})]
    one_by_one = bool(task.suspects or crashed)
    for group in [[index] for index in indices] if one_by_one else [indices]:
        attempt.embed(group)
    progress.image_started(None)
    rows, vectors = attempt.result(model.embedding_dim)
    return job.commit(task.shard, inputs, rows, vectors)


class _Attempt:
    """The rows and vectors of one shard, by the index of their input."""

    def __init__(
        self,
        facts: JobFacts,
        inputs: list[Input],
        earlier: dict[str, tuple[Row, Vector | None]],
        model: SigLIP,
        progress: Progress,
    ) -> None:
        self._inputs, self._earlier, self._model, self._progress = inputs, earlier, model, progress
        self._limits = ImageLimits(**facts.preprocessing["image_limits"])
        self._fast_decode = bool(facts.preprocessing["fast_decode"])
        self._rows: dict[int, Row] = {}
        self._vectors: dict[int, Vector] = {}

    def embed(self, indices: Iterable[int]) -> None:
        """Embed the inputs at these indices; on the CPU each image is run before the next is read."""
        opened: deque[tuple[int, str]] = deque()
        for result in self._model.stream_embeddings(self._read(indices, opened)):
            index, sha256 = opened.popleft()
            item = self._inputs[index]
            if isinstance(result, ImageError):
                self.finish(index, Row(*item, status=result.status, message=str(result)))
                continue
            # After a fast decode, the size is that of the reduced image.
            width, height = (None, None) if self._fast_decode else (result.width, result.height)
            row = Row(*item, status=OK, width=width, height=height, sha256=sha256, truncated=result.truncated)
            self.finish(index, row, result.embedding)

    def finish(self, index: int, row: Row, vector: Vector | None = None) -> None:
        """Store the result for an input."""
        self._rows[index] = row
        if vector is not None:
            self._vectors[index] = vector
        self._progress.image_done(row.status)

    def result(self, embedding_dim: int) -> tuple[list[Row], Vector]:
        """Return the rows in the order of the plan, and the vectors of the rows whose status is ``ok``."""
        indices = sorted(self._vectors)
        numbers = {index: number for number, index in enumerate(indices)}
        rows = [replace(row, row=numbers.get(index)) for index, row in sorted(self._rows.items())]
        vectors = np.array([self._vectors[index] for index in indices]).reshape(len(indices), embedding_dim)
        return rows, vectors

    def _read(self, indices: Iterable[int], opened: deque[tuple[int, str]]) -> Iterator[bytes]:
        """Yield the content of files that must be embedded, and finish the other inputs."""
        for index in indices:
            self._progress.image_started(index)
            item = self._inputs[index]
            row, vector = self._earlier.get(item.path, (None, None))
            if row is not None and row.input == item:
                self.finish(index, row, vector)
                continue
            try:
                content = read_file(item.path, self._limits)
            except ImageError as error:
                self.finish(index, Row(*item, status=error.status, message=str(error)))
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            if row is not None and row.sha256 == sha256:
                self.finish(index, replace(row, size_bytes=item.size_bytes, mtime_ns=item.mtime_ns), vector)
            else:
                opened.append((index, sha256))
                yield content


def _read_earlier(job: Job, task: Task) -> dict[str, tuple[Row, Vector | None]]:
    """Return the rows and vectors of a shard with a valid receipt, by path, without those to be retried."""
    if job.receipt(task.shard, read_files=True) is None:
        return {}
    vectors = np.array(job.read_vectors(task.shard))  # a copy: the file is about to be replaced
    return {
        row.path: (row, None if row.row is None else vectors[row.row])
        for row in job.read_rows(task.shard)
        if row.status == OK or not task.retry_errors
    }
