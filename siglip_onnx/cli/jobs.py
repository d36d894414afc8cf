"""The part of ``siglip-onnx embed`` that does folders and lists of any size."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import click

from ..errors import SiglipOnnxError
from .options import SOME_FAILED, ModelChoice, to_json
from .progress import AUTO, OFF, PLAIN, Progress

STDIN = "-"
_LIST_SUFFIX, _LIST_MARK = ".txt", "@"


@dataclass(frozen=True)
class JobChoice:
    """What the options for folders and lists say."""

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


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of :class:`JobChoice`, which the command gets as ``job``; None if none was given."""

    @functools.wraps(command)
    def with_job(*args: Any, **options: Any) -> None:
        job = JobChoice(**{field.name: options.pop(field.name) for field in fields(JobChoice)})
        command(*args, job=job, **options)

    for option in reversed(
        [
            click.option("--layout", type=click.Choice(["npy", "clip-retrieval", "parquet"]), default="npy",
                         show_default=True, help="Jobs: how vectors are stored; the latter two need [parquet]."),
            click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
                         help="Jobs: float16 takes half the room."),
            click.option("--shard-size", type=click.IntRange(1, 1000), default=1000, show_default=True,
                         help="Jobs: inputs that are committed together."),
            click.option("--all-files", is_flag=True, help="Jobs: try every file, not only those named as pictures."),
            click.option("--prune", is_flag=True, help="Jobs: drop inputs that are no longer there."),
            click.option("--retry-errors", is_flag=True, help="Jobs: try again what had an error."),
            click.option("--overwrite", is_flag=True, help="Jobs: begin anew."),
            click.option("--fast-resume", is_flag=True, help="Jobs: trust files of the right size unread."),
            click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                         help="Jobs: who runs the shards; ray needs [ray]."),
            click.option("--ray-address", metavar="ADDRESS", help="Jobs: the Ray cluster; else one on this machine."),
            click.option("--progress", type=click.Choice([AUTO, PLAIN, OFF]), default=AUTO, show_default=True,
                         help="Jobs: auto shows it on a terminal only; plain prints lines."),
        ]
    ):  # fmt: skip
        with_job = option(with_job)
    return with_job


def check_no_job_options(context: click.Context) -> None:
    """Refuse options of jobs where single pictures or texts are embedded."""
    for field in fields(JobChoice):
        source = context.get_parameter_source(field.name)
        if source not in (None, click.core.ParameterSource.DEFAULT):
            option = f"--{field.name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for folders and lists; leave it out for single pictures and texts.")


def is_source(argument: str) -> bool:
    """Say whether an argument is a folder, a list of paths, or stdin, rather than a picture."""
    if argument == STDIN or Path(argument).is_dir() or argument.lower().endswith(_LIST_SUFFIX):
        return True
    return argument.startswith(_LIST_MARK) and not Path(argument).exists()


def embed_job(choice: ModelChoice, job: JobChoice, arguments: Sequence[str], out: Path, *, as_json: bool) -> int:
    """Embed all that the arguments name into the folder ``out``; return the exit code."""
    from ..bulk.listing import Listing  # noqa: PLC0415 - keeps --help fast
    from ..bulk.run import Policy, run_job  # noqa: PLC0415

    if out.suffix == ".npy":
        raise click.UsageError(f"--out is {str(out)!r}, but folders and lists go into a folder; give its name.")
    spec = _model_spec(choice)
    facts = spec.job_facts(layout=job.layout, dtype=job.dtype, shard_size=job.shard_size)
    if not choice.model:
        click.echo(f"Using the demo model, which knows only {spec.open().bundle.manifest.knows}.", err=True)
    progress = Progress(job.progress)
    policy = Policy(job.prune, job.retry_errors, job.overwrite, job.fast_resume)
    with ExitStack() as opened:
        listing = Listing([_open_source(argument, opened) for argument in arguments], all_files=job.all_files)
        try:
            summary = run_job(out, listing, spec, facts, policy=policy, engine=_engine(choice, job), progress=progress)
        except KeyboardInterrupt:
            click.echo(f"\nsiglip-onnx: {out} can be resumed with the same command", err=True)
            raise
    progress.finish()
    if progress.missing and not job.prune:
        missing = _count(progress.missing, "input")
        click.echo(f"siglip-onnx: missing, but kept: {missing}; --prune drops them.", err=True)
    if listing.left_out:
        files = _count(listing.left_out, "file")
        click.echo(f"siglip-onnx: left out: {files} not named as pictures are; --all-files tries all.", err=True)
    click.echo(to_json({"out": str(out)} | summary, indent=2) if as_json else _describe(out, summary))
    return SOME_FAILED if summary["errors"] else 0


def _model_spec(choice: ModelChoice) -> Any:
    from ..bulk.spec import ModelSpec  # noqa: PLC0415 - keeps --help fast
    from ..demo import NAME as DEMO  # noqa: PLC0415

    return ModelSpec(choice.model or DEMO, replace(choice, threads=None, workers=1).runtime_options())


def _engine(choice: ModelChoice, job: JobChoice) -> Any:
    from ..bulk.run import LocalEngine  # noqa: PLC0415 - keeps --help fast

    if choice.workers is not None and choice.threads is not None:
        raise click.UsageError("In a job each worker is one thread; give --workers or --threads, not both.")
    # A GPU serves one worker, which gives it batches.
    on_cpu = set(choice.providers) <= {"CPUExecutionProvider"}
    workers = choice.workers or choice.threads or (None if on_cpu else 1)
    if job.engine == "ray":
        from ..bulk.ray_engine import RayEngine  # noqa: PLC0415 - an optional package

        return RayEngine(job.ray_address, workers)
    if job.ray_address is not None:
        raise click.UsageError("--ray-address is for --engine ray; add it, or leave the address out.")
    return LocalEngine(workers)


def _open_source(argument: str, opened: ExitStack) -> Path | IO[bytes]:
    if argument == STDIN:
        return sys.stdin.buffer
    if Path(argument).is_dir():
        return Path(argument)
    path = Path(argument if Path(argument).exists() else argument.removeprefix(_LIST_MARK))
    try:
        return opened.enter_context(path.open("rb"))
    except OSError as error:
        raise SiglipOnnxError(
            f"The list {path} cannot be read: {error.strerror}; give a file of one path per line."
        ) from error


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _describe(out: Path, summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{status} {count:,}" for status, count in summary["statuses"].items())
    vectors = f"{summary['vectors']:,} vectors of {summary['embedding_dim']}"
    return f"{out}: {vectors} from {summary['inputs']:,} inputs ({counts})"
