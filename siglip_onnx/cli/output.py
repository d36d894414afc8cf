"""Output of the commands: tables, JSON, numbers, messages on stderr, and exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..bundle.manifest import read_manifest
from ..demo import BUNDLE_PATH
from ..errors import ImageError, SiglipOnnxError, printable
from ..system.csv_text import to_csv
from ..system.json_files import to_json

_NOTES = ("missing", "changed", "truncated")  # fields of results that a table notes
_OPTIONAL_FIELDS = (*_NOTES, "duplicates")
FAILED, SOME_FAILED = 1, 3
FOR_PHOTOGRAPHS = "siglip2-base-patch16-224"
_NAME_BYTES = re.compile("([\udc80-\udcff]+)")  # of names that are not Unicode
_NARROWEST = 10  # columns of the first column of a table
_WIDEST = 500  # to which other rows are padded
_CHARACTERS_PER_COLUMN = 4  # accents and the like have no width of their own


def report(line: str) -> None:
    """Print a line of progress on stderr."""
    click.echo(printable(line), err=True)


def show(line: str) -> None:
    """Print a line of text on stdout."""
    click.echo(printable(line))


def warn(message: object) -> None:
    """Print a message on stderr that names this program."""
    click.echo(f"siglip-onnx: {printable(message)}", err=True)


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an OSError into a SiglipOnnxError that names the file to be written, and says what to do."""
    try:
        yield
    except SiglipOnnxError:
        raise
    except OSError as error:
        raise SiglipOnnxError(f"{path} cannot be written: {error.strerror or error}.{advice}") from error


def report_demo_model() -> None:
    """Say which model is used where the user named none, what it knows, and how to get one for photographs."""
    report(f"Using the demo model, which knows only {read_manifest(BUNDLE_PATH).description}.")
    report(f"For photographs: siglip-onnx models pull {FOR_PHOTOGRAPHS}, then --model {FOR_PHOTOGRAPHS}")


def describe_error(image: str, error: ImageError) -> dict[str, Any]:
    """Return what JSON says of an image that cannot be read."""
    return {"image": image, "error": str(error), "status": error.status}


def exit_code(results: Sequence[object]) -> int:
    """Return 0 if every image was read, 1 if none was, 3 if only some were."""
    errors = sum(isinstance(result, ImageError) for result in results)
    if errors == 0:
        return 0
    return FAILED if errors == len(results) else SOME_FAILED


def describe_result(result: NamedTuple) -> dict[str, Any]:
    """Return the fields of a result for JSON; those of :data:`_OPTIONAL_FIELDS` only where they say something."""
    fields: dict[str, Any] = result._asdict()
    return {name: value for name, value in fields.items() if name not in _OPTIONAL_FIELDS or value}


def list_notes(result: NamedTuple) -> list[str]:
    """Return what is to be noted of a result: the names of those of :data:`_NOTES` that are true."""
    return [name for name in _NOTES if getattr(result, name, False)]


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    print_json_line(document, indent=2)


def print_json_list(facts: Mapping[str, Any], key: str, items: Iterable[object]) -> None:
    """Print ``facts`` with a list as their last entry, item by item: as :func:`print_json`, without all in memory."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    head, _, tail = to_json({**facts, key: []}, 2, encoding=encoding).rpartition("]")
    separator = "\n    "
    for item in items:
        click.echo(head + separator + to_json(item, 2, encoding=encoding).replace("\n", "\n    "), nl=False)
        head, separator = "", ",\n    "
    click.echo(head + ("" if head else "\n  ") + "]" + tail)


def print_json_line(document: object, indent: int | None = None) -> None:
    """Print JSON on stdout; what its encoding lacks, and a terminal would obey, is escaped as JSON escapes it."""
    text = to_json(document, indent, encoding=getattr(sys.stdout, "encoding", None) or "utf-8")
    if sys.stdout.isatty():
        text = "".join(each if each in ("\n", printable(each)) else _escape_json(each) for each in text)
    click.echo(text)


def _escape_json(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else json.dumps(character)[1:-1]


def print_csv(rows: Iterable[Sequence[object]]) -> None:
    """Print rows of CSV on stdout: exactly, for other programs; on a terminal with escapes made visible."""
    if sys.stdout.isatty():
        rows = ([printable(cell) for cell in row] for row in rows)
    click.echo(_encode(to_csv(rows)), nl=False)  # as bytes, of which click changes none


def _encode(text: str) -> bytes:
    """Return text in the encoding of stdout, with the bytes of names as they are, and what it lacks as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return b"".join(
        os.fsencode(part) if number % 2 else part.encode(encoding, "backslashreplace")
        for number, part in enumerate(_NAME_BYTES.split(text))
    )


