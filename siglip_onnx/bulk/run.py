"""Run a whole job: update the plan, embed the shards that are not done, and write the summary."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import JobError, printable
from ..session import runtime_version
from ..system.files import open_regular
from ..system.json_files import to_json
from ..system.threads import available_workers
from .job import ERRORS, LOG, SUMMARY, Job, begin_job, make_folder
from .listing import Listing
from .plan import update_plan
from .progress import Changes, Progress
from .records import MAX_LINE_BYTES, OK, STATUSES, JobFacts, Receipt, damaged, read_lines
from .shard import Task
from .spec import ModelSpec
from .storage import clear_temporary, is_unwritable, locked, remove, unless_unwritable, write_whole, writing
from .worker_pool import MIN_PART, WorkerPool

_ERROR_FIELDS = ("path", "status", "message")
SUMMARY_FORMAT = "siglip_onnx.job_summary/1"
_NO_INPUTS = "No images were found; give a folder or a list that has some, or see --all-files."
_log = logging.getLogger(__name__)
Engine = Callable[[Job, ModelSpec, list[Task], Progress], Iterator[tuple[int, Receipt]]]


@dataclass(frozen=True)
class Policy:
    """How a run treats the results of earlier runs.

    ``prune`` drops inputs that are no longer listed; ``retry_errors`` retries inputs that have an error; ``overwrite``
    starts over; ``fast_resume`` trusts files of the right size without reading them; ``wait_s`` is how long another run
    of the same folder is waited for, in seconds. ``may_be_unwritable`` lets a run that has nothing to embed succeed
    where the disk is full or read-only.
    """

    prune: bool = False
    retry_errors: bool = False
    overwrite: bool = False
    fast_resume: bool = False
    wait_s: float = 0
    may_be_unwritable: bool = False


class LocalEngine:
    """Embeds shards in processes of this machine."""

    def __init__(self, workers: int | None = None) -> None:
        """Use ``workers`` processes, by default one per CPU as far as the memory suffices."""
        self._workers = workers

    def __call__(
        self, job: Job, model: ModelSpec, tasks: list[Task], progress: Progress
    ) -> Iterator[tuple[int, Receipt]]:
        """Run the tasks."""
        workers = self._workers or available_workers(model.memory_bytes())
        if len(tasks) < workers:  # the images of a shard are divided between the workers
            num_inputs = sum(len(job.read_plan(task.shard)) for task in tasks)
            workers = min(workers, max(len(tasks), -(-num_inputs // MIN_PART)))
        with closing(WorkerPool(job.path, model, workers, progress)) as pool:
            yield from pool.run(tasks)


def run_job(
    out: Path,
    listing: Listing,
    model: ModelSpec,
    facts: JobFacts,
    *,
    policy: Policy | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embed all inputs of ``listing`` into the folder ``out``, resuming where an earlier run left off.

    Returns the content of ``summary.json``, which is written last.

    Raises:
        JobError: the folder belongs to another job or run, or cannot be written, or there are no inputs.
        SiglipOnnxError: the model cannot be opened or fails.
    """
    policy, engine = policy or Policy(), engine or LocalEngine()
    make_folder(out)
    with locked(out, wait_s=policy.wait_s, optional=policy.may_be_unwritable):
        if policy.overwrite and listing.is_empty():
            raise JobError(_NO_INPUTS)
        job = begin_job(out, facts, overwrite=policy.overwrite)
        if job.facts.background != facts.background:
            _log.warning(
                "%s was begun by version 0.1 and keeps its pixels: transparency and levels beyond 8 bits are not "
                "converted. To embed with the current pixels, start over with --overwrite.",
                printable(out),
            )
        with unless_unwritable(optional=policy.may_be_unwritable):
            clear_temporary(out)  # of earlier runs
        try:
            return _run(job, listing, model.for_job(job.facts), policy, engine, progress or Progress())
        finally:
            with unless_unwritable(optional=policy.may_be_unwritable):
                clear_temporary(out)


