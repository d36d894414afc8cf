"""``siglip-onnx search``: the images of an embedded folder that best fit texts and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ..bulk.gallery import render_gallery
from ..bulk.records import JobFacts
from ..bulk.search import Hit, Term, encode_query, is_one_text, open_collection
from ..system.files import write_atomic
from .options import PATH, ModelChoice, json_option, model_options, template_option
from .output import format_probability, format_table, print_json, printable, warn, writing


@click.command()
@click.argument("folder", type=PATH, metavar="OUT")
@click.argument("arguments", nargs=-1, metavar="[TEXT]")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="Like this text; repeat for more.")
@click.option("--image", "images", multiple=True, metavar="FILE", help="Like this image; repeat for more.")
@click.option("--minus", multiple=True, metavar="TEXT", help="Not like this text; repeat for more.")
@click.option("--minus-image", multiple=True, metavar="FILE", help="Not like this image; repeat for more.")
@click.option("--term", "terms", type=(float, str), multiple=True, metavar="WEIGHT TEXT",
              help="A text with a weight: above 1 counts more, below 1 less, below 0 against.")  # fmt: skip
@click.option("--image-term", "image_terms", type=(float, str), multiple=True, metavar="WEIGHT FILE",
              help="An image with a weight.")  # fmt: skip
@template_option
@click.option("--top", "-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="Number of results.")
@click.option("--html", "html_path", type=PATH, metavar="FILE", help="Also write the results as a page.")
@model_options
@json_option
def search(
    folder: Path,
    arguments: tuple[str, ...],
    texts: tuple[str, ...],
    images: tuple[str, ...],
    minus: tuple[str, ...],
    minus_image: tuple[str, ...],
    terms: tuple[tuple[float, str], ...],
    image_terms: tuple[tuple[float, str], ...],
    templates: tuple[str, ...],
    top: int,
    html_path: Path | None,
    choice: ModelChoice,
    as_json: bool,
) -> None:
    """Search an embedded folder for images.

    Finds the images in OUT, a folder written by siglip-onnx embed, that best fit TEXT, or the sum of texts and images
    given as options; every vector is compared. similarity is the cosine. A search for one text also gives logit and
    probability, which are those of classify; for images and sums they would have no meaning.
    """
    if len(arguments) > 1:
        raise click.UsageError(
            f"There are {len(arguments)} texts where one is expected. To search for one text, put it in quotes: "
            f'"{printable(" ".join(arguments))}"; to add up several texts, give each with --text.'
        )
    query_terms = [
        *(Term(1, text=text) for text in (*arguments, *texts)),
        *(Term(1, image=image) for image in images),
        *(Term(-1, text=text) for text in minus),
        *(Term(-1, image=image) for image in minus_image),
        *(Term(weight, text=text) for weight, text in terms),
        *(Term(weight, image=image) for weight, image in image_terms),
    ]
    if not query_terms:
        raise click.UsageError("There is nothing to search for; give a TEXT or --image FILE.")
    collection = open_collection(folder)
    facts = collection.job.facts
    variant, background = choice.variant or facts.variant, choice.background or facts.background
    model = replace(choice, variant=variant, background=background).open()
    collection.check_model(model)
    query = encode_query(model, query_terms, template=templates)
    hits = collection.search(query, top, threads=choice.threads)
    one_text = is_one_text(query_terms)
    if collection.num_unfinished:
        warn(f"{collection.num_unfinished:,} shards are not embedded yet.")
    if html_path is not None:
        with writing(html_path, " Choose another place for --html."):
            write_atomic(html_path, render_gallery(_describe_query(query_terms), hits, probability=one_text).encode())
    if as_json:
        _print_json(facts, query_terms, hits, probability=one_text)
    else:
        click.echo(f"query: {printable(_describe_query(query_terms))}")
        _print_table(hits, probability=one_text)


def _print_table(hits: Sequence[Hit], *, probability: bool) -> None:
    columns = ("path", "similarity", "logit", "probability") if probability else ("path", "similarity")
    rows = [
        (hit.path, f"{hit.similarity:.3f}", f"{hit.logit:.2f}", format_probability(hit.probability)) for hit in hits
    ]
    click.echo(format_table(columns, [row[: len(columns)] for row in rows]))


def _print_json(facts: JobFacts, query_terms: Sequence[Term], hits: Sequence[Hit], *, probability: bool) -> None:
    query = [{key: value for key, value in term._asdict().items() if value is not None} for term in query_terms]
    document = {"model": facts.model_name, "variant": facts.variant, "embedding_space": facts.embedding_space}
    unknown = {} if probability else {"logit": None, "probability": None}
    print_json(document | {"query": query, "results": [hit._asdict() | unknown for hit in hits]})


def _describe_query(query_terms: Sequence[Term]) -> str:
    """Return the query in one line: ``sea at sunset − ship``."""
    parts: list[str] = []
    for term in query_terms:
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        name = term.text if term.text is not None else Path(str(term.image)).name
        sign = "− " if term.weight < 0 else "+ " if parts else ""
        parts.append(f"{sign}{size}{name}")
    return " ".join(parts)