def format_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    last_left: bool = False,
    max_width: int | None = None,
) -> str:
    """Return a table whose first ``left`` columns are aligned to the left, and the others, numbers, to the right.

    With ``last_left`` the last column is aligned to the left too. Wide characters, such as Japanese ones, count as two
    columns. Cells of the first column are shortened where the table would be wider than ``max_width``. A very long cell
    does not widen the rows of others.
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(min(_width(line[column]), _WIDEST) for line in lines) for column in range(len(header))]
    if max_width is not None:
        widths[0] = min(widths[0], max(_NARROWEST, max_width - sum(widths[1:]) - 2 * (len(widths) - 1)))
        lines = [[shorten(first, widths[0]), *rest] for first, *rest in lines]
    right = [column >= left for column in range(len(header))]
    right[-1] &= not last_left
    return "\n".join(
        "  ".join(
            _pad(cell, width, right=to_right) for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def shown_path(path: str) -> str:
    """Return the shorter of a path and the same path from the current folder; both open the file."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the current folder was removed, or is on another drive
        return path
    return min(relative, path, key=len)


def print_paths(paths: Iterable[str], *, null: bool) -> None:
    """Print paths for other programs, exactly as they are, each followed by a line feed or a NUL character.

    One that begins with ``-``, and would be taken for an option, gets ``./`` before it. On a terminal, escapes in paths
    are made visible.
    """
    end = b"\0" if null else b"\n"
    show = printable if sys.stdout.isatty() else str
    shown = (os.path.join(os.curdir, path) if path.startswith("-") else path  # noqa: PTH118 - Path drops the dot
             for path in map(shown_path, paths))  # fmt: skip
    click.echo(b"".join(os.fsencode(show(path)) + end for path in shown), nl=False)


def terminal_width() -> int | None:
    """Return the number of columns of the terminal, None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def shorten(cell: str, width: int) -> str:
    """Return text that is at most ``width`` columns wide; one that is cut ends with an ellipsis."""
    begin = cell[: _CHARACTERS_PER_COLUMN * (width + 1)]
    if len(begin) == len(cell) and _width(cell) <= width:
        return cell
    end = len(begin)
    while end and _width(cell[:end]) > width - 1:
        end -= 1
    return cell[:end] + "…"


def format_percent(value: float) -> str:
    """Return a probability or share for people: ``99.3 %``, ``< 0.1 %``; 0 and 1 only where it is exactly that.

    nan, of a model that has no probabilities, is empty.
    """
    if math.isnan(value):
        return ""
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def draw_bar(value: float, width: int = 20) -> str:
    """Return a bar for a value from 0 to 1 in steps of an eighth of a column, padded to ``width`` columns."""
    eighths = 0 if math.isnan(value) else round(value * width * 8)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8]
    return f"{'█' * (eighths // 8)}{partial}".ljust(width)[:width]


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
    if cell.isascii() and cell.isprintable():
        return len(cell)
    from wcwidth import wcswidth  # noqa: PLC0415 - its tables take long to load, and most output is ASCII

    return int(wcswidth(cell))


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space
