"""``siglip-onnx export``: a checkpoint as a model folder."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..system.extras import extra
from .inputs import find_images
from .options import DEFAULT_MIN_COSINE, PATH
from .output import format_cosine, format_size, format_table, print_json, report

if TYPE_CHECKING:
    from ..export.pipeline import ExportedVariant  # an optional extra

MOST_CALIBRATION = 64  # images; more would hardly change the ranges, and all are held as tensors


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "int8", "fp16", "q4"]),
              default=("fp32", "int8"), show_default=True, help="Variant to write; repeat for more.")  # fmt: skip
@click.option(
    "--exporter",
    type=click.Choice(["native", "optimum"]),
    default="native",
    show_default=True,
    help="How the graphs are made; optimum traces the PyTorch model and needs the extra [optimum].",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    help="Refuse a variant whose sample embeddings have a smaller cosine to fp32; int8 keeps as many layers in fp32 as "
    f"that takes. {DEFAULT_MIN_COSINE}.",
)
@click.option(
    "--calibration",
    type=PATH,
    metavar="FOLDER",
    help=f"Images on which int8 is calibrated, of which {MOST_CALIBRATION} are used. Default: built-in ones.",
)
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Keep int8 weights within 7 bits: faster on x86 CPUs without VNNI, less exact on all CPUs.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Checkpoint that a LoRA adapter was trained on. Default: the folder that the adapter names, next to it.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A spiece.model or tokenizer.json, for a checkpoint without one: big_vision's and some of open_clip's.",
)
@click.option("--allow-inaccurate", is_flag=True, help="Keep a variant that is below --min-cosine.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--description", "--knows", "description", default="",
              help="Sentence for the manifest: what the model was trained for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the final table as JSON.")
def export(
    checkpoint: Path,
    out: Path,
    precisions: tuple[str, ...],
    exporter: str,
    min_cosine: float | None,
    calibration: Path | None,
    reduce_range: bool,
    base: Path | None,
    tokenizer: Path | None,
    allow_inaccurate: bool,
    overwrite: bool,
    description: str,
    as_json: bool,
) -> None:
    """Export a checkpoint to a model folder.

    CHECKPOINT is a folder with the files of a model on the Hugging Face Hub or of open_clip, a folder with a LoRA
    adapter, or an .npz file of big_vision; see docs/export.md. OUT is written completely or not at all. Needs the extra
    [export].
    """
    with extra("export", "export"):
        from ..export.pipeline import export_bundle  # noqa: PLC0415 - an optional extra

    # SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    start = time.perf_counter()

    def report_step(step: str) -> None:
        report(f"[{time.perf_counter() - start:6.1f} s] {step}")

    images = None
    if calibration is not None:
        images = find_images(calibration, "--calibration", at_most=MOST_CALIBRATION)
    variants = export_bundle(
        checkpoint,
        out,
        precisions=list(dict.fromkeys(precisions)),
        exporter=exporter,
        min_cosine=min_cosine,
        allow_inaccurate=allow_inaccurate,
        calibration_images=images,
        reduce_range=reduce_range,
        overwrite=overwrite,
        description=description,
        base=base,
        tokenizer=tokenizer,
        report=report_step,
    )
    report_step(f"Done: {out}")
    if as_json:
        print_json({"out": str(out), "variants": [asdict(variant) for variant in variants]})
    else:
        click.echo(_describe(variants))


def _describe(variants: Sequence[ExportedVariant]) -> str:
    header = ("variant", "size", "seconds", "min cosine vision", "text", "max logit error")
    rows = [
        (
            variant.name,
            format_size(variant.size_bytes),
            f"{variant.seconds:.1f}",
            format_cosine(variant.accuracy.vision_cosine_min),
            format_cosine(variant.accuracy.text_cosine_min),
            f"{variant.accuracy.logit_error_max:.3f}",
        )
        for variant in variants
    ]
    return format_table(header, rows)
