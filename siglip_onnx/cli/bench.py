"""``siglip-onnx bench``: speed and accuracy of a model, and comparisons of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ..bench import tables
from ..bench.choose import Trial, choose
from ..bench.compare import Change, compare_documents
from ..bench.run import QUICK, plan_bundle, run_plan
from ..bench.schema import FORMAT, Document, read_document
from ..bench.timer import Limits
from ..bundle.folder import Bundle, open_bundle
from ..config import TEXT, VISION
from ..demo import IMAGES_PATH
from ..errors import printable
from ..hub.choice import make_choices_folder, write_choice
from ..hub.loading import find_model
from ..system.files import write_atomic
from ..system.threads import available_threads
from ..verify.accuracy import MIN_COSINE
from ..verify.samples import SAMPLE_TEXTS
from .help import OUTPUT, Group, section
from .inputs import find_images, read_texts
from .options import (
    PATH,
    FiniteRange,
    json_option,
    named_model,
    refuse_given,
    sample_texts_option,
    threads_option,
)
from .output import FAILED, format_cosine, format_table, print_json, warn, writing
from .outputs import check_output, json_kind, overwrite_option

MEASUREMENT = json_kind("results of siglip-onnx bench", FORMAT)
MAX_IMAGES = 16
CHOICE = "Choice"
FLOOR, CHOOSE_SECONDS = MIN_COSINE["int8"], 60
NOT_FOR_CHOOSE = {
    "images_dir", "texts_file", "providers", "reference", "threads", "rounds", "quick", "out", "overwrite",
}  # fmt: skip
REMOVED = {
    "csv": "--csv was removed. Use --json, which has every sample.",
    "plots": "--plots was removed: the plots moved from this package to its repository. With --out FILE.json of a "
    "measurement, run there: python benchmarks/plots.py FILE.json FOLDER",
}


class _RunByDefault(Group):
    """Run ``bench MODEL`` as ``bench run MODEL``; a model with the name of a command needs ``run``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(context):
            args = ["run", *args]
        return super().parse_args(context, args)


class _Percent(click.ParamType):  # type: ignore[type-arg] # generic only for type checkers
    """A percentage such as ``10%``, as 0.1."""

    name = "percent"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            number = float(value.removesuffix("%")) / 100
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a percentage; use, for example, 10%.", param, ctx)
        return number


def _refuse(_context: click.Context, option: click.Parameter, value: object) -> None:
    """Say what replaces an option that was removed."""
    if value:
        raise click.UsageError(REMOVED[str(option.name)])


