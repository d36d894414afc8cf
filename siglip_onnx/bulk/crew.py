"""Processes that embed shards and may die: a picture that ends its worker twice is recorded, and the job goes on."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

from ..errors import JobError, SiglipOnnxError
from .facts import Receipt
from .job import open_job
from .shard import Task, Watch, embed_shard
from .spec import ModelSpec

PATIENCE_SECONDS = 300.0  # for one picture
MAX_DEATHS = 50  # without one picture done between them
_LONGEST_STOP_SECONDS = 3.0
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Watcher(Protocol):
    """Whoever wants to know how a job gets on."""

    def picture(self, status: str) -> None:
        """An input was done."""

    def lost(self, statuses: Mapping[str, int]) -> None:
        """A worker died; what it had done of its shard must be done again."""

    def shard(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """A shard was committed."""


class Crew:
    """Worker processes of one thread each, every one with a model of its own, whose weights the system shares."""

    def __init__(
        self, job: Path, model: ModelSpec, workers: int, watcher: Watcher, *, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Prepare ``workers`` processes; they start when there is work for them."""
        self._watcher, self._patience = watcher, patience
        self._hands = [_Hand(job, model) for _ in range(workers)]
        self._deaths = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Do every task and yield shards and receipts as they come.

        Raises:
            SiglipOnnxError: what a worker cannot go on from: a full disk, a broken model, or one death after another.
        """
        remaining, again = iter(tasks), deque[Task]()
        while True:
            for hand in self._hands:
                if hand.task is None and (task := again.popleft() if again else next(remaining, None)) is not None:
                    hand.give(task)
            busy = [hand for hand in self._hands if hand.task is not None]
            if not busy:
                return
            ready = wait([hand.connection for hand in busy], timeout=1.0)
            for hand in busy:
                if hand.connection in ready:
                    yield from self._heed(hand, again)
                elif hand.stuck_seconds() > self._patience:
                    hand.kill(f"it took more than {self._patience:.0f} seconds")

    def close(self) -> None:
        """End all processes, without waiting for what they do."""
        for hand in self._hands:
            hand.close()

    def _heed(self, hand: _Hand, again: deque[Task]) -> Iterator[tuple[int, Receipt]]:
        """Take what a worker says until it is silent."""
        try:
            while hand.task is not None and hand.connection.poll():
                kind, value = hand.connection.recv()
                hand.note(kind, value)
                if kind == "end":
                    self._deaths = 0
                    self._watcher.picture(value)
                elif kind == "error":
                    raise value
                elif kind == "done":
                    shard, receipt, seconds = value
                    self._watcher.shard(shard, receipt, seconds)
                    hand.task = None
                    yield shard, receipt
        except (EOFError, ConnectionResetError):
            self._watcher.lost(hand.statuses)
            again.append(self._bury(hand))

    def _bury(self, hand: _Hand) -> Task:
        """Return what is to be done again after a worker died, and leave its place to a new one."""
        task, place, how = hand.bury()
        self._deaths += 1
        if self._deaths >= (MAX_DEATHS if place is not None else 3):
            raise JobError(
                f"{self._deaths} workers died one after another without finishing a picture, the last one with {how}. "
                "Check the memory and the model (siglip-onnx info --verify-files), then run the same command again."
            )
        return task if place is None else task.after_death(place, how)


class _Hand:
    """One worker as its crew sees it."""

    def __init__(self, job: Path, model: ModelSpec) -> None:
        self._job, self._model = job, model
        self._process: Any = None
        self.connection: Any = None
        self._reset()

    def _reset(self) -> None:
        self.task: Task | None = None
        self.place: int | None = None
        self.statuses: dict[str, int] = {}
        self._how = ""
        self._last = time.monotonic()

    def give(self, task: Task) -> None:
        """Start the process if there is none, and give it a shard."""
        self._reset()
        self.task = task
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; reading will say so
            self.connection.send(task)

    def note(self, kind: str, value: Any) -> None:
        """Remember where the worker is."""
        self._last = time.monotonic()
        if kind == "begin":
            self.place = value
        elif kind == "end":
            self.statuses[value] = self.statuses.get(value, 0) + 1
        elif kind == "exception":
            self._how = value

    def stuck_seconds(self) -> float:
        """Return for how long the worker has been at one picture."""
        return 0.0 if self.place is None else time.monotonic() - self._last

    def kill(self, how: str) -> None:
        """End the process, for a reason."""
        self._how = how
        self._process.kill()

    def bury(self) -> tuple[Task, int | None, str]:
        """Clear up after a process that died; return what it did, where it was, and how it ended."""
        self._process.join()
        found = cast(Task, self.task), self.place, self._how or _describe_exit(self._process.exitcode)
        self._forget()
        return found

    def close(self) -> None:
        """End the process at once."""
        if self._process is None:
            return
        self.connection.close()
        self._process.terminate()
        self._process.join(_LONGEST_STOP_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._forget()

    def _forget(self) -> None:
        self.connection.close()
        self._process.close()
        self._process = self.connection = None
        self._reset()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # onnxruntime does not survive a fork
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._job, self._model), daemon=True)
        with _in_environment(_ONE_THREAD), _interrupts_held():
            process.start()
        theirs.close()
        self._process = process


def _work(connection: Connection, job_path: Path, spec: ModelSpec) -> None:
    """Do shards until there are no more or nobody listens."""
    # What is logged stands in the rows, and stderr has a progress line.
    logging.getLogger("siglip_onnx").addHandler(logging.NullHandler())
    try:
        job, model = open_job(job_path), spec.open()
        watch = Watch(lambda place: connection.send(("begin", place)), lambda status: connection.send(("end", status)))
        while True:
            task = connection.recv()
            began = time.perf_counter()
            receipt = embed_shard(job, model, task, watch)
            connection.send(("done", (task.shard, receipt, round(time.perf_counter() - began, 3))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the crew is gone
    except SiglipOnnxError as error:
        _say(connection, "error", error)
    except Exception as error:  # a death like any other, but it can say why
        _say(connection, "exception", f"{type(error).__name__}: {error}")


def _say(connection: Connection, kind: str, value: object) -> None:
    """Say a last word, if somebody still listens."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send((kind, value))


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


@contextlib.contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a process that is started meanwhile."""
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
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from a process that is started meanwhile: its crew ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
