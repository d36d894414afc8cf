"""``siglip-onnx compile``: a vision tower and labels in one ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from ..hub.loading import load
from ..system.extras import extra
from .inputs import read_texts
from .options import PATH, json_option, model_argument, template_option, variant_option
from .output import format_count, format_size, print_json


@click.command("compile")
@model_argument
@click.option("--labels", type=PATH, required=True, metavar="FILE", help="UTF-8 file with one label per line.")
@template_option
@variant_option
@click.option("--logit-bias", type=float, help="Replace the bias of the checkpoint.")
@click.option("--uint8", is_flag=True, help="Make a graph that takes raw pixels, u8 (N, height, width, 3).")
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE.onnx", help="The file to write.")
@json_option
def compile_(
    model: str,
    labels: Path,
    templates: tuple[str, ...],
    variant: str | None,
    logit_bias: float | None,
    uint8: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Combine a vision tower and labels in one ONNX file.

    The file runs with onnxruntime alone, or with: siglip-onnx classify IMAGE --model FILE. Needs the extra [export].
    """
    with extra("export", "compile"):
        from ..export.compile import compile_classifier  # noqa: PLC0415 - an optional extra
    texts = read_texts([], labels)
    template = templates[0] if len(templates) == 1 else templates
    compile_classifier(load(model, variant=variant), texts, out, template=template, logit_bias=logit_bias, uint8=uint8)
    size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "labels": len(texts), "size_bytes": size})
    else:
        click.echo(f"{out}: {format_count(len(texts), 'label')}, {format_size(size)}")
