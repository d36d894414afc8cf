"""A pool of worker processes that embed shards: an image that crashes its worker twice is recorded as an error."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from ..errors import JobError, SiglipOnnxError
from .job import open_job
from .plan import Progress
from .records import CRASH, Receipt
from .shard import Task, embed_shard
from .spec import ModelSpec

IMAGE_TIMEOUT_SECONDS = 300.0
MAX_CRASHES = 50  # in a row, without one image done between them
_MAX_CRASHES_OUTSIDE_IMAGES = 3
_SHUTDOWN_SECONDS = 3.0
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
    ) -> None:
        """Prepare ``workers`` processes; each starts with its first shard."""
        self._progress, self._image_timeout = progress, image_timeout
        self._workers = [_Worker(job, model) for _ in range(workers)]
        self._crashes = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Run every task; yield shards and receipts in the order in which they finish.

        Raises:
            SiglipOnnxError: the workers cannot continue: a full disk, a broken model, or one crash after another.
        """
        remaining, retries = iter(tasks), deque[Task]()
        while True:
            for worker in self._workers:
                if worker.task is None:
                    task = retries.popleft() if retries else next(remaining, None)
                    if task is not None:
                        worker.assign(task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.connection in ready:
                    yield from self._receive(worker, retries)
                elif worker.seconds_at_image() > self._image_timeout:
                    worker.kill(f"it took more than {self._image_timeout:.0f} seconds")

    def close(self) -> None:
        """Stop all processes at once; the next run embeds the shards they were working on again."""
        for worker in self._workers:
            worker.close()

    def _receive(self, worker: _Worker, retries: deque[Task]) -> Iterator[tuple[int, Receipt]]:
        """Process the messages that a worker has sent so far."""
        try:
            while worker.task is not None and worker.connection.poll():
                kind, value = worker.connection.recv()
                if (done := self._on_message(worker, kind, value)) is not None:
                    yield done
        except (EOFError, ConnectionResetError):
            self._progress.worker_died(worker.statuses)
            retries.append(self._on_crash(worker))

    def _on_message(self, worker: _Worker, kind: str, value: Any) -> tuple[int, Receipt] | None:
        """Process one message; return a shard and its receipt if it is done."""
        worker.last_message = time.monotonic()
        if kind == "image started":
            worker.image = value
        elif kind == "image done":
            worker.statuses[value] += 1
            if value != CRASH:  # it records an earlier crash, which is not progress
                self._crashes = 0
            self._progress.image_done(value)
        elif kind == "exception":
            worker.reason = value
        elif kind == "error":
            raise value
        elif kind == "shard done":
            shard, receipt, seconds = value
            self._progress.shard_done(shard, receipt, seconds)
            worker.task = None
            return shard, receipt
        return None

    def _on_crash(self, worker: _Worker) -> Task:
        """Return the task to retry after a worker died; its process is started again with its next task."""
        task, index, reason = worker.on_crash()
        self._crashes += 1
        if self._crashes >= (_MAX_CRASHES_OUTSIDE_IMAGES if index is None else MAX_CRASHES):
            raise JobError(
                f"{self._crashes} workers died one after another without finishing an image, the last one with "
                f"{reason}. Check the free memory and the model (siglip-onnx models check MODEL), then run the same "
                "command again."
            )
        return task if index is None else task.after_crash(index, reason)


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
        self.last_message = time.monotonic()

    def assign(self, task: Task) -> None:
        """Send a shard to the process, which is started if it is not running."""
        self._reset()
        self.task = task
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died, which the next read notices
            self.connection.send(task)

    def seconds_at_image(self) -> float:
        """Return how long the worker has been working on its current image."""
        return 0.0 if self.image is None else time.monotonic() - self.last_message

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
        context = multiprocessing.get_context("spawn")  # onnxruntime does not survive a fork
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._job, self._model), daemon=True)
        with _environment(_ONE_THREAD), _interrupts_blocked():
            process.start()
        theirs.close()
        self._process = process


def _work(connection: Connection, job_path: Path, spec: ModelSpec) -> None:
    """Embed shards until the pool closes the connection; runs in the worker process."""
    # Messages of the log are in the rows already, and stderr shows a progress line.
    logging.getLogger("siglip_onnx").addHandler(logging.NullHandler())
    try:
        job, model = open_job(job_path), spec.open()
        while True:
            task = connection.recv()
            started = time.perf_counter()
            receipt = embed_shard(job, model, task, _PipeProgress(connection))
            connection.send(("shard done", (task.shard, receipt, round(time.perf_counter() - started, 3))))
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


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in the processes that are started inside the block: their pool stops them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
