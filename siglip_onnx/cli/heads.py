"""Score heads in ``classify --head`` and ``search --sort``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..bulk.records import JobFacts
from ..errors import ImageError
from ..heads.score import describe_scores, read_head
from ..system.workers import in_batches
from .inputs import InputReader, list_images
from .options import ModelChoice
from .output import (
    describe_error,
    describe_result,
    exit_code,
    format_table,
    list_notes,
    print_csv,
    print_json,
    print_json_line,
    print_json_list,
    warn,
)

if TYPE_CHECKING:
    from ..heads.stored import Scored

_TABLE_ROWS = 10_000  # whose columns are aligned with each other


def classify_with_head(path: Path, arguments: Sequence[str], choice: ModelChoice, format_: str | None) -> int:
    """Print the scores of images; return the exit code."""
    images, reader = list_images(arguments), InputReader(choice.image_limits, choice.offline)
    head = read_head(path)
    model = choice.open(num_inputs=len(images))
    head.check(model.embedding_dim, model.embedding_space)
    outcomes: list[ImageError | None] = []

    def answer() -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
        for image, result in reader.embed(images, model.stream_images):
            outcomes.append(result if isinstance(result, ImageError) else None)
            if isinstance(result, ImageError):
                warn(result)
                yield image, result
            else:
                yield image, describe_scores(head, head.scores(result[np.newaxis])[0])

    documents = (
        describe_error(image, scores) if isinstance(scores, ImageError) else {"image": image, "scores": scores}
        for image, scores in answer()
    )
    if format_ == "json":
        facts = {"model": model.bundle.manifest.model_name, "variant": model.variant,
                 "embedding_space": model.embedding_space, "head": str(path)}  # fmt: skip
        print_json_list(facts, "results", documents)
    elif format_ == "jsonl":
        for document in documents:
            print_json_line(document)
    elif format_ == "csv":
        print_csv([("image", "label", "score", "error")])
        for image, scores in answer():
            if isinstance(scores, ImageError):
                print_csv([(image, "", "", scores)])
            else:
                print_csv([(image, *score, "") for score in scores.items()])
    else:
        rows = (
            (image, label, f"{score:.3f}")
            for image, scores in answer()
            if not isinstance(scores, ImageError)
            for label, score in scores.items()
        )
        for number, part in enumerate(in_batches(rows, _TABLE_ROWS)):
            click.echo(("\n" if number else "") + format_table(("image", "label", "score"), part, left=2))
    return exit_code(outcomes)


def print_scores(facts: JobFacts, path: Path, scored: Sequence[Scored], *, as_json: bool) -> None:
    """Print the images of the highest score of the head in the file ``path``."""
    if as_json:
        document = {"model": facts.model_name, "variant": facts.variant, "embedding_space": facts.embedding_space}
        print_json(document | {"head": str(path), "results": [describe_result(image) for image in scored]})
        return
    notes = [", ".join(list_notes(image)) for image in scored]
    header = ("path", "score", *(["note"] if any(notes) else []))
    rows = [
        (image.path, f"{image.score:.3f}", *([note] if any(notes) else []))
        for image, note in zip(scored, notes, strict=True)
    ]
    click.echo(format_table(header, rows))
