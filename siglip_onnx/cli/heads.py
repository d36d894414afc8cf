"""Score heads in ``classify --head`` and ``search --sort``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ..bulk.records import JobFacts
from ..errors import ImageError
from ..heads.score import describe_scores, read_head
from .inputs import InputReader, list_images
from .options import ModelChoice
from .output import describe_error, describe_result, exit_code, format_table, print_csv, print_json, warn

if TYPE_CHECKING:
    from ..heads.stored import Scored


def classify_with_head(path: Path, arguments: Sequence[str], choice: ModelChoice, format_: str | None) -> int:
    """Print the scores of images; return the exit code."""
    if format_ == "jsonl":
        raise click.UsageError("The scores of a head are printed as a table, --json or --csv; leave out --jsonl.")
    images, reader = list_images(arguments), InputReader(choice.image_limits, choice.offline)
    head = read_head(path)
    model = choice.open(num_inputs=len(images))
    head.check(model.embedding_dim, model.embedding_space)
    results = []
    for _, result in reader.embed(images, model.stream_images):
        if isinstance(result, ImageError):
            warn(result)
        results.append(result)
    pairs = [
        (image, result if isinstance(result, ImageError) else describe_scores(head, head.scores(result[np.newaxis])[0]))
        for image, result in zip(images, results, strict=True)
    ]
    if format_ == "json":
        facts = {"model": model.bundle.manifest.model_name, "variant": model.variant,
                 "embedding_space": model.embedding_space, "head": str(path)}  # fmt: skip
        print_json(facts | {"results": [
            describe_error(image, scores) if isinstance(scores, ImageError) else {"image": image, "scores": scores}
            for image, scores in pairs
        ]})  # fmt: skip
        return exit_code(results)
    rows: list[tuple[str, str, object, object]] = []
    for image, scores in pairs:
        if isinstance(scores, ImageError):
            rows.append((image, "", "", scores))
        else:
            rows += [(image, label, score, "") for label, score in scores.items()]
    if format_ == "csv":
        print_csv([("image", "label", "score", "error"), *rows])
    elif table := [(image, label, f"{score:.3f}") for image, label, score, error in rows if not error]:
        click.echo(format_table(("image", "label", "score"), table, left=2))
    return exit_code(results)


def print_scores(facts: JobFacts, path: Path, scored: Sequence[Scored], *, as_json: bool) -> None:
    """Print the images of the highest score of the head in the file ``path``."""
    if as_json:
        document = {"model": facts.model_name, "variant": facts.variant, "embedding_space": facts.embedding_space}
        print_json(document | {"head": str(path), "results": [describe_result(image) for image in scored]})
        return
    notes = ["missing" if image.missing else "changed" if image.changed else "" for image in scored]
    header = ("path", "score", *(["note"] if any(notes) else []))
    rows = [
        (image.path, f"{image.score:.3f}", *([note] if any(notes) else []))
        for image, note in zip(scored, notes, strict=True)
    ]
    click.echo(format_table(header, rows))
