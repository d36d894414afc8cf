"""``siglip-onnx classify``: how probably each text describes each picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import ImageError
from .options import (
    ModelChoice,
    exit_code,
    model_options,
    read_texts,
    tell_errors,
    template_option,
    text_options,
    to_json,
)

if TYPE_CHECKING:
    from ..head import Match
    from ..model import SigLIP
    from ..vision_tower import EmbeddedImage

FIELDS = ("text", "logit", "probability", "relative")


class Answer(NamedTuple):
    """What one picture gave."""

    image: str
    matches: list[Match] | ImageError
    truncated: bool = False


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@text_options
@template_option
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.0, help="Leave out texts of lower probability.")
@click.option("--logit-bias", type=float, help="Instead of the checkpoint's, which is a little low for many uses.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep embeddings of texts here, and do not load the text tower when all are known.",
)
@model_options
@click.option("--json", "format_", flag_value="json", help="Print one JSON document.")
@click.option("--csv", "format_", flag_value="csv", help="Print CSV, one line per picture and text.")
@click.pass_context
def classify(
    context: click.Context,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    texts_file: Path | None,
    templates: tuple[str, ...],
    threshold: float,
    logit_bias: float | None,
    cache: Path | None,
    choice: ModelChoice,
    format_: str | None,
) -> None:
    """Say for each IMAGE how probably each text describes it.

    logit: the model's score. probability: its sigmoid, each text by itself, so they need not sum to 1. relative: the
    share among the texts asked (softmax), which says which fits best, not whether any fits.
    """
    all_texts = read_texts(texts, texts_file)
    if choice.model and Path(choice.model).is_file():
        if all_texts or tuple(templates) != ("{}",) or logit_bias is not None or cache:
            raise click.UsageError(
                f"{choice.model} is a compiled classifier with its texts inside; leave --text, --texts-file, "
                "--template, --logit-bias and --cache out."
            )
        if choice.variant or choice.max_num_patches or choice.workers or choice.fast_decode:
            raise click.UsageError(
                f"{choice.model} is a compiled classifier: --variant was chosen when it was compiled, and --workers, "
                "--fast-decode and --max-num-patches are for models only. Leave them out."
            )
        facts, results = classify_compiled(choice, images)
    else:
        if not all_texts:
            raise click.UsageError("There are no texts to compare with; give --text TEXT or --texts-file FILE.")
        siglip = choice.open(cache, num_inputs=len(images))
        facts = {
            "model": siglip.bundle.manifest.model_name,
            "variant": siglip.variant,
            "providers": siglip.providers,
            "embedding_space": siglip.embedding_space,
            "templates": list(templates),
        }
        results = classify_each(siglip, images, all_texts, templates, logit_bias)
    results = [answer._replace(matches=leave_out(answer.matches, threshold)) for answer in results]
    if format_ == "json":
        _print_json(facts, results)
    elif format_ == "csv":
        _print_csv(results)
    else:
        _print_tables(results)
    context.exit(exit_code([answer.matches for answer in results]))


def leave_out(matches: list[Match] | ImageError, threshold: float) -> list[Match] | ImageError:
    """Keep the matches whose probability reaches ``threshold``."""
    if isinstance(matches, ImageError):
        return matches
    return [match for match in matches if match.probability >= threshold]


def classify_compiled(choice: ModelChoice, images: Sequence[str]) -> tuple[dict[str, Any], list[Answer]]:
    """Match every picture with the labels of a compiled classifier."""
    from ..classifier import Classifier  # noqa: PLC0415 - keeps --help fast

    classifier = Classifier(Path(str(choice.model)), choice.runtime_options())

    def match(image: str) -> tuple[list[Match], bool] | ImageError:
        try:
            return classifier.match(image)
        except ImageError as error:
            return error

    found = zip(images, tell_errors(map(match, images)), strict=True)
    results = [Answer(image, one) if isinstance(one, ImageError) else Answer(image, *one) for image, one in found]
    facts = {
        "model": classifier.model_name,
        "variant": classifier.variant,
        "providers": classifier.providers,
        "embedding_space": classifier.embedding_space,
        "templates": classifier.templates,
    }
    return facts, results


def classify_each(
    siglip: SigLIP, images: Sequence[str], texts: list[str], templates: Sequence[str], logit_bias: float | None
) -> list[Answer]:
    """Match every picture with every text; a picture that cannot be read gives its error."""
    import numpy as np  # noqa: PLC0415 - keeps --help fast

    from ..head import match_texts  # noqa: PLC0415

    missing = siglip.missing_labels(texts, template=templates)
    # While the vision tower loads, the texts are checked. Each tower is used once, so they need not share the memory.
    siglip.vision.session.preload()
    if missing:
        siglip.tokenize(missing)
    found = tell_errors(siglip.stream_embeddings(images))
    siglip.vision.session.unload()
    labels = siglip.encode_labels(texts, template=templates)

    def match(image: str, found: EmbeddedImage | ImageError) -> Answer:
        if isinstance(found, ImageError):
            return Answer(image, found)
        logits = siglip.logits(found.embedding[np.newaxis], labels, logit_bias=logit_bias)
        return Answer(image, match_texts(logits[0], texts), found.truncated)

    return [match(image, one) for image, one in zip(images, found, strict=True)]


def _print_tables(results: Sequence[Answer]) -> None:
    from .table import format_table, printable, three_digits  # noqa: PLC0415 - keeps --help fast

    tables = []
    for image, matches, _ in results:
        if isinstance(matches, ImageError):
            continue
        rows = [(m.text, f"{m.logit:.2f}", three_digits(m.probability), three_digits(m.relative)) for m in matches]
        tables.append(f"{printable(image)}\n{format_table(FIELDS, rows)}")
    if tables:
        click.echo("\n\n".join(tables))


def _print_json(facts: dict[str, Any], results: Sequence[Answer]) -> None:
    click.echo(to_json(facts | {"results": [_describe(answer) for answer in results]}, indent=2))


def _describe(answer: Answer) -> dict[str, Any]:
    image, matches, truncated = answer
    if isinstance(matches, ImageError):
        return {"image": image, "error": str(matches), "status": matches.status}
    row: dict[str, Any] = {"image": image, "matches": [match._asdict() for match in matches]}
    return row | {"truncated": True} if truncated else row


def _print_csv(results: Sequence[Answer]) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("image", *FIELDS))
    for image, matches, _ in results:
        if not isinstance(matches, ImageError):
            writer.writerows((image, *match) for match in matches)
    click.echo(lines.getvalue(), nl=False)