def format_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json`` and ``--markdown``, which the command gets as ``format_``, and refuse ``--csv``."""
    decorated: Callable[..., None] = section(
        OUTPUT,
        click.option("--json", "format_", flag_value="json", help="Print the results as JSON."),
        click.option("--csv", is_flag=True, hidden=True, expose_value=False, callback=_refuse),
        click.option("--markdown", "format_", flag_value="markdown", help="Print the tables as Markdown."),
    )(command)
    return decorated


@click.group(
    cls=_RunByDefault,
    subcommand_metavar="MODEL | COMMAND [ARGS]...",
    examples=("siglip-onnx bench demo --quick", "siglip-onnx bench compare before.json after.json"),
)
def bench() -> None:
    """Measure the speed and the accuracy of a model on this machine.

    siglip-onnx bench MODEL is short for: siglip-onnx bench run MODEL
    """


@bench.command(
    examples=(
        "siglip-onnx bench run demo --quick",
        "siglip-onnx bench run MODEL --variant int8 --variant fp32 --out results.json",
        "siglip-onnx bench run MODEL --choose",
    )
)
@named_model()
@click.option("--images", "images_dir", type=PATH, metavar="FOLDER",
              help=f"Images, of which {MAX_IMAGES} are used. Default: the samples of the demo model.")  # fmt: skip
@sample_texts_option
@click.option(
    "--variant", "variants", multiple=True, metavar="NAME", help="Variant to measure; repeat for more. Default: all."
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Execution provider with which each variant is measured, such as OpenVINO; repeat for more. Default: the CPU.",
)
@click.option(
    "--reference",
    type=PATH,
    metavar="CHECKPOINT",
    help="Checkpoint of the model: also measure PyTorch, and compare with it. Needs the extra [train].",
)
@threads_option
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Number of rounds; in each, every variant runs in a new process.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Measure briefly: 2 rounds of 8 samples or half a second, without workers.")
@section(
    CHOICE,
    click.option(
        "--choose",
        "choosing",
        is_flag=True,
        help="Measure variants, engines, threads and workers on built-in samples, and keep the fastest for "
        "this model on this machine: used where no variant and no provider is given.",
    ),
    click.option(
        "--min-cosine",
        type=FiniteRange(0, 1),
        metavar="COSINE",
        help=f"With --choose, the smallest cosine to fp32 of any sample. Default: {FLOOR}.",
    ),
    click.option(
        "--seconds",
        type=FiniteRange(1, 86_400),
        metavar="N",
        help=f"With --choose, about how long to measure. Default: {CHOOSE_SECONDS}.",
    ),
)
@section(
    OUTPUT, click.option("--out", "-o", type=PATH, metavar="FILE.json", help="Write the results with all samples.")
)
@overwrite_option
@format_options
@click.pass_context
def run(
    context: click.Context,
    model: str,
    images_dir: Path | None,
    texts_file: Path | None,
    variants: tuple[str, ...],
    providers: tuple[str, ...],
    reference: Path | None,
    threads: int | None,
    rounds: int,
    quick: bool,
    choosing: bool,
    min_cosine: float | None,
    seconds: float | None,
    out: Path | None,
    overwrite: bool,
    format_: str | None,
) -> None:
    """Measure every variant of a model, stage by stage.

    Each variant runs in a new process, in rounds of alternating order. The embeddings computed while it is timed are
    compared with those of PyTorch or of fp32. The exit code is 1 if something could not be measured.
    """
    if quick:
        refuse_given(("rounds",), f"--quick measures in {QUICK.rounds} rounds")
    if out is None and not choosing:
        refuse_given(("overwrite",), "Without --out no file is written")
    if out is not None:
        check_output(out, MEASUREMENT, [images_dir, texts_file, reference, model], overwrite=overwrite)
    bundle = open_bundle(find_model(model))
    variants = tuple(map(bundle.choose_variant, variants)) or tuple(bundle.manifest.variants)
    if choosing:
        _check_alone(context)
        _choose(bundle, variants, FLOOR if min_cosine is None else min_cosine, seconds or CHOOSE_SECONDS, format_)
        return
    if min_cosine is not None or seconds is not None:
        raise click.UsageError("--min-cosine and --seconds are for --choose; add it, or leave them out.")
    document = run_plan(
        plan_bundle(
            bundle,
            variants,
            find_images(images_dir or IMAGES_PATH, "--images", at_most=MAX_IMAGES),
            SAMPLE_TEXTS if texts_file is None else read_texts([], texts_file),
            checkpoint=reference,
            threads=threads or available_threads(),
            limits=QUICK if quick else Limits(rounds=rounds),
            providers=providers or ("",),
        ),
        bundle,
        warn,
    )
    click.echo(render(document, format_), nl=False)  # before the file, which may fail, because it took minutes
    if out is not None:
        check_output(out, MEASUREMENT, [], overwrite=overwrite)  # it may have appeared meanwhile
        with writing(out, " Choose another --out."):
            write_atomic(out, document.to_json().encode())
    context.exit(FAILED if document.absent else 0)


@bench.command(
    examples=(
        "siglip-onnx bench compare before.json after.json",
        "siglip-onnx bench compare before.json after.json --fail-if-slower 10%",
    )
)
@click.argument("before", type=PATH, metavar="A.json")
@click.argument("after", type=PATH, metavar="B.json")
@click.option(
    "--fail-if-slower",
    type=_Percent(),
    metavar="PERCENT",
    help="End with exit code 1 if a stage is slower by more than this, such as 10%, with 95 % confidence.",
)
@json_option
@click.pass_context
def compare(context: click.Context, before: Path, after: Path, fail_if_slower: float | None, as_json: bool) -> None:
    """Compare two results.

    Prints the time of B divided by that of A, with 95 % intervals from the rounds and samples of both.
    """
    changes = compare_documents(read_document(before), read_document(after))
    slower = [] if fail_if_slower is None else [change for change in changes if change.slower_than(fail_if_slower)]
    if as_json:
        rows = [asdict(change) | {"certain": change.certain, "too_slow": change in slower} for change in changes]
        print_json({"changes": rows})
    else:
        click.echo(_compare_table(changes))
    for change in slower:
        warn(f"{change.name}, {change.stage}: {change.ratio.value - 1:.0%} slower.")
    context.exit(FAILED if slower else 0)


@bench.command(examples=("siglip-onnx bench report results.json", "siglip-onnx bench report results.json --markdown"))
@click.argument("results", type=PATH, metavar="RESULTS.json")
@format_options
@click.option("--plots", hidden=True, expose_value=False, callback=_refuse)
def report(results: Path, format_: str | None) -> None:
    """Print the tables of results that were written with --out."""
    click.echo(render(read_document(results), format_), nl=False)


def _check_alone(context: click.Context) -> None:
    """Refuse options that ``--choose`` does not have."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in NOT_FOR_CHOOSE
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given or context.params["format_"] == "markdown":
        raise click.UsageError(f"--choose measures in its own way; leave out {', '.join(given) or '--markdown'}.")


