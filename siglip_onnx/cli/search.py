"""``siglip-onnx search``: the pictures of an embedded folder that texts and pictures describe best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SiglipOnnxError
from .options import ModelChoice, model_options, template_option, to_json

if TYPE_CHECKING:
    from ..bulk.query import Term
    from ..bulk.search import Hit


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUT")
@click.argument("texts", nargs=-1, metavar="[TEXT...]")
@click.option("--image", "images", multiple=True, metavar="FILE", help="Like this picture; repeat for more.")
@click.option("--minus", multiple=True, metavar="TEXT", help="Not like this text; repeat for more.")
@click.option("--minus-image", multiple=True, metavar="FILE", help="Not like this picture; repeat for more.")
@click.option("--term", "terms", type=(float, str), multiple=True, metavar="WEIGHT TEXT",
              help="A text that counts more, less, or (below 0) against.")  # fmt: skip
@click.option("--image-term", "image_terms", type=(float, str), multiple=True, metavar="WEIGHT FILE",
              help="The same with a picture.")  # fmt: skip
@template_option
@click.option("--top", "-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many to find.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="FILE", help="Write a page of them.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
    """Find the pictures in OUT, made by siglip-onnx embed, that fit texts, pictures, or both together.

    Every vector is compared. logit and probability are those that classify gives for one text; of a sum of several
    terms, or of pictures, they only order. similarity is the cosine.
    """
    from ..bulk.query import Term, encode_query  # noqa: PLC0415 - keeps --help fast
    from ..bulk.search import open_collection  # noqa: PLC0415

    wanted = [
        *(Term(1, text=text) for text in texts),
        *(Term(1, image=image) for image in images),
        *(Term(-1, text=text) for text in minus),
        *(Term(-1, image=image) for image in minus_image),
        *(Term(weight, text=text) for weight, text in terms),
        *(Term(weight, image=image) for weight, image in image_terms),
    ]
    if not wanted:
        raise click.UsageError("There is nothing to look for; give a TEXT or --image FILE.")
    collection = open_collection(folder)
    siglip = replace(choice, variant=choice.variant or collection.job.facts.variant).open()
    collection.check_model(siglip)
    query = encode_query(siglip, wanted, template=templates)
    hits = collection.search(query, top, threads=choice.threads)
    if collection.num_unfinished:
        click.echo(f"siglip-onnx: {collection.num_unfinished:,} shards are not embedded yet.", err=True)
    if html_path is not None:
        _write_gallery(html_path, wanted, hits)
    if as_json:
        _print_json(collection.job.facts, wanted, hits)
    else:
        _print_table(hits)


def _print_table(hits: Sequence[Hit]) -> None:
    from .table import format_table, three_digits  # noqa: PLC0415 - keeps --help fast

    rows = [(hit.path, f"{hit.similarity:.3f}", f"{hit.logit:.2f}", three_digits(hit.probability)) for hit in hits]
    click.echo(format_table(("path", "similarity", "logit", "probability"), rows))


def _print_json(facts: Any, wanted: Sequence[Term], hits: Sequence[Hit]) -> None:
    query = [{key: value for key, value in term._asdict().items() if value is not None} for term in wanted]
    document = {
        "model": facts.model_name,
        "variant": facts.variant,
        "embedding_space": facts.embedding_space,
        "query": query,
        "results": [hit._asdict() for hit in hits],
    }
    click.echo(to_json(document, indent=2))


def _write_gallery(path: Path, wanted: Sequence[Term], hits: Sequence[Hit]) -> None:
    from ..bulk.gallery import render_gallery  # noqa: PLC0415 - keeps --help fast
    from ..system.files import write_atomic  # noqa: PLC0415

    try:
        write_atomic(path, render_gallery(_describe_query(wanted), hits).encode())
    except OSError as error:
        raise SiglipOnnxError(
            f"{path} cannot be written: {error.strerror}. Choose another place for --html."
        ) from error


def _describe_query(wanted: Sequence[Term]) -> str:
    """Return the query in one line: ``sea at sunset − ship``."""
    parts: list[str] = []
    for term in wanted:
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        name = term.text if term.text is not None else Path(str(term.image)).name
        sign = "− " if term.weight < 0 else "+ " if parts else ""
        parts.append(f"{sign}{size}{name}")
    return " ".join(parts)