def _run(
    job: Job, listing: Listing, model: ModelSpec, policy: Policy, engine: Engine, progress: Progress
) -> dict[str, Any]:
    changes = update_plan(job, listing, prune=policy.prune)
    if not job.shards():
        raise JobError(_NO_INPUTS)
    tasks, done = _find_tasks(job, policy)
    log, optional = _LoggedProgress(job, progress), policy.may_be_unwritable and not tasks
    try:
        log.write("run", inputs=asdict(changes), shards_to_do=len(tasks), onnxruntime=runtime_version())
    except JobError as error:
        if not (optional and is_unwritable(error)):
            raise
        _log.warning("%s cannot be written; it is up to date, and is used as it is.", printable(job.path))
    num_to_do = sum(len(job.read_plan(task.shard)) for task in tasks)
    log.planned(changes, num_to_do + sum(done.values()), done)
    if tasks:
        remove(job.path, SUMMARY)
    for _ in engine(job, model, tasks, log):
        pass
    with unless_unwritable(optional=optional):
        job.clear_parts()
    return _finish(job, optional=optional)


def _find_tasks(job: Job, policy: Policy) -> tuple[list[Task], Counter[str]]:
    """Return the tasks for shards that are not done, and count the inputs of the other shards by status."""
    tasks, done, run = [], Counter[str](), uuid4().hex
    for shard in job.shards():
        receipt = job.receipt(shard, read_files=not policy.fast_resume)
        if receipt is None or not job.is_done(shard, receipt) or (policy.retry_errors and receipt.num_errors):
            tasks.append(Task(shard, retry_errors=policy.retry_errors, run=run))
        else:
            done.update(receipt.counts)
    return tasks, done


def _finish(job: Job, *, optional: bool) -> dict[str, Any]:
    """Write the files that are derived from all shards, the list of errors and the summary; return the latter."""
    counts, with_errors, truncated = Counter[str](), [], 0
    shards = job.shards()
    for shard in shards:
        receipt = job.receipt(shard, read_files=False)
        if receipt is None or not job.is_done(shard, receipt):
            raise JobError(f"Shard {shard} of {job.path} changed while the job ran. Run the same command again.")
        counts.update(receipt.counts)
        truncated += receipt.truncated
        if receipt.num_errors:
            with_errors.append(shard)
    facts = job.facts
    summary = {
        "format": SUMMARY_FORMAT,
        "inputs": sum(counts.values()),
        "vectors": counts[OK],
        "errors": sum(counts.values()) - counts[OK],
        "statuses": {status: counts[status] for status in STATUSES if counts[status]},
        **({"truncated_vectors": truncated} if truncated else {}),
        "shards": len(shards),
        "model": facts.model_name,
        "variant": facts.variant,
        "embedding_space": facts.embedding_space,
        "embedding_dim": facts.embedding_dim,
        "layout": facts.layout,
        "dtype": facts.dtype,
        "fingerprint": facts.fingerprint,
    }
    with unless_unwritable(optional=optional):
        write_whole(job.path, ERRORS, _error_lines(job, with_errors))
        write_whole(job.path, SUMMARY, [f"{to_json(summary, indent=2)}\n".encode()])
    return summary


def read_errors(out: Path) -> Iterator[dict[str, str]]:
    """Yield path, status and message of each input of a finished job that has no vector.

    Raises:
        JobError: the file cannot be read, or is damaged.
    """
    path = out / ERRORS
    try:
        with open_regular(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise damaged(str(path))
                for error in read_lines(line, _ERROR_FIELDS, str(path)):
                    if not all(type(value) is str for value in error.values()):
                        raise damaged(str(path))
                    yield error
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}. Run the same command again.") from error


def _error_lines(job: Job, shards: Iterable[int]) -> Iterator[bytes]:
    for shard in shards:
        for row in job.read_rows(shard):
            if row.status != OK:
                line = to_json({name: getattr(row, name) for name in _ERROR_FIELDS})
                yield f"{line}\n".encode()


def _open_own(path: str, flags: int) -> int:
    """Open a file, but neither through a link, which may lead to another's file, nor a pipe that nobody reads."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)


class _LoggedProgress(Progress):
    """Writes events with time and host to ``log.jsonl``, and passes them on."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._path, self._progress = job.path / LOG, progress

    def write(self, event: str, **facts: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = to_json({"time": now, "event": event, "host": platform.node(), "pid": os.getpid()} | facts)
        with writing(self._path.parent), open(self._path, "a", encoding="utf-8", opener=_open_own) as file:
            file.write(f"{line}\n")

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        self._progress.planned(changes, num_inputs, done)

    def image_done(self, status: str) -> None:
        self._progress.image_done(status)

    def worker_died(self, lost: Mapping[str, int]) -> None:
        self.write("worker died", lost=dict(lost))
        self._progress.worker_died(lost)

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        self.write("shard", shard=shard, seconds=seconds, counts=receipt.counts)
        self._progress.shard_done(shard, receipt, seconds)
