"""A whole job: plan, do the shards that are not done, and say what came out."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import JobError
from ..session import runtime_version
from ..system.threads import available_threads
from .crew import Crew, Watcher
from .facts import JobFacts, Receipt
from .job import ERRORS, LOG, SUMMARY, Job, begin_job, make_folder
from .listing import Listing
from .plan import Changes, update_plan
from .records import OK, STATUSES, to_line
from .shard import Task
from .spec import ModelSpec
from .storage import clear_temporary, locked, remove, write_whole, writing

SUMMARY_FORMAT = "siglip_onnx.job_summary/1"
_NOTHING = "No pictures were found; give a folder or a list that has some, or see --all-files."
Engine = Callable[[Job, ModelSpec, list[Task], Watcher], Iterator[tuple[int, Receipt]]]


@dataclass(frozen=True)
class Policy:
    """What a run does with what earlier runs left.

    ``prune`` drops inputs that are no longer listed; ``retry_errors`` tries again what has an error; ``overwrite``
    begins anew; ``fast_resume`` trusts files of the right size without reading them.
    """

    prune: bool = False
    retry_errors: bool = False
    overwrite: bool = False
    fast_resume: bool = False


class JobWatcher(Watcher, Protocol):
    """Whoever wants to know how a job gets on, from the beginning."""

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """The plan stands; so many inputs of each status are done already."""


class LocalEngine:
    """Shards in processes of this machine."""

    def __init__(self, workers: int | None = None) -> None:
        """Use so many processes, by default one per CPU."""
        self._workers = workers or available_threads()

    def __call__(
        self, job: Job, model: ModelSpec, tasks: list[Task], watcher: Watcher
    ) -> Iterator[tuple[int, Receipt]]:
        """Do the tasks."""
        with Crew(job.path, model, min(self._workers, len(tasks)), watcher) as crew:
            yield from crew.run(tasks)


def run_job(
    out: Path,
    listing: Listing,
    model: ModelSpec,
    facts: JobFacts,
    *,
    policy: Policy | None = None,
    engine: Engine | None = None,
    watcher: JobWatcher | None = None,
) -> dict[str, Any]:
    """Embed all inputs of ``listing`` into the folder ``out``, going on where an earlier run stopped.

    Returns the content of ``summary.json``, which a run writes last.

    Raises:
        JobError: the folder belongs to another job or run, or cannot be written, or there are no inputs.
        SiglipOnnxError: the model cannot be opened or fails.
    """
    policy, engine = policy or Policy(), engine or LocalEngine()
    make_folder(out)
    with locked(out):
        if policy.overwrite and listing.is_empty():
            raise JobError(_NOTHING)
        job = begin_job(out, facts, overwrite=policy.overwrite)
        with _temporary_cleared(out):
            return _run(job, listing, model, policy, engine, watcher)


def _run(
    job: Job, listing: Listing, model: ModelSpec, policy: Policy, engine: Engine, watcher: JobWatcher | None
) -> dict[str, Any]:
    changes = update_plan(job, listing, prune=policy.prune)
    if not job.shards():
        raise JobError(_NOTHING)
    tasks, done = _find_tasks(job, policy)
    log = _Log(job, watcher)
    log.write("run", inputs=asdict(changes), shards_to_do=len(tasks), onnxruntime=runtime_version())
    if watcher is not None:
        to_do = sum(len(job.read_plan(task.shard)) for task in tasks)
        watcher.planned(changes, to_do + sum(done.values()), done)
    if tasks:
        remove(job.path, SUMMARY)
    for _ in engine(job, model, tasks, log):
        pass
    return _finish(job)


@contextmanager
def _temporary_cleared(out: Path) -> Iterator[None]:
    """Remove what an earlier run left half written, and what this one leaves."""
    clear_temporary(out)
    try:
        yield
    finally:
        clear_temporary(out)


def _find_tasks(job: Job, policy: Policy) -> tuple[list[Task], Counter[str]]:
    """Return the shards to do, and how many inputs of each status the others hold."""
    tasks, done = [], Counter[str]()
    for shard in job.shards():
        receipt = job.receipt(shard, read_files=not policy.fast_resume)
        if receipt is None or not job.is_done(shard, receipt) or (policy.retry_errors and receipt.num_errors):
            tasks.append(Task(shard, retry_errors=policy.retry_errors))
        else:
            done.update(receipt.counts)
    return tasks, done


def _finish(job: Job) -> dict[str, Any]:
    """Write what is derived from all shards: the rows with errors, and the summary."""
    counts, with_errors = Counter[str](), []
    shards = job.shards()
    for shard in shards:
        receipt = job.receipt(shard, read_files=False)
        if receipt is None or not job.is_done(shard, receipt):
            raise JobError(f"Shard {shard} of {job.path} changed while the job ran. Run the same command again.")
        counts.update(receipt.counts)
        if receipt.num_errors:
            with_errors.append(shard)
    write_whole(job.path, ERRORS, _error_lines(job, with_errors))
    facts = job.facts
    summary = {
        "format": SUMMARY_FORMAT,
        "inputs": sum(counts.values()),
        "vectors": counts[OK],
        "errors": sum(counts.values()) - counts[OK],
        "statuses": {status: counts[status] for status in STATUSES if counts[status]},
        "shards": len(shards),
        "model": facts.model_name,
        "variant": facts.variant,
        "embedding_space": facts.embedding_space,
        "embedding_dim": facts.embedding_dim,
        "layout": facts.layout,
        "dtype": facts.dtype,
        "fingerprint": facts.fingerprint,
    }
    write_whole(job.path, SUMMARY, [(json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode()])
    return summary


def _error_lines(job: Job, shards: Iterable[int]) -> Iterator[bytes]:
    for shard in shards:
        for row in job.read_rows(shard):
            if row.status != OK:
                yield to_line({"path": row.path, "status": row.status, "message": row.message}).encode()


class _Log(Watcher):
    """Writes when and where shards were done to ``log.jsonl``, and passes everything on."""

    def __init__(self, job: Job, watcher: Watcher | None) -> None:
        self._path, self._watcher = job.path / LOG, watcher

    def write(self, event: str, **facts: Any) -> None:
        """Add a line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = to_line({"time": when, "event": event, "host": platform.node(), "pid": os.getpid()} | facts)
        with writing(self._path.parent), self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def picture(self, status: str) -> None:
        if self._watcher is not None:
            self._watcher.picture(status)

    def lost(self, statuses: Mapping[str, int]) -> None:
        self.write("worker died", lost=dict(statuses))
        if self._watcher is not None:
            self._watcher.lost(statuses)

    def shard(self, shard: int, receipt: Receipt, seconds: float) -> None:
        self.write("shard", shard=shard, seconds=seconds, counts=receipt.counts)
        if self._watcher is not None:
            self._watcher.shard(shard, receipt, seconds)
