"""``siglip-onnx search``: the images of a folder that best fit texts and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..bulk.gallery import MAX_TILES, Group, Tile, render_gallery
from ..bulk.records import JobFacts
from ..bulk.search import Hit, Term, encode_query, find_existing, is_one_text
from ..errors import ImageError, printable
from ..heads.score import read_head
from ..heads.stored import search_by_head
from ..system.files import write_atomic
from .folders import PAGE, index_option, open_folder, warn_about_tiles
from .heads import print_scores
from .help import OUTPUT, Command, section
from .inputs import STDIN, InputReader, find_missing
from .options import (
    DECODING_OPTIONS,
    MODEL_OPTIONS,
    NAME,
    PATH,
    FiniteRange,
    ModelChoice,
    model_options,
    refuse_given,
    template_option,
)
from .output import (
    describe_result,
    format_percent,
    format_table,
    list_notes,
    print_csv,
    print_json,
    print_json_line,
    print_paths,
    report,
    shown_path,
    warn,
    writing,
)
from .outputs import check_output, overwrite_option

FIELDS = Hit._fields[:4]  # of CSV
TOP, MAX_RESULTS = 10, 100_000
_AT_FIRST = 100  # results that are looked for where their number is not known
OF_QUERIES = ("templates", "min_probability")  # options that --sort does not have


@click.command(
    cls=Command,
    examples=(
        'siglip-onnx search photos "a dog on the beach"',
        'siglip-onnx search photos --image dog.jpg --minus "people" --html results.html',
        'siglip-onnx search photos "a receipt" --min-probability 0.5 -0 | xargs -0 ls',
    ),
)
@click.argument("folder", type=PATH, metavar="FOLDER")
@click.argument("arguments", nargs=-1, metavar="[TEXT]")
@section(
    "Query",
    click.option("--text", "texts", multiple=True, metavar="TEXT", help="Like this text; repeat for more."),
    click.option("--image", "images", type=NAME, multiple=True, metavar="IMAGE",
                 help="Like this image, a file, a URL, or - for stdin; repeat for more."),
    click.option("--minus", multiple=True, metavar="TEXT", help="Not like this text; repeat for more."),
    click.option("--minus-image", type=NAME, multiple=True, metavar="IMAGE",
                 help="Not like this image; repeat for more."),
    click.option("--term", "terms", type=(float, str), multiple=True, metavar="WEIGHT TEXT",
                 help="A text with a weight: above 1 counts more, below 1 less, below 0 against."),
    click.option("--image-term", "image_terms", type=(float, str), multiple=True, metavar="WEIGHT IMAGE",
                 help="An image with a weight."),
    template_option,
)  # fmt: skip
@click.option("--sort", "head", type=PATH, metavar="HEAD",
              help="Instead of a query: the images with the highest scores of a head.")  # fmt: skip
@click.option("--sort-label", metavar="LABEL", help="The label of a head that has several.")
@click.option("--top", "-k", type=click.IntRange(1, MAX_RESULTS), metavar="N",
              help="Number of results. Default: 10, with --min-probability all.")  # fmt: skip
@click.option("--show-duplicates", is_flag=True, help="Show every file, also those with the same bytes as another.")
@click.option("--min-probability", type=FiniteRange(0, 1), metavar="P",
              help="Omit images of lower probability; for a search for one text.")  # fmt: skip
@index_option
@model_options
@section(
    OUTPUT,
    click.option("--html", "html_path", type=PATH, metavar="FILE", help="Also write the results as a page."),
    click.option("--paths", "format_", flag_value="paths", help="Print only paths, one per line."),
    click.option("-0", "--null", "format_", flag_value="null", help="Print only paths, each followed by NUL."),
    click.option("--json", "format_", flag_value="json", help="Print one JSON document."),
    click.option("--jsonl", "format_", flag_value="jsonl", help="Print one line of JSON per image."),
    click.option("--csv", "format_", flag_value="csv", help="Print CSV, one line per image."),
)
@overwrite_option
@click.pass_context
def search(
    context: click.Context,
    folder: Path,
    arguments: tuple[str, ...],
    texts: tuple[str, ...],
    images: tuple[str, ...],
    minus: tuple[str, ...],
    minus_image: tuple[str, ...],
    terms: tuple[tuple[float, str], ...],
    image_terms: tuple[tuple[float, str], ...],
    head: Path | None,
    sort_label: str | None,
    templates: tuple[str, ...],
    top: int | None,
    show_duplicates: bool,
    min_probability: float | None,
    index: Path | None,
    choice: ModelChoice,
    html_path: Path | None,
    format_: str | None,
    overwrite: bool,
) -> None:
    """Search a folder for images.

    Finds the images that best fit TEXT, or the sum of texts and images given as options; every image is compared.
    FOLDER is a folder of images, which is indexed at the first search and later brought up to date, or a folder written
    by siglip-onnx embed, whose model is used again.

    similarity is the cosine. A search for one text also gives logit and probability, which are those of classify; for
    images and sums they would have no meaning.
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
    if html_path is None:
        refuse_given(("overwrite",), "Without --html no file is written")
    if head is not None:
        if query_terms or html_path is not None or format_ not in (None, "json"):
            raise click.UsageError("--sort shows the highest scores of all images, as a table or with --json alone.")
        refuse_given(OF_QUERIES, "--sort shows the highest scores of all images")
        opened = open_folder(context, folder, index, choice)
        if not opened.is_index:
            refuse_given(MODEL_OPTIONS - {"threads"}, f"{folder} holds vectors, of which --sort needs no model")
        rank = partial(search_by_head, opened.collection, read_head(head), sort_label, threads=choice.threads)
        scored = find_existing(rank, top or TOP) if opened.is_index else rank(top or TOP)
        print_scores(opened.collection.job.facts, head, scored, as_json=format_ == "json")
        context.exit(opened.exit_code)
    refuse_given(("sort_label",), "Only --sort shows the scores of a head")
    _check_query(query_terms, min_probability)
    if html_path is not None:
        inputs = [folder, choice.model, *(term.image for term in query_terms if isinstance(term.image, str))]
        check_output(html_path, PAGE, inputs, overwrite=overwrite, option="--html")
    opened = open_folder(context, folder, index, choice)
    if not opened.is_index and all(term.image is None for term in query_terms):
        refuse_given(DECODING_OPTIONS, f"{folder} holds vectors, and the query has no image to decode")
    model = opened.open_model()
    reader = InputReader(choice.image_limits, choice.offline)
    query = encode_query(model, list(_read_images(query_terms, reader)), template=templates)
    find = partial(opened.collection.search, query, threads=choice.threads, fold_duplicates=not show_duplicates)
    find_best = partial(find_existing, find) if opened.is_index else find
    if min_probability is None:
        hits = find_best(top or TOP)
    else:
        hits = _find_probable(find_best, min_probability, top or MAX_RESULTS)
    if opened.collection.num_unfinished:
        warn(f"{opened.collection.num_unfinished:,} shards are not embedded yet.")
    facts, title = opened.collection.job.facts, describe_query(query_terms)
    if html_path is not None:
        check_output(html_path, PAGE, [hit.path for hit in hits], overwrite=overwrite, option="--html")
        tiles = [_tile(hit) for hit in hits[:MAX_TILES]]
        warn_about_tiles(html_path, len(hits), MAX_TILES)
        page = render_gallery(title, f"{folder} · {facts.model_name}, {facts.variant}", [Group("", tiles)])
        with writing(html_path, " Choose another place for --html."):
            write_atomic(html_path, page.encode())
    _print(format_, facts, query_terms, hits, one_text=query.one_text)
    if not hits:
        report("No image was found." if min_probability is None else f"No image reaches {min_probability:g}.")
    context.exit(opened.exit_code)


