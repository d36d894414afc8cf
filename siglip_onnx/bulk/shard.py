"""Embed one shard and commit it; every engine calls this function. A shard may be embedded in parts beforehand."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, JobError
from ..model import SigLIP
from ..options import ImageLimits
from .job import Job
from .listing import read_content, stat_input
from .progress import Progress
from .records import CRASH, OK, Input, Receipt, Row

Vector = NDArray[Any]
SAVE_SECONDS = 20.0  # a run that is killed loses at most the work of that time, and one image


@dataclass(frozen=True)
class Task:
    """One shard to embed, or a part of one.

    ``suspects`` are the indices of inputs at which a worker crashed: they come first, and every image runs alone.
    ``crashes`` are the indices of inputs at which a worker crashed twice, and why: they are not opened again.
    ``part`` are the indices of the inputs to embed; their results are saved, and the shard is not committed. Without
    it, all inputs are embedded that have no saved result. ``counted`` are those whose progress was reported by parts.
    ``run`` identifies the run: results that it saved are not retried.
    """

    shard: int
    retry_errors: bool = False
    suspects: tuple[int, ...] = ()
    crashes: tuple[tuple[int, str], ...] = ()
    part: tuple[int, ...] = ()
    counted: frozenset[int] = frozenset()
    run: str = ""

    def after_crash(self, index: int, reason: str) -> Task:
        """Return the task to run after a worker crashed at an input."""
        if index not in self.suspects:
            return replace(self, suspects=(*self.suspects, index))
        suspects = tuple(suspect for suspect in self.suspects if suspect != index)
        return replace(self, suspects=suspects, crashes=(*self.crashes, (index, reason)))


def check_model(job: Job, model: SigLIP) -> None:
    """Check that a model is the one that a job began with.

    Raises:
        JobError: its embedding space is another one, so that the job would hold vectors of two models.
    """
    if model.embedding_space != job.facts.embedding_space:
        raise JobError(
            f"The model was replaced while the job ran: its embedding space is {model.embedding_space}, but {job.path} "
            f"holds vectors of {job.facts.embedding_space}. Put the model back and run the same command again, or "
            "start over with --overwrite."
        )


def embed_shard(job: Job, model: SigLIP, task: Task, progress: Progress) -> Receipt:
    """Embed the images of a shard, reuse unchanged results of earlier runs and of parts, and commit.

    The plan then states size and time of the bytes that were embedded, which may have changed since they were listed.

    Raises:
        JobError: the job's folder cannot be written, or the model is not that of the job.
        BundleError: the model fails.
    """
    check_model(job, model)
    inputs = job.read_plan(task.shard)
    attempt = _Attempt(job, task, inputs, model, progress)
    attempt.embed_all(range(len(inputs)))
    progress.image_started(None)
    rows, vectors = attempt.result(model.embedding_dim)
    embedded = [row.input for row in rows]
    if embedded != inputs:
        job.write_plan(task.shard, embedded)
    return job.commit(task.shard, embedded, rows, vectors)


def embed_part(job: Job, model: SigLIP, task: Task, progress: Progress) -> None:
    """Embed a part of a shard and save the results, which :func:`embed_shard` uses.

    Raises:
        JobError: the job's folder cannot be written, or the model is not that of the job.
        BundleError: the model fails.
    """
    check_model(job, model)
    attempt = _Attempt(job, task, job.read_plan(task.shard), model, progress)
    attempt.embed_all(task.part)
    progress.image_started(None)
    attempt.save()


def find_pending(job: Job, task: Task) -> list[int]:
    """Return the indices of the inputs of a shard that must be read."""
    inputs, earlier = job.read_plan(task.shard), _Earlier(job, task)
    return [index for index, item in enumerate(inputs) if earlier.find_unchanged(item) is None]


class _Result(NamedTuple):
    """A row and its vector, None unless the status is ``ok``."""

    row: Row
    vector: Vector | None


class _Earlier:
    """The results that a shard has already, of its last commit and of saved parts, without those to be retried."""

    def __init__(self, job: Job, task: Task) -> None:
        self._by_path: dict[str, _Result] = {}
        self._by_sha256: dict[str, _Result] = {}
        if (receipt := job.receipt(task.shard, read_files=True)) is not None:
            vectors = np.array(job.layout.read(job.path, task.shard))  # a copy: the file is about to be replaced
            if len(vectors) == receipt.num_vectors:
                self._add(job.read_rows(task.shard), vectors, retry=task.retry_errors)
        for part in job.read_parts(task.shard):
            self._add(part.rows, part.vectors, retry=task.retry_errors and part.run != task.run)

    def _add(self, rows: Iterable[Row], vectors: Vector, *, retry: bool) -> None:
        for row in rows:
            vector = None if row.row is None else vectors[row.row]
            if vector is not None and not np.isfinite(vector).all():
                continue
            if row.status == OK or not retry:
                self._by_path[row.path] = _Result(row, vector)
            if row.status == OK and row.sha256 is not None:
                self._by_sha256[row.sha256] = _Result(row, vector)

    def find_unchanged(self, item: Input) -> _Result | None:
        """Return the result of an input with the same path, size and time."""
        result = self._by_path.get(item.path)
        return result if result is not None and result.row.input == item else None

    def find_content(self, sha256: str, item: Input) -> _Result | None:
        """Return the result of the same bytes, whatever their path was, for this input."""
        result = self._by_sha256.get(sha256)
        return result and result._replace(row=replace(result.row, **item._asdict()))


class _Attempt:
    """The rows and vectors of one shard, by the index of their input."""

    def __init__(self, job: Job, task: Task, inputs: list[Input], model: SigLIP, progress: Progress) -> None:
        self._job, self._task, self._inputs, self._model, self._progress = job, task, inputs, model, progress
        self._earlier = _Earlier(job, task)
        self._limits = ImageLimits(**job.facts.preprocessing["image_limits"])
        self._fast_decode = bool(job.facts.preprocessing["fast_decode"])
        self._results: dict[int, _Result] = {}
        self._unsaved: list[int] = []
        self._last_save = time.monotonic()

    def embed_all(self, indices: Iterable[int]) -> None:
        """Embed the inputs at these indices; suspects come first, and then every image runs alone."""
        task = self._task
        for index, reason in task.crashes:
            message = f"It crashed its worker twice: {reason}."
            self._finish(index, _Result(Row(*self._inputs[index], status=CRASH, message=message), None))
        excluded = {*task.suspects, *(index for index, _ in task.crashes)}
        ordered = [*task.suspects, *(index for index in indices if index not in excluded)]
        for group in [[index] for index in ordered] if excluded else [ordered]:
            self._embed(group)

    def result(self, embedding_dim: int) -> tuple[list[Row], Vector]:
        """Return the rows in the order of the plan, and the vectors of the rows whose status is ``ok``."""
        return _collect([result for _, result in sorted(self._results.items())], embedding_dim)

    def save(self) -> None:
        """Save the results that an interrupted run would lose."""
        if self._unsaved:
            rows, vectors = _collect([self._results[index] for index in self._unsaved], self._model.embedding_dim)
            self._job.save_part(self._task.shard, self._task.run, rows, vectors)
        self._unsaved = []
        self._last_save = time.monotonic()

    def _embed(self, indices: Iterable[int]) -> None:
        """Embed the inputs at these indices; on the CPU each image is run before the next is read."""
        opened: deque[tuple[int, Input, str]] = deque()
        for result in self._model.stream_embeddings(self._read(indices, opened)):
            index, item, sha256 = opened.popleft()
            if isinstance(result, ImageError):
                self._finish(index, _Result(Row(*item, status=result.status, message=str(result)), None))
                continue
            # After a fast decode, the size is that of the reduced image.
            width, height = (None, None) if self._fast_decode else (result.width, result.height)
            row = Row(*item, status=OK, width=width, height=height, sha256=sha256, truncated=result.truncated)
            self._finish(index, _Result(row, result.embedding))

    def _finish(self, index: int, result: _Result, *, is_new: bool = True) -> None:
        """Store the result for an input."""
        self._results[index] = result
        if is_new:
            self._unsaved.append(index)
        if index not in self._task.counted:
            self._progress.image_done(result.row.status)
        if time.monotonic() - self._last_save > SAVE_SECONDS:
            self.save()

    def _read(self, indices: Iterable[int], opened: deque[tuple[int, Input, str]]) -> Iterator[bytes]:
        """Yield the content of files that must be embedded, and finish the other inputs."""
        for index in indices:
            self._progress.image_started(index)
            listed = self._inputs[index]
            if (known := self._earlier.find_unchanged(listed)) is not None:
                self._finish(index, known, is_new=False)
                continue
            try:
                content, item = read_content(listed.path, self._limits)
            except ImageError as error:
                row = Row(*stat_input(listed.path), status=error.status, message=str(error))
                self._finish(index, _Result(row, None))
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            if (known := self._earlier.find_content(sha256, item)) is not None:
                self._finish(index, known)
            else:
                opened.append((index, item, sha256))
                yield content


def _collect(results: list[_Result], embedding_dim: int) -> tuple[list[Row], Vector]:
    """Return rows that are numbered by their vectors, and the vectors ``(number of ok rows, D)``."""
    vectors = [result.vector for result in results if result.vector is not None]
    numbers = iter(range(len(vectors)))
    rows = [replace(result.row, row=None if result.vector is None else next(numbers)) for result in results]
    return rows, np.array(vectors).reshape(len(vectors), embedding_dim)
