"""Number the classes of a data set: by the lines of a file of labels, by the names of folders, or by their labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from ..errors import DataError
from ..system.files import open_regular

Key = str | int
_MAX_LABELS_BYTES = 100_000_000
_WHOLE_NUMBER = re.compile(r"(-?\d{1,18})(?:\.0)?")


def read_labels(path: Path) -> list[str] | dict[str, str]:
    """Return the words for classes: one class per line, or lines of ``name<TAB>words``.

    Raises:
        DataError: the file cannot be read, is empty, or mixes both kinds of lines.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_LABELS_BYTES + 1)
        if len(content) > _MAX_LABELS_BYTES:
            raise ValueError(f"it has more than {_MAX_LABELS_BYTES:,} bytes")
        lines = [line for line in split_lines(content.decode("utf-8-sig")) if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a UTF-8 file with one label per line.") from error
    pairs = [line.split("\t", 1) for line in lines]
    if not lines or len({len(pair) for pair in pairs}) > 1:
        odd = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) == 1), "nothing")
        raise DataError(
            f"{path} has the line {odd!r:.100}; expected either one label per line, or name<TAB>words on each line."
        )
    if len(pairs[0]) == 1:
        return [line.strip() for line in lines]
    return {name.strip(): words.strip() for name, words in pairs}


def split_lines(text: str) -> list[str]:
    """Return the lines of a text as a file has them; ``str.splitlines`` also splits at separators inside a line."""
    return [line.rstrip("\n") for line in StringIO(text, newline=None)]


def number_labels(path: Path, keys: Iterable[Key], texts: Sequence[str], *, are_positions: bool) -> dict[Key, int]:
    """Return the class of each label that has one; numbers are either all names of classes or all positions.

    Raises:
        DataError: they could be both.
    """
    by_name = {name: number for number, name in enumerate(texts)}
    named = {key: by_name[str(key)] for key in keys if str(key) in by_name}
    positions = {key: position for key in keys if (position := position_of(key)) is not None}
    placed = {key: position for key, position in positions.items() if 0 <= position < len(texts)}
    words = {key: number for key, number in named.items() if key not in positions}
    if are_positions or not positions.keys() <= named.keys():
        return words | placed
    if placed.keys() == positions.keys() and not placed.items() <= named.items():
        raise DataError(
            f"{path} has labels that are numbers, such as {min(map(str, positions))}, and may be names of classes or "
            "their positions. Write the labels file with lines of name<TAB>words, one for each class."
        )
    return named


def position_of(key: Key) -> int | None:
    """Return a label that is a whole number, also one that is written as text, or by pandas as ``1.0``."""
    if isinstance(key, int):
        return key
    match = _WHOLE_NUMBER.fullmatch(key)
    return None if match is None else int(match[1])