def _choose(bundle: Bundle, variants: Sequence[str], min_cosine: float, seconds: float, format_: str | None) -> None:
    """Choose, keep the choice, and print both it and what was measured."""
    make_choices_folder()  # measuring takes a minute
    choice, trials = choose(bundle, variants, min_cosine=min_cosine, seconds=seconds, report=warn)
    path = write_choice(bundle, choice)
    if format_ == "json":
        rows = [asdict(trial) for trial in trials]
        print_json({"choice": asdict(choice), "file": str(path), "min_cosine": min_cosine, "measured": rows})
        return
    header = ("variant", "engine", "threads", "workers", "vision ms", "text ms", "cosine min", "per second", "")
    click.echo(format_table(header, [_trial_row(trial, min_cosine) for trial in trials], left=2))
    click.echo(
        f"\nChosen: {choice.variant} with {choice.provider}, {choice.threads} threads for one image at a time, "
        f"{choice.workers} workers for many. To undo it, delete {printable(path)}"
    )


def _trial_row(trial: Trial, min_cosine: float) -> tuple[str, ...]:
    times = [f"{trial.ms[tower]:.1f}" if tower in trial.ms else "" for tower in (VISION, TEXT)]
    cosine = "" if trial.cosine_min is None else format_cosine(trial.cosine_min)
    rate = "" if trial.images_per_s is None else f"{trial.images_per_s:.1f}"
    is_far = trial.cosine_min is not None and trial.cosine_min < min_cosine
    note = trial.problem or ("below the floor" if is_far else "")
    return (trial.variant, trial.engine.name, str(trial.threads), str(trial.workers), *times, cosine, rate, note)


def render(document: Document, format_: str | None) -> str:
    """Return a document in one of the formats, with a final line end; as tables if ``format_`` is None."""
    if format_ == "json":
        return document.to_json()
    if format_ == "markdown":
        return f"{tables.document_markdown(document)}\n"
    parts = [tables.speed_table(document), tables.stage_table(document)]
    if document.throughput:
        parts.append(tables.throughput_table(document))
    return "\n\n".join([*(format_table(header, rows) for header, rows in parts), tables.explain(document)]) + "\n"


def _compare_table(changes: Sequence[Change]) -> str:
    header = ("", "stage", "B / A", "95 % interval", "", "cosine min A", "B")
    rows = [
        (change.name, change.stage, f"{change.ratio.value:.3f}", f"{change.ratio.low:.3f} - {change.ratio.high:.3f}",
         _verdict(change), format_cosine(change.cosine_before), format_cosine(change.cosine_after))
        for change in changes
    ]  # fmt: skip
    return format_table(header, rows, left=2)


def _verdict(change: Change) -> str:
    if not change.certain:
        return "no certain change"
    return "slower" if change.ratio.value > 1 else "faster"
