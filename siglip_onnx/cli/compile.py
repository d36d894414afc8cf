"""``siglip-onnx compile``: a vision tower and labels in one ONNX file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ..classifier import FACTS, FineTunedClassifier
from ..hub.loading import load
from ..system.extras import extra
from .help import MODEL, Command, section
from .inputs import read_texts
from .options import (
    PATH,
    RenamedOption,
    calibration_option,
    json_option,
    named_model,
    refuse_given,
    template_option,
    variant_option,
)
from .output import format_count, format_size, print_json, show
from .outputs import Kind, check_output, overwrite_option

# An entry of ONNX's metadata: the key after its tag and length, then the tag of the value.
_ENTRY = b"\x0a" + bytes([len(FACTS)]) + FACTS.encode() + b"\x12"
CLASSIFIER = Kind("a compiled classifier", b"\x08", _ENTRY, everywhere=True)


@click.command(
    "compile",
    cls=Command,
    examples=(
        "siglip-onnx compile demo --texts-file labels.txt -o classifier.onnx",
        'siglip-onnx compile MODEL --texts-file labels.txt --template "a {}" -o c.onnx',
    ),
)
@named_model()
@click.option("--texts-file", "--labels", "labels", cls=RenamedOption, type=PATH, metavar="FILE",
              help="UTF-8 file with one label per line; needed unless the model is a classifier.")  # fmt: skip
@template_option
@section(MODEL, variant_option)
@click.option("--logit-bias", type=float, help="Replace the bias of the checkpoint.")
@calibration_option
@click.option("--uint8", is_flag=True, help="Make a graph that takes raw pixels, u8 (N, height, width, 3).")
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE.onnx", help="The file to write.")
@overwrite_option
@json_option
def compile_(
    model: str,
    labels: Path | None,
    templates: tuple[str, ...],
    variant: str | None,
    logit_bias: float | None,
    calibration: Path | None,
    uint8: bool,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Combine a vision tower and labels in one ONNX file.

    The file runs with onnxruntime alone (set ORT_DISABLE_TELEMETRY=1), or with: siglip-onnx classify IMAGE --model
    FILE. Needs the extra [export].
    """
    with extra("export", "compile"):
        from ..export.compile import compile_classifier  # noqa: PLC0415 - an optional extra
    check_output(out, CLASSIFIER, [labels, calibration, model], overwrite=overwrite)
    texts = read_texts([], labels)
    template = templates[0] if len(templates) == 1 else templates
    opened = load(model, variant=variant, calibration=calibration)
    if labels is None and not isinstance(opened, FineTunedClassifier):
        raise click.UsageError(f"{model} has no labels of its own; give --texts-file FILE.")
    if isinstance(opened, FineTunedClassifier):
        refuse_given(("calibration",), f"{model} is a classifier, which has labels and biases of its own")
    check = partial(check_output, out, CLASSIFIER, [], overwrite=overwrite)  # it may have appeared meanwhile
    compile_classifier(opened, texts, out, template=template, logit_bias=logit_bias, uint8=uint8, check=check)
    num_labels = len(opened.labels) if isinstance(opened, FineTunedClassifier) else len(texts)
    size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "labels": num_labels, "size_bytes": size})
    else:
        show(f"{out}: {format_count(num_labels, 'label')}, {format_size(size)}")
