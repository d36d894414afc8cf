"""Read the rows of CSV, TSV and JSON lines, within bounds of memory."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..system.files import open_regular

_TAB = "\t"
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_MAX_LINE_CHARACTERS = 10_000_000  # of a line of JSON, or a row of CSV
_MAX_COLUMNS = 1000  # of CSV; a row that has fewer values is filled up
_log = logging.getLogger(__name__)


def read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows by the names of their columns; values are separated by commas, semicolons or tabs.

    With tabs, a line is a row, and quotation marks are part of a text unless they enclose it as those of CSV do.

    Raises:
        DataError: the file cannot be read, is damaged, or has more values than columns.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            first = file.readline(_MAX_LINE_CHARACTERS)
            file.seek(0)
            delimiter = _TAB if _TAB in first else ";" if ";" in first and "," not in first else ","
            lines = _Lines(file)
            quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == _TAB else csv.QUOTE_MINIMAL
            reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
            rows: Iterator[list[str]] = reader if delimiter != _TAB else (list(map(_unquoted, row)) for row in reader)
            columns = next(rows, [])
            _check_columns(columns)
            last_line, num_broken = reader.line_num, 0
            for row in rows:
                lines.num_characters = 0
                num_broken += reader.line_num > last_line + 1
                last_line = reader.line_num
                if any(row[len(columns) :]):
                    raise ValueError(
                        f"line {last_line} has {len(row)} values for {len(columns)} columns; "
                        + ("a text cannot contain tabs" if delimiter == _TAB else "a text with commas needs quotes")
                    )
                if row:
                    yield dict(zip_longest(columns, row[: len(columns)]))
            if num_broken:
                _log.warning("%s: %d rows span several lines, from one quotation mark to another; check that none "
                             "of these marks is part of a text.", path, num_broken)  # fmt: skip
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as CSV: {error}. Expected UTF-8 with a line of column names."
        ) from error


def _check_columns(columns: Sequence[str]) -> None:
    if len(columns) > _MAX_COLUMNS:
        raise ValueError(
            f"it has {len(columns):,} columns, at most {_MAX_COLUMNS:,} are read; keep those that are used"
        )
    if repeated := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise ValueError(f"it has several columns {repeated[0]!r:.100}")


def _unquoted(value: str) -> str:
    """Return a value without the quotation marks that enclose it, inside which others are doubled."""
    match = _QUOTED.fullmatch(value)
    return value if match is None else match[1].replace('""', '"')


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
