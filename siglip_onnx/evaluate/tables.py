"""Read the rows of CSV, TSV and JSON lines, within bounds of memory."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..system.files import open_regular

_MAX_LINE_CHARACTERS = 10_000_000  # of a line of JSON, or a row of CSV
_MAX_COLUMNS = 1000  # of CSV; a row that has fewer values is filled up


def read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows by the names of their columns; they are separated by tabs, semicolons or commas.

    Raises:
        DataError: the file cannot be read, is damaged, or has more values than columns.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            first = file.readline(_MAX_LINE_CHARACTERS)
            file.seek(0)
            delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
            lines = _Lines(file)
            rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
            columns = rows.fieldnames or ()
            if len(columns) > _MAX_COLUMNS:
                raise ValueError(
                    f"it has {len(columns):,} columns, at most {_MAX_COLUMNS:,} are read; keep those that are used"
                )
            if repeated := [name for name, count in Counter(columns).items() if name and count > 1]:
                raise ValueError(f"it has several columns {repeated[0]!r:.100}")
            for row in rows:
                lines.num_characters = 0
                if any(row.get(None, ())):
                    raise ValueError(
                        f"line {rows.line_num} has {len(columns) + len(row[None])} values for {len(columns)} columns; "
                        "a text with commas needs quotes"
                    )
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as CSV: {error}. Expected UTF-8 with a line of column names."
        ) from error


class _Lines:
    """The lines of a file; those between two resets of ``num_characters``, such as a row of CSV, are bounded."""

    def __init__(self, file: TextIOWrapper) -> None:
        self._file = file
        self.num_characters = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(_MAX_LINE_CHARACTERS + 1):
            self.num_characters += len(line)
            if self.num_characters > _MAX_LINE_CHARACTERS:
                raise ValueError(f"a line or row has more than {_MAX_LINE_CHARACTERS:,} characters")
            yield line


def read_json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects, one of each line.

    Raises:
        DataError: the file cannot be read, or a line is not an object.
    """
    number = 0
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            lines = _Lines(file)
            for number, line in enumerate(lines, 1):  # noqa: B007 - the error names it
                lines.num_characters = 0
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield row
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: {error!s:.300}. Expected one JSON object per line, in UTF-8."
        ) from error
