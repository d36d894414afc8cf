"""Write an evaluation into a folder: JSON, a table of the classes, and the confusion matrix as CSV and as an image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import SiglipOnnxError
from ..system.csv_text import to_csv
from ..system.files import write_atomic
from ..system.json_files import to_json
from .run import Evaluation

RESULT, PER_CLASS = "result.json", "per_class.csv"
_SIDE = 1000  # pixels of the matrix, about
_TEXT_FROM = 12  # pixels of a cell from which names are drawn
_NAME_CHARACTERS = 24
_DARK = np.array([8, 48, 107])  # of a cell that has all images of its class


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write all files of an evaluation; return their paths.

    Raises:
        SiglipOnnxError: a file cannot be written.
    """
    contents = {RESULT: (to_json(evaluation.to_document(), indent=2) + "\n").encode()}
    if evaluation.classes:
        contents[PER_CLASS] = _class_csv(evaluation)
    for name, scores in evaluation.scores.items():
        if scores.confusion is not None:
            contents[f"confusion_{name}.csv"] = confusion_csv(scores.confusion, evaluation.classes)
            contents[f"confusion_{name}.png"] = confusion_png(scores.confusion, evaluation.classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise SiglipOnnxError(
            f"{folder} cannot be written: {error.strerror or error}. Choose another --out."
        ) from error
    return [folder / name for name in contents]


def confusion_csv(matrix: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Return the matrix as CSV: a row per true class, a column per answer."""
    rows = ([name, *counts] for name, counts in zip(classes, matrix.tolist(), strict=True))
    return _csv([["true class", *classes], *rows])


def confusion_png(matrix: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw the matrix, true classes downward, answers across; the shade of a cell is its share of the true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colors = (255 + (_DARK - 255) * shares[..., np.newaxis]).round().astype(np.uint8)
    cell = max(1, min(40, _SIDE // len(classes)))
    cells = Image.fromarray(colors.repeat(cell, axis=0).repeat(cell, axis=1))
    font = ImageFont.load_default(max(10, min(16, cell - 2)))
    names = [_drawable(name, number) for number, name in enumerate(classes)] if cell >= _TEXT_FROM else []
    margin = int(max((font.getlength(name) for name in names), default=0)) + 30
    image = Image.new("RGB", (margin + cells.width + 10, margin + cells.height + 10), "white")
    image.paste(cells, (margin, margin))
    pen = ImageDraw.Draw(image)
    pen.rectangle((margin - 1, margin - 1, margin + cells.width, margin + cells.height), outline="gray")
    down, across = (Image.new("RGB", (margin - 6, cells.height), "white") for _ in range(2))
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        ImageDraw.Draw(down).text((down.width, middle), name, "black", font, anchor="rm")
        ImageDraw.Draw(across).text((0, middle), name, "black", font, anchor="lm")
    if names:
        image.paste(down, (0, margin))
        image.paste(across.rotate(90, expand=True), (margin, 0))
    pen.text((4, 4), "true down, answered across", "black", ImageFont.load_default(12))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _drawable(name: str, number: int) -> str:
    """Return a name that Pillow's built-in font can draw, or the number of its row in the CSV."""
    short = name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 3] + "..."
    return short if short.isascii() else str(number + 1)


def _class_csv(evaluation: Evaluation) -> bytes:
    rows = evaluation.class_rows()
    keys = [(name, key) for name, scores in evaluation.scores.items() for key in scores.per_class]
    header = ["class", "images", *(f"{name} {key}" for name, key in keys)]
    lines = ([row["class"], row["images"], *(row[name][key] for name, key in keys)] for row in rows)
    return _csv([header, *lines])


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    return to_csv(rows).encode("utf-8", "surrogateescape")  # the bytes of names that are not Unicode
