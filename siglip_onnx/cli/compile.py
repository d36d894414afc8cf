"""``siglip-onnx compile``: labels and vision tower in one ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import MissingExtraError
from .options import human_size, read_texts, template_option, to_json


@click.command("compile")
@click.argument("model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL")
@click.option("--labels", type=click.Path(path_type=Path), required=True, help="One label per line, UTF-8.")
@template_option
@click.option("--variant", metavar="NAME", help="int8, fp32, ...; int8 where present.")
@click.option("--logit-bias", type=float, help="Instead of the checkpoint's.")
@click.option("--uint8", is_flag=True, help="Let the graph take raw pixels, u8 (N, height, width, 3).")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The .onnx file to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
    """Put the vision tower of MODEL and the embeddings of the labels into one file.

    It runs with onnxruntime alone, or with: siglip-onnx classify PICTURE --model FILE
    """  # fmt: skip
    try:
        from ..export.compile import compile_classifier  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingExtraError(
            f'compile needs a package that is not installed ({error.name}). Run: pip install "siglip-onnx[export]"'
        ) from error
    from ..hub.loading import load  # noqa: PLC0415 - keeps --help fast

    texts = read_texts([], labels)
    template = templates[0] if len(templates) == 1 else templates
    compile_classifier(load(model, variant=variant), texts, out, template=template, logit_bias=logit_bias, uint8=uint8)
    size = out.stat().st_size
    facts = {"out": str(out), "labels": len(texts), "size_bytes": size}
    click.echo(to_json(facts, indent=2) if as_json else f"{out}: {len(texts)} labels, {human_size(size)}")
