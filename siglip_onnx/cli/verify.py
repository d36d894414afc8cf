"""``siglip-onnx verify``: variants against fp32, and fp32 against PyTorch and published numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bundle.folder import Bundle, open_bundle
from ..classifier import make_model
from ..config import TEXT, VISION
from ..hub.loading import find_model
from ..image.decode import ImageSource
from ..system.extras import extra
from ..verify.accuracy import (
    DEFAULT_MIN_COSINE,
    MIN_COSINE,
    REFERENCE,
    Accuracy,
    verify_variants,
    write_cards,
)
from ..verify.published import Finding, compare_with_published
from ..verify.samples import SAMPLE_TEXTS, sample_images
from .help import Command
from .inputs import find_images, read_texts
from .options import (
    PATH,
    FiniteRange,
    json_option,
    named_model,
    refuse_given,
    sample_texts_option,
)
from .output import FAILED, format_cosine, format_table, print_json, warn

if TYPE_CHECKING:
    from ..verify.pytorch import StageDifference  # needs torch

# Of the table of accuracies: key, title and format of each column that the model has.
COLUMNS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("vision_cosine_min", "vision cosine min", format_cosine),
    ("vision_cosine_mean", "mean", format_cosine),
    ("features_cosine_min", "features cosine min", format_cosine),
    ("features_cosine_mean", "mean", format_cosine),
    ("text_cosine_min", "text cosine min", format_cosine),
    ("text_cosine_mean", "mean", format_cosine),
    ("logit_error_mean", "logit error mean", "{:.3f}".format),
    ("logit_error_max", "max", "{:.3f}".format),
    ("top1_agreement", "top-1", "{:.1%}".format),
    ("order_agreement", "order", "{:.1%}".format),
    ("label_agreement", "same labels", "{:.1%}".format),
)


@click.command(
    cls=Command,
    examples=(
        "siglip-onnx verify MODEL",
        "siglip-onnx verify MODEL --images photos --reference CHECKPOINT",
    ),
)
@named_model()
@click.option("--images", "images_dir", type=PATH, metavar="FOLDER",
              help="Folder of images. Default: built-in samples.")  # fmt: skip
@sample_texts_option
@click.option(
    "--reference",
    type=PATH,
    metavar="CHECKPOINT",
    help="Checkpoint of the model: also compare each stage with PyTorch. Needs the extra [train].",
)
@click.option(
    "--published",
    is_flag=True,
    help="Also compare with numbers published for this checkpoint; their images are searched for in --images.",
)
@click.option("--write-card", is_flag=True, help="Write the results into manifest.json of the model.")
@click.option("--min-cosine", type=FiniteRange(0, 1),
              help=f"Smallest cosine to fp32 that a variant may have; {DEFAULT_MIN_COSINE}.")  # fmt: skip
@json_option
@click.pass_context
def verify(
    context: click.Context,
    model: str,
    images_dir: Path | None,
    texts_file: Path | None,
    reference: Path | None,
    published: bool,
    write_card: bool,
    min_cosine: float | None,
    as_json: bool,
) -> None:
    """Compare the variants of a model with fp32, and with PyTorch.

    All variants embed the same images and texts. The exit code is 1 if a variant is below --min-cosine, or if fp32
    differs from PyTorch by more than rounding or from published numbers by more than their tolerance.
    """
    bundle = open_bundle(find_model(model))
    _check_towers(bundle)
    images: Sequence[ImageSource] = sample_images() if images_dir is None else find_images(images_dir, "--images")
    sentences = SAMPLE_TEXTS if texts_file is None else read_texts([], texts_file)
    results = Results(min_cosine)
    with_accuracies = write_card or REFERENCE in bundle.manifest.variants or not (reference or published)
    if not with_accuracies and reference is None:
        refuse_given(("texts_file", "min_cosine"), f"{bundle.path} has no {REFERENCE} variant to compare with")
    if reference is not None:
        results.stages = _compare_with_pytorch(bundle, reference, images, sentences)
    if published:
        variants = bundle.manifest.variants
        results.published = {name: compare_with_published(bundle, name, images_dir) for name in variants}
    if with_accuracies:
        results.accuracies = verify_variants(bundle, images, sentences)
    if write_card:
        inputs = "built-in samples" if images_dir is None and texts_file is None else "the user's images and texts"
        write_cards(bundle, results.accuracies, inputs)
    failures = results.failures()
    if as_json:
        print_json({"model": bundle.manifest.model_name} | results.to_document() | {"failures": failures})
    else:
        click.echo("\n\n".join(results.tables()))
    for failure in failures:
        warn(failure)
    context.exit(FAILED if failures else 0)


def _check_towers(bundle: Bundle) -> None:
    """Refuse inputs of a tower that the model does not have."""
    for tower, name in ((VISION, "images_dir"), (TEXT, "texts_file")):
        if tower not in bundle.manifest.towers:
            refuse_given((name,), f"{bundle.path} has no {tower} tower")


@dataclass
class Results:
    """The results of all comparisons, by variant."""

    min_cosine: float | None
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    stages: dict[str, list[StageDifference]] = field(default_factory=dict)
    published: dict[str, list[Finding]] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """Return a line for each value that is beyond its limit; NaN is."""
        checks = []  # title, value, limit, whether the value is within it
        for name, accuracy in self.accuracies.items():
            worst, limit = accuracy.cosine_min, self._limit(name)
            checks.append((f"{name}: cosine to {REFERENCE}", worst, limit, worst >= limit))
        for name, stages in self.stages.items():
            for stage in stages:
                worst, limit = stage.max_abs, stage.allowed
                if name == REFERENCE or limit == 0:
                    checks.append((f"{name}: difference of the {stage.stage} to PyTorch", worst, limit, worst <= limit))
                elif stage.cosine_min is not None:
                    worst, limit = stage.cosine_min, self._limit(name)
                    checks.append((f"{name}: cosine of the {stage.stage} to PyTorch", worst, limit, worst >= limit))
        for finding in self.published.get(REFERENCE, []):  # the others are compared with fp32
            if finding.max_abs is not None:
                title = f"{REFERENCE}: difference of the {finding.quantity} to {finding.source}"
                checks.append((title, finding.max_abs, finding.tolerance, finding.passed))
        return [f"{title} is {value:.7g}; the limit is {limit:.7g}." for title, value, limit, ok in checks if not ok]

    def to_document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "min_cosine": {name: self._limit(name) for name in self.accuracies | self.stages},
            "variants": {name: accuracy.to_document() for name, accuracy in self.accuracies.items()},
            "pytorch": {name: [asdict(stage) for stage in stages] for name, stages in self.stages.items()},
            "published": {name: [asdict(finding) for finding in findings] for name, findings in self.published.items()},
        }

    def tables(self) -> Iterator[str]:
        """Yield a table for each comparison."""
        if self.accuracies:
            documents = {name: accuracy.to_document() for name, accuracy in self.accuracies.items()}
            columns = [column for column in COLUMNS if any(column[0] in document for document in documents.values())]
            header: Sequence[str] = (f"against {REFERENCE}", *(title for _, title, _ in columns))
            yield format_table(
                header,
                [
                    (name, *(format_(document[key]) for key, _, format_ in columns))
                    for name, document in documents.items()
                ],
            )
        for name, stages in self.stages.items():
            header = (f"{name} against PyTorch", "max difference", "min cosine")
            yield format_table(header, [_stage_cells(stage) for stage in stages])
        for name, findings in self.published.items():
            header = (f"{name} against published", "max difference", "allowed", "source")
            yield format_table(header, [_published_cells(finding) for finding in findings])

    def _limit(self, variant: str) -> float:
        return MIN_COSINE[variant] if self.min_cosine is None else self.min_cosine


def _compare_with_pytorch(
    bundle: Bundle, checkpoint: Path, images: Sequence[ImageSource], texts: Sequence[str]
) -> dict[str, list[StageDifference]]:
    with extra("train", "--reference"):
        from ..verify.pytorch import compare_with_pytorch  # noqa: PLC0415 - an optional extra
    return {
        name: compare_with_pytorch(make_model(bundle, variant=name), checkpoint, images, texts)
        for name in bundle.manifest.variants
    }


def _stage_cells(stage: StageDifference) -> list[str]:
    return [stage.stage, f"{stage.max_abs:.2g}", "" if stage.cosine_min is None else f"{stage.cosine_min:.6f}"]


def _published_cells(finding: Finding) -> list[str]:
    missing = f"missing: {', '.join(finding.missing)}"
    difference = missing if finding.max_abs is None else f"{finding.max_abs:.2g}"
    return [finding.quantity, difference, f"{finding.tolerance:g}", finding.source]
