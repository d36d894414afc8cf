"""``siglip-onnx verify``: how near every variant is to fp32, and fp32 to PyTorch and to what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingExtraError
from ..verify.accuracy import MIN_COSINE
from .options import DEFAULT_MIN_COSINE, find_images, read_texts, to_json

if TYPE_CHECKING:
    from ..bundle.folder import Bundle
    from ..image.decode import ImageSource
    from ..verify.accuracy import Accuracy
    from ..verify.published import Finding
    from ..verify.pytorch import StageDifference

FAILED = 1


@click.command()
@click.argument("model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL")
@click.option(
    "--images",
    "images_dir",
    type=click.Path(path_type=Path),
    help="A folder of pictures; built-in samples otherwise.",
)
@click.option("--texts", type=click.Path(path_type=Path), help="A file with one text per line; built-in otherwise.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="The checkpoint, to compare each stage with PyTorch; needs torch and transformers.",
)
@click.option(
    "--published",
    is_flag=True,
    help="Compare with the numbers published of this checkpoint; their pictures are looked for in --images.",
)
@click.option("--write-card", is_flag=True, help="Keep what was found in the model's manifest.json.")
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    help=f"What every variant must reach; {DEFAULT_MIN_COSINE} if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def verify(
    context: click.Context,
    model: str,
    images_dir: Path | None,
    texts: Path | None,
    reference: Path | None,
    published: bool,
    write_card: bool,
    min_cosine: float | None,
    as_json: bool,
) -> None:
    """Measure how near each variant of MODEL is to fp32, on the same pictures and texts.

    Ends with exit code 1 if a variant stays below --min-cosine, fp32 differs from PyTorch by more than rounding, or
    from published numbers by more than they allow.
    """  # fmt: skip
    from ..bundle.folder import open_bundle  # noqa: PLC0415 - keeps --help fast
    from ..hub.loading import find_model  # noqa: PLC0415
    from ..verify.accuracy import verify_variants, write_cards  # noqa: PLC0415
    from ..verify.samples import SAMPLE_TEXTS, sample_images  # noqa: PLC0415

    bundle = open_bundle(find_model(model))
    pictures: Sequence[ImageSource] = sample_images()
    if images_dir is not None:
        pictures = find_images(images_dir, "--images")
    sentences = SAMPLE_TEXTS if texts is None else read_texts([], texts)
    found = Found(min_cosine)
    if reference is not None:
        found.stages = _compare_with_pytorch(bundle, reference, pictures, sentences)
    if published:
        found.published = _compare_with_published(bundle, images_dir)
    if write_card or "fp32" in bundle.manifest.variants or not (reference or published):
        found.accuracies = verify_variants(bundle, pictures, sentences)
    if write_card:
        inputs = "built-in samples" if images_dir is None and texts is None else "the user's pictures and texts"
        write_cards(bundle, found.accuracies, inputs)
    failures = found.failures()
    if as_json:
        click.echo(to_json({"model": bundle.manifest.model_name} | found.to_document(failures), indent=2))
    else:
        click.echo("\n\n".join(found.describe()))
    for failure in failures:
        click.echo(f"siglip-onnx: {failure}", err=True)
    context.exit(FAILED if failures else 0)


@dataclass
class Found:
    """All that was compared, by variant."""

    min_cosine: float | None
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    stages: dict[str, list[StageDifference]] = field(default_factory=dict)
    published: dict[str, list[Finding]] = field(default_factory=dict)

    def to_document(self, failures: list[str]) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "min_cosine": {name: self._limit(name) for name in self.accuracies | self.stages},
            "variants": {name: asdict(accuracy) for name, accuracy in self.accuracies.items()},
            "pytorch": {name: [asdict(stage) for stage in found] for name, found in self.stages.items()},
            "published": {name: [asdict(finding) for finding in found] for name, found in self.published.items()},
            "failures": failures,
        }

    def failures(self) -> list[str]:
        """Return a line for each thing that is farther than allowed."""
        failures = [
            f"{name} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32; {self._limit(name)} was asked for."
            for name, accuracy in self.accuracies.items()
            if not accuracy.cosine_min >= self._limit(name)
        ]
        for name, stages in self.stages.items():
            failures += [failure for stage in stages if (failure := _find_failure(name, stage, self._limit(name)))]
        failures += [
            f"fp32: {finding.quantity} differ by {finding.max_abs:.2g} from {finding.source}, "
            f"allowed are {finding.tolerance:g}."
            for finding in self.published.get("fp32", [])  # what other variants lose is seen in their own comparison
            if not finding.passed
        ]
        return failures

    def _limit(self, variant: str) -> float:
        return MIN_COSINE[variant] if self.min_cosine is None else self.min_cosine

    def describe(self) -> list[str]:
        """Return the tables."""
        from .table import format_table  # noqa: PLC0415 - keeps --help fast

        tables: list[tuple[Sequence[str], list[Sequence[str]]]] = []
        if self.accuracies:
            header = ("against fp32", "vision cosine min", "mean", "text cosine min", "mean", "logit error mean", "max",
                      "top-1", "order")  # fmt: skip
            tables.append((header, [(name, *_accuracy_cells(accuracy)) for name, accuracy in self.accuracies.items()]))
        for name, stages in self.stages.items():
            stage_header = (f"{name} against PyTorch", "max difference", "min cosine")
            tables.append((stage_header, [_stage_cells(stage) for stage in stages]))
        for name, findings in self.published.items():
            published_header = (f"{name} against published", "max difference", "allowed", "source")
            tables.append((published_header, [_published_cells(finding) for finding in findings]))
        return [format_table(header, rows) for header, rows in tables]


def _compare_with_pytorch(
    bundle: Bundle, checkpoint: Path, pictures: Sequence[ImageSource], texts: Sequence[str]
) -> dict[str, list[StageDifference]]:
    from ..model import SigLIP  # noqa: PLC0415 - keeps --help fast

    try:
        from ..verify.pytorch import compare_with_pytorch  # noqa: PLC0415 - needs torch
    except ImportError as error:
        raise MissingExtraError(
            f"--reference needs {error.name}, which is not installed. "
            'Run: pip install "siglip-onnx[train]", or leave --reference out to compare with fp32 only.'
        ) from error
    return {
        name: compare_with_pytorch(SigLIP(bundle, variant=name), checkpoint, pictures, texts)
        for name in bundle.manifest.variants
    }


def _compare_with_published(bundle: Bundle, images_dir: Path | None) -> dict[str, list[Finding]]:
    from ..verify.published import compare_with_published  # noqa: PLC0415 - keeps --help fast

    return {name: compare_with_published(bundle, name, images_dir) for name in bundle.manifest.variants}


def _find_failure(variant: str, stage: StageDifference, min_cosine: float) -> str:
    exact = variant == "fp32" or stage.allowed == 0
    if exact and not stage.max_abs <= stage.allowed:
        return f"{variant}: {stage.stage} differ from PyTorch by {stage.max_abs:.2g}, allowed are {stage.allowed:g}."
    if not exact and stage.cosine_min is not None and not stage.cosine_min >= min_cosine:
        return f"{variant}: {stage.stage} reaches only a cosine of {stage.cosine_min:.5f} to PyTorch."
    return ""


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


def _published_cells(finding: Finding) -> list[str]:
    difference = f"no {', '.join(finding.missing)}" if finding.max_abs is None else f"{finding.max_abs:.2g}"
    return [finding.quantity, difference, f"{finding.tolerance:g}", finding.source]
