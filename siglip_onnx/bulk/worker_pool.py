"""A pool of worker processes that embed shards: an image that crashes its worker twice is recorded as an error."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from ..errors import JobError, SiglipOnnxError
from ..system.frozen import check_freeze_support
from ..system.interrupts import broken_pipes_raise, children_uninterrupted, interrupts_deferred
from .job import open_job
from .progress import Progress
from .records import CRASH, Receipt
from .shard import Task, check_model, embed_part, embed_shard, find_pending
from .spec import ModelSpec

IMAGE_TIMEOUT_SECONDS = 300.0
OTHER_TIMEOUT_SECONDS = 600.0  # to load the model, or to commit a shard
MAX_CRASHES = 50  # in a row, without one image done between them
MAX_DEATHS_OUTSIDE_IMAGES = 3  # likewise
MIN_PART = 4  # images of a part of a shard
_SHUTDOWN_SECONDS = 3.0
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # otherwise they look for modules in the current folder first
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerPool:
    """Single-threaded worker processes; each loads the model, whose weights the system shares between them."""

    def __init__(
        self,
        job: Path,
        model: ModelSpec,
        workers: int,
        progress: Progress,
        *,
        image_timeout: float = IMAGE_TIMEOUT_SECONDS,
        other_timeout: float = OTHER_TIMEOUT_SECONDS,
    ) -> None:
        """Prepare ``workers`` processes; each starts with its first task."""
        self._job, self._progress = job, progress
        self._image_timeout, self._other_timeout = image_timeout, other_timeout
        self._workers = [_Worker(job, model) for _ in range(workers)]
        self._crashes = self._deaths_outside_images = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Run every task; yield shards and receipts in the order in which they finish.

        Raises:
            SiglipOnnxError: the workers cannot continue: a full disk, a broken model, or one crash after another.
        """
        queue = _Queue(self._job, tasks, len(self._workers))
        while True:
            for worker in self._workers:
                if worker.task is None and (task := queue.next()) is not None:
                    worker.assign(task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.connection in ready:
                    yield from self._receive(worker, queue)
                else:
                    self._check_time(worker)

    def close(self) -> None:
        """Stop all processes at once; the next run embeds the shards they were working on again."""
        for worker in self._workers:
            worker.close()

    def _check_time(self, worker: _Worker) -> None:
        """Kill a worker that takes too long."""
        at_image = worker.image is not None
        limit = self._image_timeout if at_image else self._other_timeout
        if time.monotonic() - worker.last_message > limit:
            what = "" if at_image else " to commit a shard" if worker.is_ready else " to load the model"
            worker.kill(f"it took more than {limit:.0f} seconds{what}")

    def _receive(self, worker: _Worker, queue: _Queue) -> Iterator[tuple[int, Receipt]]:
        """Process the messages that a worker has sent so far."""
        try:
            while worker.task is not None and worker.connection.poll():
                kind, value = worker.connection.recv()
                if (done := self._on_message(worker, queue, kind, value)) is not None:
                    yield done
        except (EOFError, ConnectionResetError):
            self._progress.worker_died(worker.statuses)
            queue.retry(self._on_crash(worker))

    def _on_message(self, worker: _Worker, queue: _Queue, kind: str, value: Any) -> tuple[int, Receipt] | None:
        """Process one message; return a shard and its receipt if it is done."""
        worker.last_message = time.monotonic()
        if kind == "ready":
            worker.is_ready = True
        elif kind == "image started":
            worker.image = value
        elif kind == "image done":
            worker.statuses[value] += 1
            if value != CRASH:  # it records an earlier crash, which is not progress
                self._crashes = self._deaths_outside_images = 0
            self._progress.image_done(value)
        elif kind == "exception":
            worker.reason = value
        elif kind == "error":
            raise value
        elif kind == "part done":
            queue.part_done(value)
            worker.task = None
        elif kind == "shard done":
            shard, receipt = value
            self._progress.shard_done(shard, receipt, queue.seconds(shard))
            worker.task = None
            return shard, receipt
        return None

    def _on_crash(self, worker: _Worker) -> Task:
        """Return the task to retry after a worker died; its process is started again with its next task."""
        task, index, reason = worker.on_crash()
        if index is None:
            self._deaths_outside_images += 1
        else:
            self._crashes += 1
        if self._deaths_outside_images >= MAX_DEATHS_OUTSIDE_IMAGES or self._crashes >= MAX_CRASHES:
            deaths = self._deaths_outside_images if index is None else self._crashes
            raise JobError(
                f"{deaths} workers died one after another without finishing an image, the last one with "
                f"{reason}. Check the free memory and the model (siglip-onnx models check MODEL), then run the same "
                "command again."
            )
        return task if index is None else task.after_crash(index, reason)


class _Queue:
    """The tasks that remain: whole shards, and for the last ones parts of shards, so that no worker is idle.

    A shard is committed after its parts.
    """

    def __init__(self, job: Path, tasks: Iterable[Task], workers: int) -> None:
        self._job_path, self._workers = job, workers
        self._shards, self._ready = deque(tasks), deque[Task]()
        self._open_parts: dict[int, tuple[int, Task]] = {}  # by shard: their number, and the task that commits it
        self._started: dict[int, float] = {}

    def next(self) -> Task | None:
        """Return the next task, None if there is none at the moment."""
        if not self._ready and self._shards:
            task = self._shards.popleft()
            self._started[task.shard] = time.monotonic()
            self._ready.extend(self._divide(task))
        return self._ready.popleft() if self._ready else None

    def retry(self, task: Task) -> None:
        """Add a task whose worker died."""
        self._ready.append(task)

    def part_done(self, shard: int) -> None:
        """Count a part that is done; after the last one, the shard is committed."""
        number, commit = self._open_parts.pop(shard)
        if number > 1:
            self._open_parts[shard] = number - 1, commit
        else:
            self._ready.appendleft(commit)

    def seconds(self, shard: int) -> float:
        """Return how long ago a shard was started."""
        return round(time.monotonic() - self._started.pop(shard), 3)

    def _divide(self, task: Task) -> list[Task]:
        """Return the parts of a shard, each smaller than the one before, or the whole task if others follow it."""
        if self._workers == 1 or len(self._shards) >= 2 * self._workers:
            return [task]
        pending = find_pending(open_job(self._job_path), task)
        parts, start = [], 0
        while start < len(pending):
            size = max(MIN_PART, (len(pending) - start) // (2 * self._workers))
            parts.append(replace(task, part=tuple(pending[start : start + size])))
            start += size
        if len(parts) < 2:
            return [task]
        self._open_parts[task.shard] = len(parts), replace(task, counted=frozenset(pending))
        return parts


class _Worker:
    """One worker process, as its pool sees it."""

    def __init__(self, job: Path, model: ModelSpec) -> None:
        self._job, self._model = job, model
        self._process: Any = None
        self.connection: Any = None
        self._reset()

    def _reset(self) -> None:
        self.task: Task | None = None
        self.statuses = Counter[str]()  # of the inputs that it has done
        self.image: int | None = None  # that it is at
        self.reason = ""  # why it ends
        self.is_ready = False  # the model is loaded
        self.last_message = time.monotonic()

    def assign(self, task: Task) -> None:
        """Send a shard to the process, which is started if it is not running."""
        is_ready = self.is_ready
        self._reset()
        self.task, self.is_ready = task, is_ready
        if self._process is None:
            self._start()
        # It may have died, which the next read notices.
        with broken_pipes_raise(), contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def kill(self, reason: str) -> None:
        """Kill the process; ``reason`` is reported with the crash that follows."""
        self.reason = reason
        self._process.kill()

    def on_crash(self) -> tuple[Task, int | None, str]:
        """Release a process that died; return its task, the input that it was at, and why it ended."""
        self._process.join()
        crash = cast(Task, self.task), self.image, self.reason or _describe_exit(self._process.exitcode)
        self._release()
        return crash

    def close(self) -> None:
        """Stop the process at once."""
        if self._process is None:
            return
        self.connection.close()
        self._process.terminate()
        self._process.join(_SHUTDOWN_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._release()

    def _release(self) -> None:
        self.connection.close()
        self._process.close()
        self._process = self.connection = None
        self._reset()

    def _start(self) -> None:
        check_freeze_support()
        context = multiprocessing.get_context("spawn")  # onnxruntime does not survive a fork
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._job, self._model), daemon=True)
        try:
            with interrupts_deferred(), _environment(_ONE_THREAD | _SAFE_PATH):
                if os.name == "posix":
                    resource_tracker.ensure_running()  # otherwise `start` does so, and unblocks Ctrl-C
                with children_uninterrupted():
                    process.start()
                self._process = process
        except OSError as error:
            files = error.errno in (errno.EMFILE, errno.ENFILE)
            limit = "open files (ulimit -n)" if files else "processes (ulimit -u)"
            raise JobError(
                f"No worker process can be started: {error.strerror or error}. Raise the limit of {limit}, or use "
                "fewer workers."
            ) from error
        finally:
            theirs.close()


def _end_with_parent() -> None:
    """End this process when its parent has ended, however busy it is: the next run does the rest of its shard."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(connection: Connection, job_path: Path, spec: ModelSpec) -> None:
    """Embed shards until the pool closes the connection; runs in the worker process."""
    # Messages of the log are in the rows already, and stderr shows a progress line.
    logging.getLogger("siglip_onnx").addHandler(logging.NullHandler())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job, model = open_job(job_path), spec.open()
        check_model(job, model)
        model.vision.session.load()  # otherwise the time to load would count as that of the first image
        connection.send(("ready", None))
        while True:
            task = connection.recv()
            if task.part:
                embed_part(job, model, task, _PipeProgress(connection))
                connection.send(("part done", task.shard))
            else:
                connection.send(("shard done", (task.shard, embed_shard(job, model, task, _PipeProgress(connection)))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the pool has closed the connection
    except SiglipOnnxError as error:
        _send(connection, "error", error)
    except Exception as error:  # handled like any crash, with its reason
        _send(connection, "exception", f"{type(error).__name__}: {error}")


class _PipeProgress(Progress):
    """Sends the progress of a shard to the pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def image_started(self, index: int | None) -> None:
        self._connection.send(("image started", index))

    def image_done(self, status: str) -> None:
        self._connection.send(("image done", status))


def _send(connection: Connection, kind: str, value: object) -> None:
    """Send a last message, unless the pool has closed the connection."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send((kind, value))


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
