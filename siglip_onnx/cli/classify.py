"""``siglip-onnx classify``: probabilities that texts describe images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ..classifier import Classifier
from ..errors import ImageError
from ..head import Match, match_texts
from ..model import SigLIP
from ..vision_tower import EmbeddedImage
from .inputs import read_texts
from .options import PATH, ModelChoice, RenamedOption, model_options, template_option, text_options
from .output import describe_error, exit_code, format_probability, format_table, print_json, printable, report_errors

FIELDS = ("text", "logit", "probability", "relative")
# Options that decide what `compile` has already decided.
COMPILED = ("texts", "texts_file", "templates", "logit_bias", "label_cache", "variant", "max_num_patches", "workers",
            "fast_decode")  # fmt: skip
UNSET = (None, False, (), ("{}",))
Facts = dict[str, Any]  # the model and the settings behind the answers, as they are printed


class Answer(NamedTuple):
    """The matches of one image, or why it could not be read."""

    image: str
    matches: list[Match] | ImageError
    truncated: bool = False


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@text_options
@template_option
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.0, help="Omit texts of lower probability.")
@click.option(
    "--logit-bias",
    type=float,
    help="Replace the bias of the checkpoint; a higher one gives higher probabilities, which suits many uses better.",
)
@click.option(
    "--label-cache",
    "--cache",
    cls=RenamedOption,
    type=PATH,
    metavar="FOLDER",
    help="Keep the embeddings of the texts in this folder; if all are there, the text tower is not loaded.",
)
@model_options
@click.option("--json", "format_", flag_value="json", help="Print one JSON document.")
@click.option("--csv", "format_", flag_value="csv", help="Print CSV, one line per image and text.")
@click.pass_context
def classify(
    context: click.Context,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    texts_file: Path | None,
    templates: tuple[str, ...],
    threshold: float,
    logit_bias: float | None,
    label_cache: Path | None,
    choice: ModelChoice,
    format_: str | None,
) -> None:
    """Score how likely each text is to describe each image.

    The columns are: logit, the score of the model; probability, its sigmoid, independent of the other texts, so that
    probabilities need not sum to 1; relative, the share among these texts (softmax), which shows which text fits best,
    not whether any does.
    """
    all_texts = read_texts(texts, texts_file)
    if choice.model and Path(choice.model).is_file():
        _refuse_options(context, choice.model)
        facts, answers = _ask_classifier(Path(choice.model), choice, images)
    elif all_texts:
        model = choice.open(label_cache, num_inputs=len(images))
        facts, answers = _ask_model(model, images, all_texts, templates, logit_bias)
    else:
        raise click.UsageError("There are no texts to compare with; give --text TEXT or --texts-file FILE.")
    answers = [answer._replace(matches=_above(threshold, answer.matches)) for answer in answers]
    if format_ == "json":
        print_json(facts | {"results": [_describe(answer) for answer in answers]})
    elif format_ == "csv":
        _print_csv(answers)
    else:
        _print_tables(answers)
    context.exit(exit_code([answer.matches for answer in answers]))


def _refuse_options(context: click.Context, model: str) -> None:
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name in COMPILED and context.params[param.name] not in UNSET
    ]
    if given:
        raise click.UsageError(
            f"{model} is a compiled classifier, which contains its texts and settings; remove {', '.join(given)}."
        )


def _ask_classifier(path: Path, choice: ModelChoice, images: Sequence[str]) -> tuple[Facts, list[Answer]]:
    """Match each image with the labels of a compiled classifier; an image that cannot be read gives its error."""
    classifier = Classifier(path, choice.runtime_options())
    facts = _facts(classifier.model_name, classifier, classifier.templates)

    def match(image: str) -> tuple[list[Match], bool] | ImageError:
        try:
            return classifier.match(image)
        except ImageError as error:
            return error

    results = zip(images, report_errors(map(match, images)), strict=True)
    return facts, [
        Answer(image, result) if isinstance(result, ImageError) else Answer(image, *result) for image, result in results
    ]


def _ask_model(
    model: SigLIP, images: Sequence[str], texts: list[str], templates: Sequence[str], logit_bias: float | None
) -> tuple[Facts, list[Answer]]:
    """Match each image with each text; an image that cannot be read gives its error."""
    facts = _facts(model.bundle.manifest.model_name, model, templates)
    missing = model.missing_labels(texts, template=templates)
    # The texts are checked while the vision tower loads. Each tower is used once, so only one is in memory.
    model.vision.session.preload()
    if missing:
        model.tokenize(missing)
    results = report_errors(model.stream_embeddings(images))
    model.vision.session.unload()
    labels = model.encode_labels(texts, template=templates)

    def match(image: str, result: EmbeddedImage | ImageError) -> Answer:
        if isinstance(result, ImageError):
            return Answer(image, result)
        logits = model.logits(result.embedding[np.newaxis], labels, logit_bias=logit_bias)
        return Answer(image, match_texts(logits[0], texts), result.truncated)

    return facts, [match(image, result) for image, result in zip(images, results, strict=True)]


def _facts(name: str, model: Classifier | SigLIP, templates: Sequence[str]) -> Facts:
    facts = {"variant": model.variant, "providers": model.providers, "embedding_space": model.embedding_space}
    return {"model": name} | facts | {"templates": list(templates)}


def _above(threshold: float, matches: list[Match] | ImageError) -> list[Match] | ImageError:
    if isinstance(matches, ImageError):
        return matches
    return [match for match in matches if match.probability >= threshold]


def _print_tables(answers: Sequence[Answer]) -> None:
    tables = []
    for image, matches, _ in answers:
        if isinstance(matches, ImageError):
            continue
        rows = [
            (text, f"{logit:.2f}", format_probability(probability), format_probability(relative))
            for text, logit, probability, relative in matches
        ]
        tables.append(f"{printable(image)}\n{format_table(FIELDS, rows)}")
    if tables:
        click.echo("\n\n".join(tables))


def _describe(answer: Answer) -> dict[str, Any]:
    image, matches, truncated = answer
    if isinstance(matches, ImageError):
        return describe_error(image, matches)
    row: dict[str, Any] = {"image": image, "matches": [match._asdict() for match in matches]}
    return row | {"truncated": True} if truncated else row


def _print_csv(answers: Sequence[Answer]) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("image", *FIELDS))
    for image, matches, _ in answers:
        if not isinstance(matches, ImageError):
            writer.writerows((image, *match) for match in matches)
    click.echo(lines.getvalue(), nl=False)