def _find_probable(find: Callable[[int], list[Hit]], min_probability: float, most: int) -> list[Hit]:
    """Return the images that reach a probability, the best first, at most ``most``; that there are more is reported."""
    count = min(_AT_FIRST, most)
    while True:
        hits = find(count)
        reaching = [hit for hit in hits if hit.probability is not None and hit.probability >= min_probability]
        if len(reaching) < len(hits) or len(hits) < count:
            return reaching
        if count == most:
            report(f"The last of {most:,} images reaches {min_probability:g}, too; there may be more, see --top.")
            return reaching
        count = min(8 * count, most)


def _check_query(query_terms: Sequence[Term], min_probability: float | None) -> None:
    """Check the query before a model is loaded."""
    if not query_terms:
        raise click.UsageError("There is nothing to search for; give a TEXT or --image IMAGE.")
    if all(term.text is None for term in query_terms):
        refuse_given(("templates",), "The query has no text")
    if min_probability is not None and not is_one_text(query_terms):
        raise click.UsageError("--min-probability is for a search for one text; images and sums have no probability.")
    images = [str(term.image) for term in query_terms if term.image is not None]
    if images.count(STDIN) > 1:
        raise click.UsageError("- is given twice, but stdin has one image.")
    for image in images:
        if missing := find_missing([image]):
            raise missing[0]


