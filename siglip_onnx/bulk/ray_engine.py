"""Embed shards on a Ray cluster, or with a Ray on this machine; Ray only schedules them."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import JobError, SiglipOnnxError, first_line
from ..system.extras import extra
from ..system.files import part_name
from ..system.interrupts import interrupts_deferred
from ..system.threads import available_workers
from .job import Job
from .progress import Progress
from .records import Receipt
from .shard import Task
from .spec import ModelSpec
from .storage import make_temporary, writing
from .worker_pool import WorkerPool

_MAX_RESTARTS = 20  # of one actor; without a limit, machines on which no actor starts would be tried forever
_MAX_TASK_RETRIES = 2  # of a shard whose actor died; images that crash a worker are the worker pool's business
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: listen on the loopback interface only
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # otherwise it takes a minute to notice that Ray has died
}
_SHORT_FOLDER, _MAX_FOLDER_BYTES = "/tmp", 22  # of 107 bytes of a socket's path Ray takes 64, and our name 20  # noqa: S108
_END_SECONDS = 5.0  # of processes that still write into the folder
_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # about the minimum of Ray; only receipts go through it


class RayEngine:
    """Assigns shards to Ray actors; each has a worker process of its own, which an image may crash."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """Use the cluster at ``address``, or start one on this machine; by default all its CPUs but one.

        A local Ray is started with one CPU more than the machine has, and that one stays free: if actors occupied every
        CPU, Ray's own tasks would have to wait.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        os.environ.update(_ENVIRONMENT)
        if address is None:
            for name, value in _LOCAL_ENVIRONMENT.items():
                os.environ.setdefault(name, value)  # Ray reads them when it is imported
        self._ray = _import_ray()
        self._address, self._workers = address, workers

    def __call__(
        self, job: Job, model: ModelSpec, tasks: list[Task], progress: Progress
    ) -> Iterator[tuple[int, Receipt]]:
        """Run the tasks.

        Raises:
            JobError: the cluster cannot be reached, its machines do not share the folder, or the actors of a shard died
                three times.
        """
        if not tasks:
            return
        with _own_folder() as folder, _sigterm_exits() as handle_sigterm:
            try:
                self._connect(model, folder)
                handle_sigterm()  # Ray has handlers of its own
                self._check_shared(job, model)
                yield from self._run(job, model, tasks, progress)
            except self._ray.exceptions.RayError as error:
                raise JobError(
                    f"Ray failed: {first_line(error)}. Finished shards are kept. Check the memory of the machines, "
                    "then run the same command again."
                ) from error
            finally:
                # An option of newer versions of Ray.
                waits = "wait_for_processes" in inspect.signature(self._ray.shutdown).parameters
                self._ray.shutdown(**({"wait_for_processes": True} if waits else {}))

    def _connect(self, model: ModelSpec, folder: str) -> None:
        """Connect to the cluster, or start a Ray that keeps its logs and sockets in a folder."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            cpus = (self._workers or available_workers(model.memory_bytes())) + 1
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES,
                        "_temp_dir": folder}  # fmt: skip
        try:
            # Workers look for modules in what is the current folder here, where a stranger's may lie. A Ray whose start
            # is interrupted ends this process with a segmentation fault.
            local = self._address is None
            with contextlib.chdir(sys.prefix), interrupts_deferred() if local else contextlib.nullcontext():
                self._ray.init(self._address or "local", runtime_env={"env_vars": _ENVIRONMENT}, **options)
        except SystemExit as error:  # of a handler of Ray, with another exit code
            raise SystemExit(128 + signal.SIGTERM) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(
                f"Ray at {self._address or 'this machine'} does not answer: {first_line(error)}. Check --ray-address, "
                "RAY_AUTH_MODE (see docs/bulk.md), and that all machines have the same versions of Ray and Python."
            ) from error

    def _check_shared(self, job: Job, model: ModelSpec) -> None:
        """Check that every machine of the cluster has the folder, the model and the first image at the same path."""
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        if len(nodes) == 1:
            return
        with writing(job.path):
            mark = make_temporary(job.path.absolute()) / part_name()
            mark.touch()
        candidates = [str(mark), str(Path(model.name).absolute())]
        candidates += [item.path for item in job.read_plan(job.shards()[0]) if item.size_bytes is not None][:1]
        paths = [path for path in candidates if Path(path).exists()]
        find_missing = self._ray.remote(num_cpus=0)(_find_missing)
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        answers = {
            node: find_missing.options(scheduling_strategy=affinity(node, soft=False)).remote(paths) for node in nodes
        }
        for node, answer in answers.items():
            if missing := self._ray.get(answer):
                raise JobError(
                    f"The machine {node[:8]} of the Ray cluster does not have {missing[0]}. Put images, model and "
                    "--out on storage that all machines mount at the same path."
                )

    def _run(self, job: Job, model: ModelSpec, tasks: list[Task], progress: Progress) -> Iterator[tuple[int, Receipt]]:
        as_actor = self._ray.remote(num_cpus=1, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_TASK_RETRIES)
        start, where = as_actor(_ShardActor).remote, (job.path.absolute(), model.absolute())
        pool = self._ray.util.ActorPool([start(*where) for _ in range(min(self._num_actors(), len(tasks)))])
        for task in tasks:
            pool.submit(lambda actor, task: actor.embed.remote(task), task)
        while pool.has_next():
            result = pool.get_next_unordered()
            # Without tasks left, the actor ends; its CPU may be needed to restart another one.
            pool.pop_idle()
            if isinstance(result, SiglipOnnxError):
                raise result
            shard, receipt, seconds = result
            for status in Counter(receipt.counts).elements():
                progress.image_done(status)
            progress.shard_done(shard, receipt, seconds)
            yield shard, receipt

    def _num_actors(self) -> int:
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        free = max(1, cpus - 1)
        return free if self._workers is None else min(free, self._workers)


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder for the logs and sockets of a Ray on this machine, and remove it when its processes have ended."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(parent)) > _MAX_FOLDER_BYTES and os.path.isdir(_SHORT_FOLDER):  # noqa: PTH112
        parent = _SHORT_FOLDER
    folder = tempfile.TemporaryDirectory(prefix="siglip-ray-", dir=parent, ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)  # after Ray's own exit, which may write there once more
    try:
        yield folder.name
    finally:
        deadline = time.monotonic() + _END_SECONDS
        folder.cleanup()
        while os.path.isdir(folder.name) and time.monotonic() < deadline:  # noqa: PTH112
            time.sleep(0.1)  # a process wrote its last lines
            folder.cleanup()


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[Callable[[], None]]:
    """Yield a function from whose call on SIGTERM ends this process as an exception does: Ray and its folder go.

    Ray's own handlers print stack traces, and end the process with various exit codes.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)

    def handle() -> None:
        if in_main_thread and before is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

    handle()
    try:
        yield handle
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


class _ShardActor(Progress):
    """Embeds one shard at a time on one CPU of the cluster."""

    def __init__(self, job: Path, model: ModelSpec) -> None:
        self._seconds = 0.0
        self._pool = WorkerPool(job, model, 1, self)

    def embed(self, task: Task) -> tuple[int, Receipt, float] | SiglipOnnxError:
        """Run a task; an error that another attempt would meet again is returned, so that Ray does not retry."""
        try:
            ((shard, receipt),) = self._pool.run([task])
        except SiglipOnnxError as error:
            return error
        return shard, receipt, self._seconds

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """Keep the duration."""
        del shard, receipt
        self._seconds = seconds


def _find_missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _import_ray() -> Any:
    with extra("ray", "--engine ray"):
        import ray.util.scheduling_strategies  # noqa: PLC0415 - an optional package
    return ray
