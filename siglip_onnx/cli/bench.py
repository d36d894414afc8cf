"""``siglip-onnx bench``: speed with fidelity beside it, and two results beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BenchmarkError, MissingExtraError
from .options import find_images, read_texts, to_json

if TYPE_CHECKING:
    from ..bench.compare import Change
    from ..bench.schema import Document

MOST_PICTURES = 16
SLOWER = 1


class _RunByDefault(click.Group):
    """``bench MODEL`` is ``bench run MODEL``; a model that is called as a command is measured with ``run``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(context):
            args = ["run", *args]
        return super().parse_args(context, args)


class _Percent(click.ParamType):  # type: ignore[type-arg] # generic only for type checkers
    """``10%`` as 0.1."""

    name = "percent"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return float(value.removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage; write for example 10%.", param, ctx)


def _refuse_csv(_context: click.Context, _param: click.Parameter, value: bool) -> None:
    """Say what replaces an option that was removed."""
    if value:
        raise click.UsageError("--csv was removed. Use --json, which has every sample.")


@click.group(cls=_RunByDefault, subcommand_metavar="MODEL | COMMAND [ARGS]...")
def bench() -> None:
    """Measure MODEL on this machine: siglip-onnx bench MODEL is short for bench run MODEL."""


@bench.command()
@click.argument("model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL")
@click.option(
    "--images",
    "images_dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help=f"Pictures, {MOST_PICTURES} of which are used; the demo's samples if not given.",
)
@click.option("--texts", type=click.Path(path_type=Path), help="A file with one text per line; built-in otherwise.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="Repeat for more; all if not given.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="The checkpoint, to measure PyTorch too and compare with it; needs torch and transformers.",
)
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads; all this process may use.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Fresh processes for each.")
@click.option("--quick", is_flag=True, help="A glance: 2 rounds of 8 samples or half a second; no workers.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), metavar="FILE.json", help="Keep results with all samples."
)
@click.option("--json", "format_", flag_value="json", help="Print the results as JSON.")
@click.option("--csv", is_flag=True, hidden=True, expose_value=False, callback=_refuse_csv)
@click.option("--markdown", "format_", flag_value="markdown", help="Print the tables as Markdown.")
@click.pass_context
def run(
    context: click.Context,
    model: str,
    images_dir: Path | None,
    texts: Path | None,
    variants: tuple[str, ...],
    reference: Path | None,
    threads: int | None,
    rounds: int,
    quick: bool,
    out: Path | None,
    format_: str | None,
) -> None:
    """Time every variant of MODEL, stage by stage, and say how near each is to PyTorch or to fp32.

    Each variant runs in a fresh process, in rounds of alternating order; what it answered while it was timed is
    compared. Ends with exit code 1 if something could not be measured.
    """  # fmt: skip
    from ..bench.run import QUICK, plan_bundle, run_plan  # noqa: PLC0415 - keeps --help fast
    from ..bench.timer import Limits  # noqa: PLC0415
    from ..bundle.folder import open_bundle  # noqa: PLC0415
    from ..demo import IMAGES_PATH  # noqa: PLC0415
    from ..hub.loading import find_model  # noqa: PLC0415
    from ..system.threads import available_threads  # noqa: PLC0415
    from ..verify.samples import SAMPLE_TEXTS  # noqa: PLC0415

    bundle = open_bundle(find_model(model))
    document = run_plan(
        plan_bundle(
            bundle,
            [bundle.choose_variant(name) for name in variants] or list(bundle.manifest.variants),
            find_images(images_dir or IMAGES_PATH, "--images", at_most=MOST_PICTURES),
            SAMPLE_TEXTS if texts is None else read_texts([], texts),
            checkpoint=reference,
            threads=threads or available_threads(),
            limits=QUICK if quick else Limits(rounds=rounds),
        ),
        bundle,
        lambda line: click.echo(f"siglip-onnx: {line}", err=True),
    )
    click.echo(render(document, format_), nl=False)  # first: it took minutes, whatever becomes of the file
    if out is not None:
        _keep(document, out)
    context.exit(1 if document.absent else 0)


def _keep(document: Document, out: Path) -> None:
    from ..system.files import write_atomic  # noqa: PLC0415 - keeps --help fast

    try:
        write_atomic(out, document.to_json().encode())
    except OSError as error:
        raise BenchmarkError(f"{out} cannot be written: {error.strerror or error}. Choose another --out.") from error


@bench.command()
@click.argument("before", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("after", type=click.Path(path_type=Path), metavar="B.json")
@click.option(
    "--fail-if-slower",
    type=_Percent(),
    metavar="PERCENT",
    help="End with exit code 1 if a stage surely became slower, and by more than this: 10%.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def compare(context: click.Context, before: Path, after: Path, fail_if_slower: float | None, as_json: bool) -> None:
    """Say how many times as long B takes as A, with 95 % intervals from the rounds and samples of both."""
    from ..bench.compare import compare_documents  # noqa: PLC0415 - keeps --help fast
    from ..bench.schema import read_document  # noqa: PLC0415

    changes = compare_documents(read_document(before), read_document(after))
    slower = [] if fail_if_slower is None else [change for change in changes if change.slower_than(fail_if_slower)]
    click.echo(_compare_json(changes, slower) if as_json else _compare_table(changes))
    for change in slower:
        click.echo(f"siglip-onnx: {change.name}, {change.stage}: {change.ratio.value - 1:.0%} slower.", err=True)
    context.exit(SLOWER if slower else 0)


@bench.command()
@click.argument("results", type=click.Path(path_type=Path), metavar="RESULTS.json")
@click.option("--json", "format_", flag_value="json", help="Print the results as JSON.")
@click.option("--csv", is_flag=True, hidden=True, expose_value=False, callback=_refuse_csv)
@click.option("--markdown", "format_", flag_value="markdown", help="Print the tables as Markdown.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write plots as PNG and SVG; needs siglip-onnx[bench].",
)
def report(results: Path, format_: str | None, plots: Path | None) -> None:
    """Print the tables of results that were kept, or draw them."""
    from ..bench.schema import read_document  # noqa: PLC0415 - keeps --help fast

    document = read_document(results)
    if plots is not None:
        draw(document, plots)
    click.echo(render(document, format_), nl=False)


def draw(document: Document, folder: Path) -> None:
    """Write every plot of a document.

    Raises:
        MissingExtraError: matplotlib is not installed.
        BenchmarkError: the folder cannot be written.
    """
    try:
        from ..bench.plots import draw_plots  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingExtraError(
            f'Plots need {error.name}, which is not installed. Run: pip install "siglip-onnx[bench]"'
        ) from error
    try:
        paths = draw_plots(document, folder)
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be written: {error.strerror or error}. Choose another one.") from error
    for path in paths:
        click.echo(f"siglip-onnx: wrote {path}", err=True)


def render(document: Document, format_: str | None) -> str:
    """Return a document as it is printed, with its line end."""
    from ..bench import tables  # noqa: PLC0415 - keeps --help fast
    from .table import format_table  # noqa: PLC0415

    if format_ == "json":
        return document.to_json()
    if format_ == "markdown":
        return f"{tables.document_markdown(document)}\n"
    parts = [tables.speed_table(document), tables.stage_table(document)]
    if document.throughput:
        parts.append(tables.throughput_table(document))
    return "\n\n".join([*(format_table(header, rows) for header, rows in parts), tables.explain(document)]) + "\n"


def _compare_table(changes: list[Change]) -> str:
    from .table import format_table  # noqa: PLC0415 - keeps --help fast

    header = ("", "stage", "B / A", "95 % interval", "", "cosine min A", "B")
    rows = [
        (change.name, change.stage, f"{change.ratio.value:.3f}", f"{change.ratio.low:.3f} - {change.ratio.high:.3f}",
         _verdict(change), f"{change.cosine_before:.5f}", f"{change.cosine_after:.5f}")
        for change in changes
    ]  # fmt: skip
    return format_table(header, rows, left=2)


def _verdict(change: Change) -> str:
    if not change.certain:
        return "no sure change"
    return "slower" if change.ratio.value > 1 else "faster"


def _compare_json(changes: list[Change], slower: list[Change]) -> str:
    from dataclasses import asdict  # noqa: PLC0415 - keeps --help fast

    return to_json(
        {"changes": [asdict(change) | {"certain": change.certain, "too_slow": change in slower} for change in changes]},
        indent=2,
    )
