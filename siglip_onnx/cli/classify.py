"""``siglip-onnx classify``: probabilities that texts describe images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from .. import demo
from ..bulk.records import OK
from ..classifier import Classifier, FineTunedClassifier
from ..config import TEXT
from ..errors import ImageError, printable
from ..head import Match, match_texts
from ..image.decode import ImageSource
from ..model import SigLIP
from ..vision_tower import EmbeddedImage
from .heads import classify_with_head
from .help import OUTPUT, Command, section
from .inputs import InputReader, find_missing, isolate_many, list_images, read_texts
from .options import (
    NAME,
    PATH,
    FiniteRange,
    ModelChoice,
    RenamedOption,
    calibration_option,
    model_options,
    refuse_given,
    template_option,
    text_options,
)
from .output import (
    describe_error,
    draw_bar,
    exit_code,
    format_percent,
    format_table,
    print_csv,
    print_json_line,
    print_json_list,
    terminal_width,
    warn,
)
from .progress import ProgressLine

FIELDS = ("text", "logit", "probability", "relative")
# Options that decide what a classifier with its own labels, or `compile`, has already decided.
LABELED = ("texts", "texts_file", "templates", "logit_bias", "calibration", "label_cache")
COMPILED = (*LABELED, "variant", "max_num_patches", "workers", "fast_decode")
NO_TEXTS = "There are no texts to compare with; give --text TEXT or --texts-file FILE."
OF_TEXTS = (*LABELED, "threshold", "top", "bars")  # what a head has none of
Facts = dict[str, Any]  # the model and the settings behind the answers, as they are printed


class Answer(NamedTuple):
    """The matches of one image, or why it could not be read."""

    image: str
    matches: list[Match] | ImageError
    truncated: bool = False


@click.command(
    cls=Command,
    examples=(
        'siglip-onnx classify photo.jpg --text "a cat" --text "a dog"',
        "siglip-onnx classify photos --texts-file labels.txt --top 3 --csv > out.csv",
        'curl -s https://example.com/a.jpg | siglip-onnx classify - --text "a cat"',
    ),
)
@click.argument("images", type=NAME, nargs=-1, required=True, metavar="IMAGE...")
@text_options
@template_option
@click.option("--threshold", type=FiniteRange(0, 1), default=0.0, metavar="P",
              help="Omit texts of lower probability.")  # fmt: skip
@click.option("--top", "-k", type=click.IntRange(1), metavar="N", help="Print only the N best texts of each image.")
@click.option(
    "--logit-bias",
    type=float,
    metavar="X",
    help="Replace the bias of the checkpoint; a higher one gives higher probabilities, which suits many uses better.",
)
@calibration_option
@click.option("--head", type=PATH, metavar="FILE", help="Print the scores of a head instead of those of texts.")
@click.option(
    "--label-cache",
    "--cache",
    cls=RenamedOption,
    type=PATH,
    metavar="FOLDER",
    help="Keep the embeddings of the texts in this folder; if all are there, the text tower is not loaded.",
)
@model_options
@section(
    OUTPUT,
    click.option("--bars", is_flag=True, help="Also draw the probabilities as bars."),
    click.option("--json", "format_", flag_value="json", help="Print one JSON document."),
    click.option("--jsonl", "format_", flag_value="jsonl", help="Print one line of JSON per image, as it is computed."),
    click.option("--csv", "format_", flag_value="csv", help="Print CSV, one line per image and text."),
)
@click.pass_context
def classify(
    context: click.Context,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    texts_file: Path | None,
    templates: tuple[str, ...],
    threshold: float,
    top: int | None,
    logit_bias: float | None,
    calibration: Path | None,
    head: Path | None,
    label_cache: Path | None,
    choice: ModelChoice,
    bars: bool,
    format_: str | None,
) -> None:
    """Score how likely each text is to describe each image.

    IMAGE is a file, a folder, a pattern such as "photos/*.jpg", a URL, @LIST for a file with one path per line, or -
    for an image on stdin.

    The best texts come first. The columns are: logit, the score of the model; probability, its sigmoid, independent of
    the other texts, so that probabilities need not sum to 1; relative, the share among these texts (softmax), which
    shows which text fits best, not whether any does. A fine-tuned or compiled classifier answers with its own labels;
    if exactly one of them applies, probability is the share.
    """
    all_texts = read_texts(texts, texts_file)
    choice = isolate_many(choice, images)
    if head is not None:
        refuse_given(OF_TEXTS, "A head has its own labels, and no probabilities")
        context.exit(classify_with_head(head, images, choice, format_))
    if format_ is not None:
        refuse_given(("bars",), "Bars are drawn in tables only")
    compiled = choice.model is not None and Path(choice.model).is_file()
    if compiled:
        refuse_given(COMPILED, f"{choice.model} is a compiled classifier, which contains its texts and settings")
    elif not (all_texts or choice.model):
        raise click.UsageError(NO_TEXTS)
    names = list_images(images)
    reader = InputReader(choice.image_limits, choice.offline)
    answers: Iterator[Answer]
    if missing := find_missing(names):
        facts = _unknown_facts(choice, templates)
        answers = (Answer(name, error) for name, error in zip(names, missing, strict=True))
    elif compiled:
        facts, answers = _ask_classifier(Path(str(choice.model)), choice, names, reader)
    else:
        model = choice.open(label_cache, num_inputs=len(names), calibration=calibration)
        _check_texts(model, all_texts)
        if isinstance(model, FineTunedClassifier):
            facts, answers = _ask_labels(model, names, reader)
        else:
            facts, answers = _ask_model(model, names, reader, all_texts, templates, logit_bias)
    outcomes: list[ImageError | None] = []
    answers = (_select(answer, threshold, top) for answer in _observe(answers, len(names), outcomes))
    _print(format_, facts, answers, bars=bars)
    context.exit(exit_code(outcomes))


def _print(format_: str | None, facts: Facts, answers: Iterable[Answer], *, bars: bool) -> None:
    if format_ == "json":
        print_json_list(facts, "results", map(_describe, answers))
    elif format_ == "jsonl":
        for answer in answers:
            print_json_line(_describe(answer))
    elif format_ == "csv":
        _print_csv(answers)
    else:
        _print_tables(answers, bars=bars)


def _check_texts(model: SigLIP, texts: Sequence[str]) -> None:
    """Check that there are texts for a model that needs them, and nothing about texts for one with labels."""
    if isinstance(model, FineTunedClassifier):
        refuse_given(LABELED, f"{model.bundle.path} is a classifier, which answers with its own labels")
        return
    model.bundle.manifest.check_tower(TEXT)
    if not texts:
        raise click.UsageError(NO_TEXTS)


def _ask_classifier(
    path: Path, choice: ModelChoice, names: Sequence[str], reader: InputReader
) -> tuple[Facts, Iterator[Answer]]:
    """Match each image with the labels of a compiled classifier; an image that cannot be read gives its error."""
    classifier = Classifier(path, choice.runtime_options())

    def match(images: Iterable[ImageSource]) -> Iterator[tuple[list[Match], bool] | ImageError]:
        for image in images:
            try:
                yield classifier.match(image)
            except ImageError as error:
                yield error

    results = reader.embed(names, match)
    return _facts(classifier.model_name, classifier, classifier.templates), (
        Answer(name, result) if isinstance(result, ImageError) else Answer(name, *result) for name, result in results
    )


def _ask_labels(
    model: FineTunedClassifier, names: Sequence[str], reader: InputReader
) -> tuple[Facts, Iterator[Answer]]:
    """Match each image with the labels of a fine-tuned classifier; an image that cannot be read gives its error."""
    facts = _facts(model.bundle.manifest.model_name, model, []) | {"problem_type": model.problem_type}
    return facts, (
        Answer(name, result) if isinstance(result, ImageError)
        else Answer(name, model.match(result.values), result.truncated)
        for name, result in reader.embed(names, model.stream_logits)
    )  # fmt: skip


def _ask_model(
    model: SigLIP,
    names: Sequence[str],
    reader: InputReader,
    texts: list[str],
    templates: Sequence[str],
    logit_bias: float | None,
) -> tuple[Facts, Iterator[Answer]]:
    """Match each image with each text; an image that cannot be read gives its error."""
    if not model.vision.session.copies_weights:
        model.vision.session.preload()  # while the texts are embedded
    labels = model.encode_labels(texts, template=templates)
    bias = model.biases(texts) if logit_bias is None else logit_bias
    model.text.session.unload()  # before the images, so that memory holds the weights of one tower
    model.vision.session.preload()  # while the first image is decoded

    def match(name: str, result: EmbeddedImage | ImageError) -> Answer:
        if isinstance(result, ImageError):
            return Answer(name, result)
        logits = model.logits(result.embedding[np.newaxis], labels, logit_bias=bias)
        return Answer(name, match_texts(logits[0], texts), result.truncated)

    results = reader.embed(names, model.stream_embeddings)
    facts = _facts(model.bundle.manifest.model_name, model, templates)
    return facts, (match(name, result) for name, result in results)


def _facts(name: str, model: Classifier | SigLIP, templates: Sequence[str]) -> Facts:
    facts = {"variant": model.variant, "providers": model.providers, "embedding_space": model.embedding_space}
    return {"model": name} | facts | {"templates": list(templates)}


def _unknown_facts(choice: ModelChoice, templates: Sequence[str]) -> Facts:
    """Return the facts where no model was opened, because no image exists."""
    facts = {"variant": choice.variant, "providers": list(choice.providers), "embedding_space": None}
    return {"model": choice.model or demo.NAME} | facts | {"templates": list(templates)}


def _observe(answers: Iterable[Answer], num_images: int, outcomes: list[ImageError | None]) -> Iterator[Answer]:
    """Pass answers on; show the progress, report errors as they occur, and collect an outcome per image."""
    progress = ProgressLine()
    progress.start(num_images)
    try:
        for answer in answers:
            error = answer.matches if isinstance(answer.matches, ImageError) else None
            outcomes.append(error)
            if error is not None or terminal_width() is not None:  # something is about to be printed there
                progress.clear()
            if error is not None:
                warn(error)
            yield answer
            progress.image_done(OK if error is None else error.status)
    finally:
        progress.clear()


def _select(answer: Answer, threshold: float, top: int | None) -> Answer:
    """Return the matches to print, the best first; equal ones stay in the order given."""
    if isinstance(answer.matches, ImageError):
        return answer
    matches = [match for match in answer.matches if not match.probability < threshold]  # a regression has none
    return answer._replace(matches=sorted(matches, key=lambda match: match.logit, reverse=True)[:top])


def _print_tables(answers: Iterable[Answer], *, bars: bool) -> None:
    header = (*FIELDS, *([""] if bars else []))
    first = True
    for image, matches, _ in answers:
        if isinstance(matches, ImageError):
            continue
        rows = [
            (
                match.text,
                f"{match.logit:.2f}",
                format_percent(match.probability),
                format_percent(match.relative),
                *([draw_bar(match.probability)] if bars else []),
            )
            for match in matches
        ]
        table = format_table(header, rows, max_width=terminal_width())
        click.echo(f"{'' if first else chr(10)}{printable(image)}\n{table}")
        first = False


def _describe(answer: Answer) -> dict[str, Any]:
    image, matches, truncated = answer
    if isinstance(matches, ImageError):
        return describe_error(image, matches)
    row: dict[str, Any] = {"image": image, "matches": [_describe_match(match) for match in matches]}
    return row | {"truncated": True} if truncated else row


def _describe_match(match: Match) -> dict[str, Any]:
    """Return a match with None for numbers that it does not have."""
    numbers = {name: None if math.isnan(value) else value for name, value in match._asdict().items() if name != "text"}
    return {"text": match.text} | numbers


def _print_csv(answers: Iterable[Answer]) -> None:
    """Print a row per image and text, and one for an image that cannot be read: only its name and its error."""
    rows: list[Sequence[object]] = [("image", *FIELDS, "error")]
    for image, matches, _ in answers:
        if isinstance(matches, ImageError):
            rows.append((image, *("" for _ in FIELDS), matches))
        else:
            rows += [(image, *_describe_match(match).values(), "") for match in matches]
        print_csv(rows)
        rows = []
    print_csv(rows)
