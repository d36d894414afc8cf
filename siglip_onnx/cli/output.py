"""Output of the commands: tables, JSON, numbers, messages on stderr, and exit codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from wcwidth import wcswidth, wcwidth

from ..bundle.manifest import read_manifest
from ..demo import BUNDLE_PATH
from ..errors import ImageError, SiglipOnnxError
from ..system.json_files import to_json

Result = TypeVar("Result")
FAILED, SOME_FAILED = 1, 3


def report(line: str) -> None:
    """Print a line of progress on stderr."""
    click.echo(line, err=True)


def warn(message: object) -> None:
    """Print a message on stderr that names this program."""
    click.echo(f"siglip-onnx: {message}", err=True)


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an OSError into a SiglipOnnxError that names the file to be written, and says what to do."""
    try:
        yield
    except OSError as error:
        raise SiglipOnnxError(f"{path} cannot be written: {error.strerror or error}.{advice}") from error


def report_demo_model() -> None:
    """Say which model is used where the user named none, and what it knows."""
    report(f"Using the demo model, which knows only {read_manifest(BUNDLE_PATH).description}.")


def report_errors(results: Iterable[Result | ImageError]) -> list[Result | ImageError]:
    """Collect the results of images in order, and print each error as soon as it occurs."""
    collected = []
    for result in results:
        if isinstance(result, ImageError):
            warn(result)
        collected.append(result)
    return collected


def describe_error(image: str, error: ImageError) -> dict[str, Any]:
    """Return what JSON says of an image that cannot be read."""
    return {"image": image, "error": str(error), "status": error.status}


def exit_code(results: Sequence[object]) -> int:
    """Return 0 if every image was read, 1 if none was, 3 if only some were."""
    errors = sum(isinstance(result, ImageError) for result in results)
    if errors == 0:
        return 0
    return FAILED if errors == len(results) else SOME_FAILED


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    click.echo(to_json(document, indent=2))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a table whose first ``left`` columns are aligned to the left, and the others, numbers, to the right.

    Wide characters, such as Japanese ones, count as two columns.
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            _pad(cell, width, right=column >= left)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def printable(cell: str) -> str:
    """Replace control characters, which would break the line or the terminal."""
    return "".join(character if wcwidth(character) >= 0 else "\N{REPLACEMENT CHARACTER}" for character in cell)


def format_probability(value: float) -> str:
    """Return a probability with three significant digits, never rounded to 0 or 1: ``0.987``, ``1.40e-04``."""
    if 0 < value < 0.001:
        return f"{value:.2e}"
    if 0.9995 <= value < 1:
        return f"1-{1 - value:.1e}"
    return f"{value:#.3g}"


def format_cosine(value: float) -> str:
    """Return a cosine between two variants, which are as near to 1 as ``0.99985``."""
    return f"{value:.5f}"


def format_count(number: int, noun: str) -> str:
    """Return a number with a noun: ``1 vector``, ``1,200 vectors``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_size(size_bytes: int) -> str:
    """Return a size in decimal megabytes: ``379.0 MB``."""
    return f"{size_bytes / 1e6:,.1f} MB"


def _width(cell: str) -> int:
    return int(wcswidth(cell))


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space
