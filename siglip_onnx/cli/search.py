"""``siglip-onnx search``: the images of an embedded folder that best fit texts and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ..bulk.gallery import render_gallery
from ..bulk.records import JobFacts
from ..bulk.search import Hit, Term, encode_query, open_collection
from ..system.files import write_atomic
from .options import PATH, ModelChoice, json_option, model_options, template_option
from .output import format_probability, format_table, print_json, warn, writing


@click.command()
@click.argument("folder", type=PATH, metavar="OUT")
@click.argument("texts", nargs=-1, metavar="[TEXT...]")
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

    Finds the images in OUT, a folder written by siglip-onnx embed, that best fit the texts, the images, or both
    together; every vector is compared. similarity is the cosine. logit and probability are those of classify for one
    text; for images and for several terms they only give the order.
    """
    query_terms = [
        *(Term(1, text=text) for text in texts),
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
    if collection.num_unfinished:
        warn(f"{collection.num_unfinished:,} shards are not embedded yet.")
    if html_path is not None:
        with writing(html_path, " Choose another place for --html."):
            write_atomic(html_path, render_gallery(_describe_query(query_terms), hits).encode())
    if as_json:
        _print_json(facts, query_terms, hits)
    else:
        _print_table(hits)


def _print_table(hits: Sequence[Hit]) -> None:
    rows = [
        (hit.path, f"{hit.similarity:.3f}", f"{hit.logit:.2f}", format_probability(hit.probability)) for hit in hits
    ]
    click.echo(format_table(("path", "similarity", "logit", "probability"), rows))


def _print_json(facts: JobFacts, query_terms: Sequence[Term], hits: Sequence[Hit]) -> None:
    query = [{key: value for key, value in term._asdict().items() if value is not None} for term in query_terms]
    document = {"model": facts.model_name, "variant": facts.variant, "embedding_space": facts.embedding_space}
    print_json(document | {"query": query, "results": [hit._asdict() for hit in hits]})


def _describe_query(query_terms: Sequence[Term]) -> str:
    """Return the query in one line: ``sea at sunset − ship``."""
    parts: list[str] = []
    for term in query_terms:
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        name = term.text if term.text is not None else Path(str(term.image)).name
        sign = "− " if term.weight < 0 else "+ " if parts else ""
        parts.append(f"{sign}{size}{name}")
    return " ".join(parts)
