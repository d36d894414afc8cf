"""``siglip-onnx verify``: how near every variant is to fp32, and fp32 to PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ImageError, MissingExtraError
from ..export import MIN_COSINE
from .options import read_texts, to_json

if TYPE_CHECKING:
    from PIL import Image

    from ..bundle import Bundle
    from ..export.reference import StageDifference
    from ..export.verify import Accuracy

FAILED = 1


@click.command()
@click.argument("model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL")
@click.option("--images", type=click.Path(path_type=Path), help="A folder of pictures; built-in samples otherwise.")
@click.option("--texts", type=click.Path(path_type=Path), help="A file with one text per line; built-in otherwise.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="The checkpoint, to compare each stage with PyTorch; needs torch and transformers.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    default=MIN_COSINE,
    show_default=True,
    help="What every variant must reach.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def verify(
    context: click.Context,
    model: str,
    images: Path | None,
    texts: Path | None,
    reference: Path | None,
    min_cosine: float,
    as_json: bool,
) -> None:
    """Measure how near each variant of MODEL is to fp32, on the same pictures and texts.

    Ends with exit code 1 if a variant stays below --min-cosine, or fp32 differs from PyTorch by more than rounding.
    """  # fmt: skip
    from ..bundle import open_bundle  # noqa: PLC0415 - keeps --help fast
    from ..export.verify import SAMPLE_TEXTS, sample_pictures, verify_variants  # noqa: PLC0415
    from ..hub import find_model  # noqa: PLC0415
    from ..image import load_image  # noqa: PLC0415

    bundle = open_bundle(find_model(model))
    pictures = [load_image(picture) for picture in sample_pictures()] if images is None else _pictures_of(images)
    sentences = SAMPLE_TEXTS if texts is None else read_texts([], texts)
    stages: dict[str, list[StageDifference]] = {}
    accuracies: dict[str, Accuracy] = {}
    if reference is not None:
        stages = _compare_with_pytorch(bundle, reference, pictures, sentences)
    if reference is None or "fp32" in bundle.manifest.variants:
        accuracies = verify_variants(bundle, pictures, sentences)
    failures = _find_failures(accuracies, stages, min_cosine)
    if as_json:
        document = {
            "model": bundle.manifest.model_name,
            "min_cosine": min_cosine,
            "variants": {name: asdict(accuracy) for name, accuracy in accuracies.items()},
            "pytorch": {name: [asdict(stage) for stage in found] for name, found in stages.items()},
            "failures": failures,
        }
        click.echo(to_json(document, indent=2))
    else:
        click.echo("\n\n".join(_describe(accuracies, stages)))
    for failure in failures:
        click.echo(f"siglip-onnx: {failure}", err=True)
    context.exit(FAILED if failures else 0)


def _pictures_of(folder: Path) -> list[Image.Image]:
    from ..image import load_image  # noqa: PLC0415 - keeps --help fast

    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder; --images wants a folder of pictures.")
    pictures = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                pictures.append(load_image(path))
            except ImageError as error:
                click.echo(f"siglip-onnx: left out: {error}", err=True)
    if not pictures:
        raise ImageError(f"{folder} holds no readable picture; --images wants a folder of pictures.")
    return pictures


def _compare_with_pytorch(
    bundle: Bundle, checkpoint: Path, pictures: list[Image.Image], texts: Sequence[str]
) -> dict[str, list[StageDifference]]:
    from ..model import SigLIP  # noqa: PLC0415 - keeps --help fast

    try:
        from ..export.reference import compare_with_pytorch  # noqa: PLC0415 - needs torch
    except ImportError as error:
        raise MissingExtraError(
            f"--reference needs {error.name}, which is not installed. "
            'Run: pip install "siglip-onnx[train]", or leave --reference out to compare with fp32 only.'
        ) from error
    return {
        name: compare_with_pytorch(SigLIP(bundle, variant=name), checkpoint, pictures, texts)
        for name in bundle.manifest.variants
    }


def _find_failures(
    accuracies: dict[str, Accuracy], stages: dict[str, list[StageDifference]], min_cosine: float
) -> list[str]:
    failures = [
        f"{name} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32; {min_cosine} was asked for."
        for name, accuracy in accuracies.items()
        if not accuracy.cosine_min >= min_cosine
    ]
    for name, found in stages.items():
        for stage in found:
            exact = name == "fp32" or stage.allowed == 0
            if exact and not stage.max_abs <= stage.allowed:
                failures.append(
                    f"{name}: {stage.stage} differ from PyTorch by {stage.max_abs:.2g}, allowed are {stage.allowed:g}."
                )
            elif not exact and stage.cosine_min is not None and not stage.cosine_min >= min_cosine:
                failures.append(f"{name}: {stage.stage} reaches only a cosine of {stage.cosine_min:.5f} to PyTorch.")
    return failures


def _describe(accuracies: dict[str, Accuracy], stages: dict[str, list[StageDifference]]) -> list[str]:
    from .table import format_table  # noqa: PLC0415 - keeps --help fast

    tables: list[tuple[Sequence[str], list[Sequence[str]]]] = []
    if accuracies:
        header = ("against fp32", "vision cosine min", "mean", "text cosine min", "mean", "logit error mean", "max",
                  "top-1", "order")  # fmt: skip
        tables.append((header, [(name, *_accuracy_cells(accuracy)) for name, accuracy in accuracies.items()]))
    for name, found in stages.items():
        stage_header = (f"{name} against PyTorch", "max difference", "min cosine")
        tables.append((stage_header, [_stage_cells(stage) for stage in found]))
    return [format_table(header, rows) for header, rows in tables]


def _accuracy_cells(accuracy: Accuracy) -> list[str]:
    cosines = (accuracy.vision_cosine_min, accuracy.vision_cosine_mean,
               accuracy.text_cosine_min, accuracy.text_cosine_mean)  # fmt: skip
    errors = (accuracy.logit_error_mean, accuracy.logit_error_max)
    shares = (accuracy.top1_agreement, accuracy.order_agreement)
    return [
        *(f"{value:.5f}" for value in cosines),
        *(f"{value:.3f}" for value in errors),
        *(f"{value:.1%}" for value in shares),
    ]


def _stage_cells(stage: Any) -> list[str]:
    return [stage.stage, f"{stage.max_abs:.2g}", "" if stage.cosine_min is None else f"{stage.cosine_min:.6f}"]
