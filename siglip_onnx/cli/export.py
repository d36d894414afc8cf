"""``siglip-onnx export``: from a checkpoint to a bundle."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import MissingExtraError
from .options import DEFAULT_MIN_COSINE, find_images, human_size, to_json

if TYPE_CHECKING:
    from ..export.pipeline import ExportedVariant


MOST_CALIBRATION = 64  # pictures; more would change the ranges little and are all held as tensors


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "int8", "fp16", "q4"]),
    default=("fp32", "int8"),
    show_default=True,
    help="Variant to write; repeat for more.",
)
@click.option(
    "--exporter",
    type=click.Choice(["native", "optimum"]),
    default="native",
    show_default=True,
    help="What makes the graphs; optimum traces the PyTorch model and needs siglip-onnx[optimum].",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    help=f"Refuse a variant whose sample embeddings are farther from fp32; {DEFAULT_MIN_COSINE} if not given. int8 "
    "leaves as many layers in fp32 as that takes.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Pictures that int8 is fitted to; built-in ones if not given.",
)
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Keep int8 weights within 7 bits: faster on x86 CPUs without VNNI, less exact on all.",
)
@click.option("--allow-inaccurate", is_flag=True, help="Keep a variant below --min-cosine.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--knows", default="", help="A sentence for the manifest: what the model was trained for.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as JSON.")
def export(
    checkpoint: Path,
    out: Path,
    precisions: tuple[str, ...],
    exporter: str,
    min_cosine: float | None,
    calibration: Path | None,
    reduce_range: bool,
    allow_inaccurate: bool,
    overwrite: bool,
    knows: str,
    as_json: bool,
) -> None:
    """Turn the folder CHECKPOINT (as on the Hugging Face Hub) into the model folder OUT.

    Needs the extra: pip install "siglip-onnx[export]". OUT appears whole or not at all.
    """  # fmt: skip
    try:
        from ..export.pipeline import export_bundle  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingExtraError(
            f'Export needs a package that is not installed ({error.name}). Run: pip install "siglip-onnx[export]"'
        ) from error

    # A plain kill must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    began = time.perf_counter()

    def report(step: str) -> None:
        click.echo(f"[{time.perf_counter() - began:6.1f} s] {step}", err=True)

    pictures = None
    if calibration is not None:
        pictures = find_images(calibration, "--calibration", at_most=MOST_CALIBRATION)
    variants = export_bundle(
        checkpoint,
        out,
        precisions=list(dict.fromkeys(precisions)),
        exporter=exporter,
        min_cosine=0.0 if allow_inaccurate else min_cosine,
        calibration_images=pictures,
        reduce_range=reduce_range,
        overwrite=overwrite,
        knows=knows,
        report=report,
    )
    report(f"Done: {out}")
    if as_json:
        rows = [asdict(variant) for variant in variants]
        click.echo(to_json({"out": str(out), "variants": rows}, indent=2))
    else:
        click.echo(_describe(variants))


def _describe(variants: list[ExportedVariant]) -> str:
    from .table import format_table  # noqa: PLC0415 - keeps --help fast

    header = ("variant", "size", "seconds", "min cosine vision", "text", "max logit error")
    rows = [
        (
            variant.name,
            human_size(variant.size_bytes),
            f"{variant.seconds:.1f}",
            f"{variant.accuracy.vision_cosine_min:.5f}",
            f"{variant.accuracy.text_cosine_min:.5f}",
            f"{variant.accuracy.logit_error_max:.3f}",
        )
        for variant in variants
    ]
    return format_table(header, rows)
