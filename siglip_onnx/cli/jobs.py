"""The part of ``siglip-onnx embed`` that processes folders and lists of any size."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import click

from .. import demo
from ..bulk.listing import Listing
from ..bulk.ray_engine import RayEngine
from ..bulk.records import MAX_SHARD_SIZE
from ..bulk.run import Engine, LocalEngine, Policy, run_job
from ..bulk.spec import ModelSpec
from ..errors import SiglipOnnxError
from ..session import CPU_PROVIDER
from ..system.files import open_list
from .options import ModelChoice, collect
from .output import SOME_FAILED, format_count, print_json, report_demo_model, warn
from .progress import AUTO, OFF, PLAIN, ProgressLine

STDIN = "-"
_LIST_SUFFIX, _LIST_MARK = ".txt", "@"


@dataclass(frozen=True)
class JobChoice:
    """The values of the options that :func:`job_options` adds."""

    layout: str
    dtype: str
    shard_size: int
    all_files: bool
    prune: bool
    retry_errors: bool
    overwrite: bool
    fast_resume: bool
    engine: str
    ray_address: str | None
    progress: str


job_options = collect(JobChoice, "job", [
    click.option("--layout", type=click.Choice(["npy", "clip-retrieval", "parquet"]), default="npy",
                 show_default=True, help="Jobs: how vectors are stored; the latter two need the extra "
                                         "[parquet]."),
    click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
                 help="Jobs: type of the stored vectors; float16 takes half the space."),
    click.option("--shard-size", type=click.IntRange(1, MAX_SHARD_SIZE), default=MAX_SHARD_SIZE,
                 show_default=True, help="Jobs: number of inputs that are committed together."),
    click.option("--all-files", is_flag=True,
                 help="Jobs: try every file, not only those with an image extension."),
    click.option("--prune", is_flag=True, help="Jobs: drop inputs that no longer exist."),
    click.option("--retry-errors", is_flag=True, help="Jobs: retry inputs that had an error."),
    click.option("--overwrite", is_flag=True, help="Jobs: start over."),
    click.option("--fast-resume", is_flag=True,
                 help="Jobs: trust finished files that have the right size, without reading them."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Jobs: where shards are processed; ray needs the extra [ray]."),
    click.option("--ray-address", metavar="ADDRESS",
                 help="Jobs: address of a Ray cluster. Default: start one on this machine."),
    click.option("--progress", type=click.Choice([AUTO, PLAIN, OFF]), default=AUTO, show_default=True,
                 help="Jobs: auto shows progress on a terminal only; plain prints lines."),
])  # fmt: skip


def check_no_job_options(context: click.Context) -> None:
    """Refuse options of jobs where single images or texts are embedded."""
    for field in fields(JobChoice):
        source = context.get_parameter_source(field.name)
        if source not in (None, click.core.ParameterSource.DEFAULT):
            option = f"--{field.name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for folders and lists; remove it for single images and texts.")


def is_source(argument: str) -> bool:
    """Say whether an argument is a folder, a list of paths, or stdin, rather than an image."""
    if argument == STDIN or Path(argument).is_dir() or argument.lower().endswith(_LIST_SUFFIX):
        return True
    return argument.startswith(_LIST_MARK) and not Path(argument).exists()


def embed_job(choice: ModelChoice, job: JobChoice, arguments: Sequence[str], out: Path, *, as_json: bool) -> int:
    """Embed all inputs that the arguments name into the folder ``out``; return the exit code."""
    if out.suffix == ".npy":
        raise click.UsageError(f"--out is {str(out)!r}, but folders and lists go into a folder; give its name.")
    spec = ModelSpec(choice.model or demo.NAME, replace(choice, threads=None, workers=1).runtime_options())
    facts = spec.job_facts(layout=job.layout, dtype=job.dtype, shard_size=job.shard_size)
    if not choice.model:
        report_demo_model()
    progress = ProgressLine(job.progress)
    policy = Policy(job.prune, job.retry_errors, job.overwrite, job.fast_resume)
    with ExitStack() as opened:
        listing = Listing([_open_source(argument, opened) for argument in arguments], all_files=job.all_files)
        try:
            summary = run_job(out, listing, spec, facts, policy=policy, engine=_engine(choice, job), progress=progress)
        except KeyboardInterrupt:
            click.echo(err=True)  # ends the line of the progress
            warn(f"{out} can be resumed with the same command")
            raise
    progress.finish()
    if progress.missing and not job.prune:
        kept = format_count(progress.missing, "input")
        warn(f"kept, although missing: {kept}; use --prune to drop missing inputs.")
    if listing.left_out:
        files = format_count(listing.left_out, "file")
        warn(f"skipped {files} without an image extension; use --all-files to try them.")
    if as_json:
        print_json({"out": str(out)} | summary)
    else:
        click.echo(_describe(out, summary))
    return SOME_FAILED if summary["errors"] else 0


def _engine(choice: ModelChoice, job: JobChoice) -> Engine:
    if choice.workers is not None and choice.threads is not None:
        raise click.UsageError("In a job each worker is single-threaded; give --workers or --threads, not both.")
    # A GPU is used by one worker, which runs batches.
    on_cpu = set(choice.providers) <= {CPU_PROVIDER}
    workers = choice.workers or choice.threads or (None if on_cpu else 1)
    if job.engine == "ray":
        return RayEngine(job.ray_address, workers)
    if job.ray_address is not None:
        raise click.UsageError("--ray-address is for --engine ray; add --engine ray, or remove the address.")
    return LocalEngine(workers)


def _open_source(argument: str, opened: ExitStack) -> Path | IO[bytes]:
    if argument == STDIN:
        return sys.stdin.buffer
    if Path(argument).is_dir():
        return Path(argument)
    path = Path(argument if Path(argument).exists() else argument.removeprefix(_LIST_MARK))
    try:
        return opened.enter_context(open_list(path))
    except OSError as error:
        raise SiglipOnnxError(
            f"The list {path} cannot be read: {error.strerror}; give a file with one path per line."
        ) from error


def _describe(out: Path, summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{status} {count:,}" for status, count in summary["statuses"].items())
    vectors = f"{format_count(summary['vectors'], 'vector')} of {summary['embedding_dim']}"
    return f"{out}: {vectors} from {format_count(summary['inputs'], 'input')} ({counts})"
