"""Shards on the machines of a Ray cluster, or under a Ray of this machine: it schedules, and decides nothing else."""

from __future__ import annotations

import os
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JobError, SiglipOnnxError
from ..system.extras import extra
from ..system.threads import available_threads
from .crew import Crew, Watcher
from .facts import Receipt
from .job import Job
from .shard import Task
from .spec import ModelSpec
from .storage import make_temporary, writing

MAX_ATTEMPTS = 3  # for one shard
_MAX_RESTARTS, _MAX_TASK_RETRIES = 3, 2
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # about the least that Ray takes; only receipts go through it


class RayEngine:
    """Deals shards out to Ray actors, each with a worker process of its own, so that pictures may kill that one."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """Use the cluster at ``address``, or start one here; by default all its CPUs but one.

        A Ray that is started here is told of one CPU more than there is, and that one stays free: actors on every CPU
        would leave Ray's own tasks waiting.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        os.environ.update(_ENVIRONMENT)
        self._ray = _import_ray()
        self._address, self._workers = address, workers

    def __call__(
        self, job: Job, model: ModelSpec, tasks: list[Task], watcher: Watcher
    ) -> Iterator[tuple[int, Receipt]]:
        """Do the tasks.

        Raises:
            JobError: the cluster cannot be reached, its machines do not share the folder, or a shard fails again and
                again.
        """
        if not tasks:
            return
        self._connect()
        try:
            self._check_shared(job, model)
            yield from self._run(_Absolute.of(job, model), tasks, watcher)
        except self._ray.exceptions.RayError as error:
            raise JobError(f"Ray failed: {_first_line(error)}. Run the same command again: it goes on.") from error
        finally:
            self._ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            # Otherwise a minute passes until it is noticed that the cluster has died.
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
            cpus = (self._workers or available_threads()) + 1
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            self._ray.init(self._address or "local", runtime_env={"env_vars": _ENVIRONMENT}, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(
                f"Ray at {self._address or 'this machine'} does not answer: {_first_line(error)}. Check --ray-address, "
                "RAY_AUTH_MODE (see docs/bulk.md), and that all machines have the same versions of Ray and Python."
            ) from error

    def _check_shared(self, job: Job, model: ModelSpec) -> None:
        """Refuse a folder, model or picture that other machines of the cluster do not have at the same path."""
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        if len(nodes) == 1:
            return
        with writing(job.path):
            mark = make_temporary(job.path.absolute()) / uuid.uuid4().hex
            mark.touch()
        here = [str(mark), str(Path(model.name).absolute())]
        here += [one.path for one in job.read_plan(job.shards()[0]) if one.size_bytes is not None][:1]
        wanted = [path for path in here if Path(path).exists()]
        probe = self._ray.remote(num_cpus=0)(_find_missing)
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {node: probe.options(scheduling_strategy=strategy(node, soft=False)).remote(wanted) for node in nodes}
        for node, answer in asked.items():
            if missing := self._ray.get(answer):
                raise JobError(
                    f"The machine {node[:8]} of the Ray cluster does not have {missing[0]}. Put pictures, model and "
                    "--out on storage that all machines mount at the same path."
                )

    def _run(self, where: _Absolute, tasks: list[Task], watcher: Watcher) -> Iterator[tuple[int, Receipt]]:
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_TASK_RETRIES)(_ShardActor)
        waiting = deque((task, 1) for task in tasks)
        idle = [remote.remote(*where) for _ in range(min(self._num_actors(), len(tasks)))]
        running: dict[Any, tuple[Any, Task, int]] = {}
        while waiting or running:
            while idle and waiting:
                actor, (task, attempt) = idle.pop(), waiting.popleft()
                running[actor.embed.remote(task)] = (actor, task, attempt)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, task, attempt = running.pop(ready)
            try:
                found = ray.get(ready)
            except ray.exceptions.RayActorError as error:  # dead for good: its restarts are used up
                if attempt == MAX_ATTEMPTS:
                    raise JobError(
                        f"Shard {task.shard} ended {attempt} actors: {_first_line(error)}. The others are not lost; "
                        "check the machines' memory, then run the same command again."
                    ) from error
                waiting.appendleft((task, attempt + 1))
                idle.append(remote.remote(*where))
                continue
            idle.append(actor)
            if isinstance(found, SiglipOnnxError):
                raise found
            yield _tell(found, watcher)

    def _num_actors(self) -> int:
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        free = max(1, cpus - 1)
        return free if self._workers is None else min(free, self._workers)


class _Absolute(NamedTuple):
    """Where the job and the model are, whatever folder a process works in."""

    job: Path
    model: ModelSpec

    @classmethod
    def of(cls, job: Job, model: ModelSpec) -> _Absolute:
        return cls(job.path.absolute(), model.absolute())


class _Done(NamedTuple):
    shard: int
    receipt: Receipt
    seconds: float


class _ShardActor:
    """One CPU of the cluster."""

    def __init__(self, job: Path, model: ModelSpec) -> None:
        self._last = _Last()
        self._crew = Crew(job, model, 1, self._last)

    def embed(self, task: Task) -> _Done | SiglipOnnxError:
        """Do a shard; an error is a result, for Ray would try again what cannot work."""
        try:
            ((shard, receipt),) = self._crew.run([task])
        except SiglipOnnxError as error:
            return error
        return _Done(shard, receipt, self._last.seconds)


class _Last(Watcher):
    """Keeps how long the last shard took."""

    seconds = 0.0

    def picture(self, status: str) -> None:
        pass

    def lost(self, statuses: Mapping[str, int]) -> None:
        pass

    def shard(self, shard: int, receipt: Receipt, seconds: float) -> None:
        del shard, receipt
        self.seconds = seconds


def _tell(found: _Done, watcher: Watcher) -> tuple[int, Receipt]:
    for status in Counter(found.receipt.counts).elements():
        watcher.picture(status)
    watcher.shard(*found)
    return found.shard, found.receipt


def _find_missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")


def _import_ray() -> Any:
    with extra("ray", "--engine ray"):
        import ray  # noqa: PLC0415 - an optional package
        import ray.util.scheduling_strategies  # noqa: PLC0415
    return ray
