"""``siglip-onnx import``: ONNX files that others exported as a model folder."""

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
from .help import OUTPUT, Command, section
from .name_list import NameList, flatten
from .options import NAME, PATH, RenamedOption
from .output import format_cosine, format_size, format_table, print_json, report

if TYPE_CHECKING:
    from ..export.imported import ImportedVariant  # an optional extra


@click.command(
    "import",
    cls=Command,
    examples=(
        "siglip-onnx import onnx-community/siglip2-base-patch16-224-ONNX MODEL",
        "siglip-onnx import FOLDER MODEL --checkpoint CHECKPOINT --variant int8",
    ),
)
@click.argument("source", type=NAME, metavar="FOLDER_OR_NAME")
@click.argument("out", type=PATH)
@click.option("--checkpoint", metavar="FOLDER_OR_NAME",
              help="Checkpoint that the files were made from, for its logit_scale and logit_bias. Default: the one "
                   "that the files name.")  # fmt: skip
@click.option("--variant", "--precision", "precisions", cls=RenamedOption, multiple=True, type=NameList(DEFAULT_ORDER),
              callback=flatten,
              help="Variants to import, separated by commas; the option may be repeated. Default: all that are "
                   "there.")  # fmt: skip
@section(OUTPUT, click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."))
@click.option("--description", default="", help="Sentence for the manifest: what the model was trained for.")
@section(OUTPUT, click.option("--json", "as_json", is_flag=True, help="Print the final table as JSON."))
def import_(
    source: str,
    out: Path,
    checkpoint: str | None,
    precisions: tuple[str, ...],
    overwrite: bool,
    description: str,
    as_json: bool,
) -> None:
    """Turn ONNX files that others exported into a model folder.

    FOLDER_OR_NAME is a folder or a repository on the Hugging Face Hub with separate towers, onnx/vision_model.onnx and
    onnx/text_model.onnx, named as transformers.js names them, such as those of onnx-community and Xenova. The graphs
    are checked and copied, and their variants compared with their fp32. OUT is written completely or not at all. Needs
    the extra [export].
    """
    with extra("export", "import"):
        from ..export.imported import import_bundle  # noqa: PLC0415 - an optional extra

    # SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    variants = import_bundle(
        source,
        out,
        checkpoint=checkpoint,
        precisions=precisions,
        overwrite=overwrite,
        description=description,
        report=report,
    )
    if as_json:
        print_json({"out": str(out), "variants": [_to_document(variant) for variant in variants]})
    else:
        click.echo(_describe(variants))


def _to_document(variant: ImportedVariant) -> dict[str, Any]:
    accuracy = None if variant.accuracy is None else variant.accuracy.to_document()
    return asdict(variant) | {"accuracy": accuracy}


def _describe(variants: Sequence[ImportedVariant]) -> str:
    rows = []
    for variant in variants:
        accuracy = variant.accuracy
        cells = ["", "", ""]
        if accuracy is not None:
            cells = [*map(format_cosine, accuracy.cosines_min.values()), f"{accuracy.logit_error_max:.3f}"]
        rows.append((variant.name, format_size(variant.size_bytes), *cells))
    return format_table(("variant", "size", "min cosine vision", "text", "max logit error"), rows)
