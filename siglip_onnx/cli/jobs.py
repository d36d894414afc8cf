"""The part of ``siglip-onnx embed`` that processes folders and lists of any size."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import click

from .. import demo
from ..bulk.index import is_job
from ..bulk.job import open_job
from ..bulk.listing import Filter, Listing, is_heic
from ..bulk.ray_engine import RayEngine
from ..bulk.records import MAX_SHARD_SIZE, JobFacts, newly_allowed
from ..bulk.run import Engine, LocalEngine, Policy, read_errors, run_job
from ..bulk.spec import ModelSpec
from ..errors import SiglipOnnxError
from ..session import runs_on_cpu
from ..system.extras import install_command, is_installed
from ..system.files import open_list
from .help import section
from .inputs import LIST_MARK, STDIN, report_left_out
from .options import ModelChoice, collect, refuse_given
from .output import SOME_FAILED, format_count, print_json, report_demo_model, show, warn
from .progress import AUTO, OFF, PLAIN, ProgressLine

_LIST_SUFFIX = ".txt"


@dataclass(frozen=True)
class JobChoice:
    """The values of the options that :func:`job_options` adds."""

    layout: str
    dtype: str
    shard_size: int
    all_files: bool
    exclude: Sequence[str]
    hidden: bool
    follow_links: bool
    prune: bool
    retry_errors: bool
    overwrite: bool
    fast_resume: bool
    engine: str
    ray_address: str | None
    progress: str


job_options = section("Folders and lists", collect(JobChoice, "job", [
    click.option("--layout", type=click.Choice(["npy", "clip-retrieval", "parquet"]), default="npy",
                 show_default=True, help="How vectors are stored; the latter two need the extra "
                                         "[parquet]."),
    click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
                 help="Type of the stored vectors; float16 takes half the space."),
    click.option("--shard-size", type=click.IntRange(1, MAX_SHARD_SIZE), default=MAX_SHARD_SIZE,
                 show_default=True, help="Number of inputs that are committed together."),
    click.option("--all-files", is_flag=True,
                 help="Try every file, not only those with an image extension."),
    click.option("--exclude", multiple=True, metavar="GLOB",
                 help="Leave out files and folders of such names, or of such paths below FOLDER if GLOB contains "
                      "a slash; repeat for more."),
    click.option("--hidden", is_flag=True,
                 help="Also take hidden files and folders, trash, thumbnails and snapshots."),
    click.option("--follow-links", is_flag=True, help="Also list folders that links lead to, each once."),
    click.option("--prune", is_flag=True, help="Drop inputs that no longer exist."),
    click.option("--retry-errors", is_flag=True, help="Retry inputs that had an error."),
    click.option("--overwrite", is_flag=True, help="Start over; replace existing files."),
    click.option("--fast-resume", is_flag=True,
                 help="Trust finished files that have the right size, without reading them."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where shards are processed; ray needs the extra [ray]."),
    click.option("--ray-address", metavar="ADDRESS",
                 help="Address of a Ray cluster. Default: start one on this machine."),
    click.option("--progress", type=click.Choice([AUTO, PLAIN, OFF]), default=AUTO, show_default=True,
                 help="auto shows progress on a terminal only; plain prints lines."),
]))  # fmt: skip


def check_no_job_options(context: click.Context) -> None:
    """Refuse options of jobs where single images or texts are embedded."""
    for field in fields(JobChoice):
        if field.name == "overwrite":  # of existing files, here
            continue
        source = context.get_parameter_source(field.name)
        if source not in (None, click.core.ParameterSource.DEFAULT):
            option = f"--{field.name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for folders and lists; remove it for single images and texts.")


def is_source(argument: str) -> bool:
    """Say whether an argument is a folder, a list of paths, or stdin, rather than an image."""
    # os.path, because methods of Path raise an error for a name that is too long.
    if argument == STDIN or os.path.isdir(argument) or argument.lower().endswith(_LIST_SUFFIX):  # noqa: PTH112
        return True
    return argument.startswith(LIST_MARK) and not os.path.exists(argument)  # noqa: PTH110


def embed_job(choice: ModelChoice, job: JobChoice, arguments: Sequence[str], out: Path, *, as_json: bool) -> int:
    """Embed all inputs that the arguments name into the folder ``out``; return the exit code."""
    if out.suffix == ".npy":
        raise click.UsageError(f"--out is {str(out)!r}, but folders and lists go into a folder; give its name.")
    if not any(map(os.path.isdir, arguments)):
        refuse_given(("all_files", "exclude", "hidden", "follow_links"), "A list says itself which files it takes")
    progress = ProgressLine(job.progress)
    policy = Policy(job.prune, job.retry_errors, job.overwrite, job.fast_resume)
    with ExitStack() as opened:
        # Before the model, which may have to be downloaded.
        entries = Filter(job.all_files, job.hidden, job.exclude, job.follow_links)
        listing = Listing([_open_source(argument, opened) for argument in arguments], entries=entries)
        earlier = open_job(out).facts if is_job(out) and not job.overwrite else None
        spec = make_spec(choose_limits(earlier, choice) if earlier else choice)
        facts = spec.job_facts(layout=job.layout, dtype=job.dtype, shard_size=job.shard_size)
        if not choice.model:
            report_demo_model()
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
    if progress.unlisted:
        warn(
            f"kept, although not among the inputs this time: {format_count(progress.unlisted, 'file')}; to leave them "
            "out, choose another --out."
        )
    report_left_out(listing)
    _report_missing_extra(out, summary)
    if earlier and not job.retry_errors and newly_allowed(earlier, spec.options) & summary["statuses"].keys():
        warn("to try the images again that were refused by the limits of earlier runs, add --retry-errors.")
    if truncated := summary.get("truncated_vectors"):
        images = format_count(truncated, "image")
        warn(f'embedded, although their files end early: {images}, marked "truncated" in {out / "rows"}.')
    if as_json:
        print_json({"out": str(out)} | summary)
    else:
        show(_describe(out, summary))
    return SOME_FAILED if summary["errors"] else 0


def _report_missing_extra(out: Path, summary: dict[str, Any]) -> None:
    """Say which extra reads the HEIC images that could not be read without it."""
    if not summary["statuses"].get("unsupported") or is_installed("heic"):
        return
    unread = sum(error["status"] == "unsupported" and is_heic(error["path"]) for error in read_errors(out))
    if unread:
        images = format_count(unread, "HEIC image")
        command = install_command("heic")
        warn(f"{images} could not be read. Run: {command}; then run this command again with --retry-errors.")


def choose_limits(facts: JobFacts, given: ModelChoice) -> ModelChoice:
    """Return a choice with the limits with which a job was begun, for those that the user left open."""
    megapixels = given.max_megapixels
    if megapixels is None and facts.max_pixels is not None:
        megapixels = facts.max_pixels / 1e6
    return replace(given, max_megapixels=megapixels, allow_truncated=given.allow_truncated or facts.allow_truncated)


def make_spec(choice: ModelChoice) -> ModelSpec:
    """Return the model that each worker of a job opens: the chosen one, or the demo model."""
    options = replace(choice, threads=None, workers=1).runtime_options()
    isolate = choice.isolate_decoding is not False
    return ModelSpec(choice.model or demo.NAME, options, isolate, offline=choice.offline)


def count_workers(choice: ModelChoice) -> int | None:
    """Return the number of worker processes, None for one per CPU.

    Raises:
        click.UsageError: both workers and threads are given.
    """
    if choice.workers is not None and choice.threads is not None:
        raise click.UsageError("In a job each worker is single-threaded; give --workers or --threads, not both.")
    # A GPU is used by one worker, which runs batches.
    return choice.workers or choice.threads or (None if runs_on_cpu(choice.providers) else 1)


def _engine(choice: ModelChoice, job: JobChoice) -> Engine:
    workers = count_workers(choice)
    if job.engine == "ray":
        return RayEngine(job.ray_address, workers)
    if job.ray_address is not None:
        raise click.UsageError("--ray-address is for --engine ray; add --engine ray, or remove the address.")
    return LocalEngine(workers)


def _open_source(argument: str, opened: ExitStack) -> Path | IO[bytes]:
    if argument == STDIN:
        return sys.stdin.buffer
    if os.path.isdir(argument):  # noqa: PTH112
        return Path(argument)
    path = Path(argument if os.path.exists(argument) else argument.removeprefix(LIST_MARK))  # noqa: PTH110
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
