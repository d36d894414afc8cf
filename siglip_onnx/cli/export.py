"""``siglip-onnx export``: a checkpoint as a model folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bundle.manifest import DEFAULT_ORDER
from ..system.extras import extra
from ..verify.accuracy import DEFAULT_MIN_COSINE
from .help import OUTPUT, Command, section
from .inputs import find_images
from .name_list import NameList, flatten
from .options import PATH, FiniteRange, RenamedOption, refuse_given
from .output import format_cosine, format_size, format_table, print_json
from .progress import StepLine

if TYPE_CHECKING:
    from ..export.pipeline import ExportedVariant  # an optional extra

FITTED, WITH_RANGE = frozenset(("int8", "q4", "qdq")), frozenset(("int8", "qdq"))  # variants
MOST_CALIBRATION = 64  # images; more would hardly change the ranges, and all are held as tensors


@click.command(
    cls=Command,
    examples=(
        "siglip-onnx export path/to/siglip2-base-patch16-224 MODEL",
        "siglip-onnx export CHECKPOINT MODEL --variant int8 --calibration photos",
    ),
)
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
@click.option("--variant", "--precision", "precisions", cls=RenamedOption, multiple=True, type=NameList(DEFAULT_ORDER),
              callback=flatten, default=("fp32,int8",), show_default=True,
              help="Variants to write, separated by commas; the option may be repeated.")  # fmt: skip
@click.option(
    "--exporter",
    type=click.Choice(["native", "optimum"]),
    default="native",
    show_default=True,
    help="How the graphs are made; optimum traces the PyTorch model and needs the extra [optimum].",
)
@click.option(
    "--min-cosine",
    type=FiniteRange(0, 1),
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
    type=PATH,
    metavar="FOLDER",
    help="Checkpoint that a LoRA adapter was trained on. Default: the folder that the adapter names, next to it.",
)
@click.option(
    "--tokenizer",
    type=PATH,
    metavar="FILE",
    help="A spiece.model or tokenizer.json, for a checkpoint without one: big_vision's and some of open_clip's.",
)
@click.option(
    "--joined",
    is_flag=True,
    help="Also write each variant as one graph, model.onnx, for the zero-shot pipeline of transformers.js.",
)
@click.option("--tower", type=click.Choice(["vision", "text"]),
              help="Export only this tower. Default: all that the checkpoint has.")  # fmt: skip
@click.option(
    "--features",
    is_flag=True,
    help="Also give last_hidden_state of the vision tower, one vector per patch. A tower without a pooling head gives "
    "only that.",
)
@click.option("--allow-inaccurate", is_flag=True, help="Keep a variant that is below --min-cosine.")
@section(OUTPUT, click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."))
@click.option("--description", "--knows", "description", cls=RenamedOption, default="",
              help="Sentence for the manifest: what the model was trained for.")  # fmt: skip
@section(OUTPUT, click.option("--json", "as_json", is_flag=True, help="Print the final table as JSON."))
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
    joined: bool,
    tower: str | None,
    features: bool,
    allow_inaccurate: bool,
    overwrite: bool,
    description: str,
    as_json: bool,
) -> None:
    """Export a checkpoint to a model folder.

    CHECKPOINT is a folder with the files of a model on the Hugging Face Hub or of open_clip, a folder with a LoRA
    adapter, or an .npz file of big_vision; see docs/export.md. Image classifiers and single towers can be exported too.
    OUT is written completely or not at all. Needs the extra [export].
    """
    with extra("export", "export"):
        from ..export.pipeline import export_bundle  # noqa: PLC0415 - an optional extra

    # SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    line = StepLine()
    if not FITTED.intersection(precisions):
        refuse_given(("calibration",), f"Only {', '.join(sorted(FITTED))} are calibrated")
    if not WITH_RANGE.intersection(precisions):
        refuse_given(("reduce_range",), f"Only {' and '.join(sorted(WITH_RANGE))} have int8 weights")
    images = None
    if calibration is not None:
        images = find_images(calibration, "--calibration", at_most=MOST_CALIBRATION)
    variants = export_bundle(
        checkpoint,
        out,
        precisions=precisions,
        exporter=exporter,
        min_cosine=min_cosine,
        allow_inaccurate=allow_inaccurate,
        calibration_images=images,
        reduce_range=reduce_range,
        overwrite=overwrite,
        description=description,
        base=base,
        tokenizer=tokenizer,
        joined=joined,
        tower=tower,
        features=features,
        report=line.step,
        progress=line.progress,
    )
    line.step(f"Done: {out}")
    if as_json:
        print_json({"out": str(out), "variants": [_to_document(variant) for variant in variants]})
    else:
        click.echo(_describe(variants))


def _to_document(variant: ExportedVariant) -> dict[str, Any]:
    return {key: value for key, value in asdict(variant).items() if key != "accuracy"} | {
        "accuracy": variant.accuracy.to_document()
    }


def _describe(variants: Sequence[ExportedVariant]) -> str:
    columns = list(variants[0].accuracy.cosines_min)
    agreement = any(variant.accuracy.label_agreement is not None for variant in variants)
    header = ["variant", "size", "seconds", f"min cosine {columns[0]}", *columns[1:]]
    header += ["max logit error"] if variants[0].accuracy.logit_error_max is not None else []
    header += ["same labels"] if agreement else []
    rows = []
    for variant in variants:
        accuracy = variant.accuracy
        row = [variant.name, format_size(variant.size_bytes), f"{variant.seconds:.1f}"]
        row += [format_cosine(worst) for worst in accuracy.cosines_min.values()]
        row += [] if accuracy.logit_error_max is None else [f"{accuracy.logit_error_max:.3f}"]
        row += [] if accuracy.label_agreement is None else [f"{accuracy.label_agreement:.1%}"]
        rows.append(row)
    return format_table(header, rows)
