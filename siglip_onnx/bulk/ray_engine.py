"""Embed shards on a Ray cluster, or with a Ray on this machine; Ray only schedules them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import JobError, SiglipOnnxError, first_line
from ..system.extras import extra
from ..system.files import part_name
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
        self._connect(model)
        try:
            self._check_shared(job, model)
            yield from self._run(job, model, tasks, progress)
        except self._ray.exceptions.RayError as error:
            raise JobError(
                f"Ray failed: {first_line(error)}. Finished shards are kept. Check the memory of the machines, then "
                "run the same command again."
            ) from error
        finally:
            self._ray.shutdown()

    def _connect(self, model: ModelSpec) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            cpus = (self._workers or available_workers(model.memory_bytes())) + 1
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            # Workers look for modules in what is the current folder here, where a stranger's may lie.
            with contextlib.chdir(sys.prefix):
                self._ray.init(self._address or "local", runtime_env={"env_vars": _ENVIRONMENT}, **options)
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
