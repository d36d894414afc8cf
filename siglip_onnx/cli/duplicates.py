"""``siglip-onnx duplicates``: groups of identical and near-identical images of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ..bulk.duplicates import DEFAULT_THRESHOLD, Copy, find_duplicates
from ..bulk.gallery import MAX_TILES, Group, Tile, render_gallery
from ..bulk.records import JobFacts
from ..system.files import write_atomic
from .folders import PAGE, index_option, open_folder, warn_about_tiles
from .help import OUTPUT, Command, section
from .options import MODEL_OPTIONS, PATH, FiniteRange, ModelChoice, json_option, model_options, refuse_given
from .output import (
    describe_result,
    format_count,
    format_size,
    format_table,
    list_notes,
    print_json,
    shown_path,
    warn,
    writing,
)
from .outputs import check_output, overwrite_option


@click.command(
    cls=Command,
    examples=(
        "siglip-onnx duplicates photos --html duplicates.html",
        "siglip-onnx duplicates photos --threshold 1 --json",
    ),
)
@click.argument("folder", type=PATH, metavar="FOLDER")
@click.option("--threshold", type=FiniteRange(0, 1), default=DEFAULT_THRESHOLD, show_default=True,
              help="Smallest cosine of an image with the first of its group; 1 for identical images only.")  # fmt: skip
@index_option
@model_options
@section(
    OUTPUT, click.option("--html", "html_path", type=PATH, metavar="FILE", help="Also write the groups as a page.")
)
@overwrite_option
@json_option
@click.pass_context
def duplicates(
    context: click.Context,
    folder: Path,
    threshold: float,
    index: Path | None,
    choice: ModelChoice,
    html_path: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Find identical and near-identical images in a folder.

    FOLDER is a folder of images, which is indexed as by search, or a folder written by siglip-onnx embed. The first
    image of a group has the most pixels; the others are compared with it. Nothing is deleted.
    """
    if html_path is None:
        refuse_given(("overwrite",), "Without --html no file is written")
    else:
        check_output(html_path, PAGE, [folder, choice.model], overwrite=overwrite, option="--html")
    opened = open_folder(context, folder, index, choice)
    if not opened.is_index:
        refuse_given(MODEL_OPTIONS, f"{folder} holds vectors, which are compared without a model")
    collection, facts = opened.collection, opened.collection.job.facts
    if collection.num_unfinished:
        warn(f"{collection.num_unfinished:,} shards are not embedded yet.")
    groups, num_changed = find_duplicates(collection, threshold, only_existing=opened.is_index)
    if num_changed:
        warn(
            f"Images whose files changed after they were embedded are left out: {num_changed:,}. Run the embed command "
            "again."
        )
    summary = _summarize(groups)
    if html_path is not None:
        copies = [copy.path for group in groups for copy in group]
        check_output(html_path, PAGE, copies, overwrite=overwrite, option="--html")
        sections, left = [], MAX_TILES
        for number, group in enumerate(groups, 1):
            tiles = [_tile(copy, is_first=copy is group[0]) for copy in group[:left]]
            left -= len(tiles)
            if tiles:
                sections.append(Group(f"Group {number}: {format_count(len(group), 'image')}", tiles))
        warn_about_tiles(html_path, len(copies), MAX_TILES)
        subtitle = f"{folder} · {summary} · cosine at least {threshold:g} · {facts.model_name}, {facts.variant}"
        page = render_gallery("Duplicates", subtitle, sections)
        with writing(html_path, " Choose another place for --html."):
            write_atomic(html_path, page.encode())
    if as_json:
        _print_json(facts, threshold, groups)
    else:
        if groups:
            click.echo(_format(groups) + "\n")
        click.echo(summary)
    context.exit(opened.exit_code)


def _summarize(groups: Sequence[Sequence[Copy]]) -> str:
    copies = [copy for group in groups for copy in group[1:]]
    size = _size(sum(copy.size_bytes for copy in copies))
    if not copies:
        return "no duplicates"
    if len(copies) == 1:
        return f"1 copy of 1 image takes {size}"
    return f"{len(copies):,} copies of {format_count(len(groups), 'image')} take {size}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e3:.0f} kB" if size_bytes < 1e6 else format_size(size_bytes)


def _similarity(copy: Copy) -> str:
    return "identical" if copy.identical else f"{copy.similarity:.3f}"


def _pixels(copy: Copy) -> str:
    return f"{copy.width} x {copy.height}" if copy.width else ""


def _format(groups: Sequence[Sequence[Copy]]) -> str:
    """Return one table, with an empty line between the groups; the first image of a group has no similarity."""
    has_notes = any(list_notes(copy) for group in groups for copy in group)
    rows = [
        ("" if is_first else _similarity(copy), _pixels(copy), _size(copy.size_bytes),
         *([", ".join(list_notes(copy))] if has_notes else []), shown_path(copy.path))
        for group in groups
        for is_first, copy in ((copy is group[0], copy) for copy in group)
    ]  # fmt: skip
    columns = ("similarity", "pixels", "size", *(["note"] if has_notes else []), "path")
    header, *lines = format_table(columns, rows, left=0, last_left=True).split("\n")
    blocks = [header]
    for group in groups:
        blocks.append("\n".join(lines[: len(group)]))
        del lines[: len(group)]
    return "\n\n".join(blocks).replace("\n\n", "\n", 1)


def _tile(copy: Copy, *, is_first: bool) -> Tile:
    details = [_pixels(copy), _size(copy.size_bytes), *list_notes(copy)]
    return Tile(
        copy.path, "first" if is_first else _similarity(copy), ", ".join(filter(None, details)), shown_path(copy.path)
    )


def _print_json(facts: JobFacts, threshold: float, groups: Sequence[Sequence[Copy]]) -> None:
    document = {"model": facts.model_name, "variant": facts.variant, "embedding_space": facts.embedding_space}
    described = [[describe_result(copy) for copy in group] for group in groups]
    print_json(document | {"threshold": threshold, "groups": described})
