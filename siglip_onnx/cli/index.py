"""``siglip-onnx index``: an approximate index of an embedded folder, for ``search --approximate``."""

from __future__ import annotations

from pathlib import Path

import click

from .output import to_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads; all this process may use.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON summary.")
def index(folder: Path, threads: int | None, as_json: bool) -> None:
    """Make an approximate index of OUT, for tens of millions of vectors; needs [index].

    It says which share of the exact nearest ten it finds. Make it again when OUT has changed.
    """
    from ..bulk.index import build_index  # noqa: PLC0415 - keeps --help fast
    from ..bulk.search import open_collection  # noqa: PLC0415

    facts = build_index(open_collection(folder), threads=threads)
    summary = f"{folder}: an index of {facts['vectors']:,} vectors, recall at 10 {facts['recall_at_10']:.3f}"
    click.echo(to_json({"out": str(folder)} | facts, indent=2) if as_json else summary)