def _read_images(query_terms: Iterable[Term], reader: InputReader) -> Iterable[Term]:
    for term in query_terms:
        if term.image is None:
            yield term
            continue
        image = reader.open(str(term.image))
        if isinstance(image, ImageError):
            raise image
        yield term._replace(image=image)


def _tile(hit: Hit) -> Tile:
    shown = shown_path(hit.path)
    note = f", {_note(hit)}" if _note(hit) else ""
    if hit.probability is None:
        return Tile(hit.path, f"{hit.similarity:.3f}", f"similarity{note}", shown)
    return Tile(hit.path, format_percent(hit.probability), f"similarity {hit.similarity:.3f}{note}", shown)


def _print(
    format_: str | None, facts: JobFacts, query_terms: Sequence[Term], hits: Sequence[Hit], *, one_text: bool
) -> None:
    if format_ == "json":
        _print_json(facts, query_terms, hits)
    elif format_ == "jsonl":
        for hit in hits:
            print_json_line(describe_result(hit))
    elif format_ == "csv":
        rows = [["" if value is None else value for value in hit[: len(FIELDS)]] for hit in hits]
        print_csv([FIELDS, *rows])
    elif format_ in ("paths", "null"):
        print_paths([hit.path for hit in hits], null=format_ == "null")
    else:
        click.echo(f"query: {printable(describe_query(query_terms))}")
        _print_table(hits, one_text=one_text)


def _print_table(hits: Sequence[Hit], *, one_text: bool) -> None:
    """Print the numbers first, so that they stay in sight beside long paths."""
    has_notes = any(map(_note, hits))
    rows = [
        (*([format_percent(hit.probability)] if hit.probability is not None else []), f"{hit.similarity:.3f}",
         *([_note(hit)] if has_notes else []), shown_path(hit.path))
        for hit in hits
    ]  # fmt: skip
    header = (*(["probability"] if one_text else []), "similarity", *(["note"] if has_notes else []), "path")
    click.echo(format_table(header, rows, left=0, last_left=True))


def _note(hit: Hit) -> str:
    identical = [f"{len(hit.duplicates) + 1:,} identical"] if hit.duplicates else []
    return ", ".join([*list_notes(hit), *identical])


def _print_json(facts: JobFacts, query_terms: Sequence[Term], hits: Sequence[Hit]) -> None:
    query = [{key: value for key, value in term._asdict().items() if value is not None} for term in query_terms]
    document: dict[str, Any] = {"model": facts.model_name, "variant": facts.variant}
    document |= {"embedding_space": facts.embedding_space, "query": query}
    print_json(document | {"results": [describe_result(hit) for hit in hits]})


def describe_query(query_terms: Sequence[Term]) -> str:
    """Return the query in one line: ``sea at sunset − ship``."""
    parts: list[str] = []
    for term in query_terms:
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        image = "image from stdin" if term.image == STDIN else Path(str(term.image)).name
        sign = "− " if term.weight < 0 else "+ " if parts else ""
        parts.append(f"{sign}{size}{image if term.text is None else term.text}")
    return " ".join(parts)
