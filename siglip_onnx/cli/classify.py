"""``siglip-onnx classify``: how probably each text describes each picture."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ImageError
from .options import ModelChoice, encode_each, exit_code, model_options, read_texts, text_options

if TYPE_CHECKING:
    from ..head import Match
    from ..model import SigLIP

FIELDS = ("text", "logit", "probability", "relative")
Results = Sequence[tuple[str, "list[Match] | ImageError"]]


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@text_options
@click.option("--template", default="{}", show_default=True, help='What each text is put into: "a photo of {}".')
@model_options
@click.option("--json", "format_", flag_value="json", help="Print one JSON document.")
@click.option("--csv", "format_", flag_value="csv", help="Print CSV, one line per picture and text.")
@click.pass_context
def classify(
    context: click.Context,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    texts_file: Path | None,
    template: str,
    choice: ModelChoice,
    format_: str | None,
) -> None:
    """Say for each IMAGE how probably each text describes it.

    logit: the model's score. probability: its sigmoid, each text by itself, so they need not sum to 1. relative: the
    share among the texts asked (softmax), which says which fits best, not whether any fits.
    """
    all_texts = read_texts(texts, texts_file)
    if not all_texts:
        raise click.UsageError("There are no texts to compare with; give --text TEXT or --texts-file FILE.")
    siglip = choice.open()
    results = classify_each(siglip, images, all_texts, template)
    if format_ == "json":
        _print_json(siglip, template, results)
    elif format_ == "csv":
        _print_csv(results)
    else:
        _print_tables(results)
    context.exit(exit_code([matches for _, matches in results]))


def classify_each(siglip: SigLIP, images: Sequence[str], texts: list[str], template: str) -> Results:
    """Match every picture with every text; a picture that cannot be read gives its error."""
    from ..head import match_texts  # noqa: PLC0415 - keeps --help fast
    from ..model import fill_template  # noqa: PLC0415

    prompts = fill_template(template, texts)
    # While the vision tower loads, the texts are checked. Each tower is used once, so they need not share the memory.
    siglip.preload("vision")
    siglip.tokenize(prompts)
    image_embeddings = encode_each(siglip, images)
    siglip.unload("vision")
    text_embeddings = siglip.encode_texts(prompts)
    return [
        (
            image,
            found if isinstance(found, ImageError) else match_texts(siglip.logits(found, text_embeddings)[0], texts),
        )
        for image, found in zip(images, image_embeddings, strict=True)
    ]


def _print_tables(results: Results) -> None:
    from .table import format_table, three_digits  # noqa: PLC0415 - keeps --help fast

    tables = []
    for image, matches in results:
        if isinstance(matches, ImageError):
            continue
        rows = [(m.text, f"{m.logit:.2f}", three_digits(m.probability), three_digits(m.relative)) for m in matches]
        tables.append(f"{image}\n{format_table(FIELDS, rows)}")
    click.echo("\n\n".join(tables))


def _print_json(siglip: SigLIP, template: str, results: Results) -> None:
    document = {
        "model": siglip.bundle.manifest.model_name,
        "variant": siglip.variant,
        "embedding_space": siglip.embedding_space,
        "template": template,
        "results": [
            {"image": image, "error": str(matches)}
            if isinstance(matches, ImageError)
            else {"image": image, "matches": [match._asdict() for match in matches]}
            for image, matches in results
        ],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _print_csv(results: Results) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", *FIELDS))
    for image, matches in results:
        if not isinstance(matches, ImageError):
            writer.writerows((image, *match) for match in matches)
