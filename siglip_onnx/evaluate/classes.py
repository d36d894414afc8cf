"""Number the classes of a data set: by the lines of a file of labels, by the names of folders, or by their labels."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from unicodedata import category, normalize

from ..errors import DataError
from ..system.files import open_regular, read_up_to

Key = str | int
_MAX_LABELS, _MAX_LABELS_BYTES = 1_000_000, 20_000_000  # WordNet has 117,000 names of things
_WHOLE_NUMBER = re.compile(r"(-?\d{1,18})(?:\.0)?")
_ASCII_PUNCTUATION = {code: None for code in range(128) if category(chr(code))[0] in "ZPC"}
_log = logging.getLogger(__name__)


def read_labels(path: Path) -> list[str] | dict[str, str]:
    """Return the words for classes: one class per line, or lines of ``name<TAB>words``.

    Raises:
        DataError: the file cannot be read, is empty, mixes both kinds of lines, or has a name twice or without words.
    """
    try:
        with open_regular(path) as file:
            content = read_up_to(file, _MAX_LABELS_BYTES + 1)
        if len(content) > _MAX_LABELS_BYTES:
            raise ValueError(f"it has more than {_MAX_LABELS_BYTES:,} bytes")
        lines = [line.rstrip("\n") for line in islice(_lines(content.decode("utf-8-sig")), _MAX_LABELS + 1)]
        if len(lines) > _MAX_LABELS:
            raise ValueError(f"it has more than {_MAX_LABELS:,} lines")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a UTF-8 file with one label per line.") from error
    lines = [line for line in lines if line.strip()]
    if len({"\t" in line for line in lines}) != 1:
        odd = next((line for line in lines if "\t" not in line), "nothing")
        raise DataError(
            f"{path} has the line {odd!r:.100}; expected either one label per line, or name<TAB>words on each line."
        )
    if "\t" not in lines[0]:
        return [line.strip() for line in lines]
    labels: dict[str, str] = {}
    for line in lines:
        name, words = (part.strip() for part in line.split("\t", 1))
        composed = normalize("NFC", name)
        if not name or not words or composed in labels:
            problem = "whose name another line has too" if composed in labels else "of which a part is empty"
            raise DataError(
                f"{path} has the line {line!r:.100}, {problem}; expected name<TAB>words, one line for each name."
            )
        labels[composed] = words
    return labels


def split_lines(text: str) -> list[str]:
    """Return the lines of a text as a file has them; ``str.splitlines`` also splits at separators inside a line."""
    return [line.rstrip("\n") for line in _lines(text)]


def _lines(text: str) -> StringIO:
    return StringIO(text, newline=None)


def number_folders(path: Path, names: Sequence[str], labels_path: Path) -> tuple[Mapping[str, int], list[str]]:
    """Return the class of each folder, and the words of all classes, by a file of labels.

    Its lines are names of folders if any of them is, and otherwise words in the order of the folders. Folders called by
    numbers are counted from 0, or from 1 if all are there.

    Raises:
        DataError: the file cannot be read or has no line for a folder, or the order of its lines is not certain.
    """
    labels = read_labels(labels_path)
    lines = list(labels)
    texts = list(labels.values()) if isinstance(labels, dict) else lines
    found = _find(path, names, lines)
    if isinstance(labels, list):
        counted = _count_folders(path, names, lines, labels_path, named=len(found) == len(names))
        if counted is not None:
            return counted, texts
    if len(found) == len(names):
        if isinstance(labels, dict) and len(lines) > len(names):
            _log.warning("%s names %d classes that have no folder in %s; they stay possible answers.",
                         labels_path, len(lines) - len(set(found.values())), path)  # fmt: skip
        return {line: number for number, line in enumerate(lines)} | found, texts
    _check_unnamed(path, names, found, labels, labels_path)
    _log.warning("%s does not name the folders, so its lines are assigned to them in order: %.100s is %.100r, ..., "
                 "%.100s is %.100r.", labels_path, names[0], lines[0], names[-1], lines[-1])  # fmt: skip
    return {name: number for number, name in enumerate(names)}, texts


def _check_unnamed(
    path: Path, names: Sequence[str], found: Mapping[str, int], labels: Collection[str], labels_path: Path
) -> None:
    """Refuse lines that name some folders, or nearly do, and are not for each folder in their order.

    Raises:
        DataError: they do.
    """
    similar = {_similar(line): line for line in labels if _similar(line)}
    unnamed = [name for name in names if name not in found]
    name = next((each for each in unnamed if _similar(each) in similar), unnamed[0])
    line = similar.get(_similar(name))
    if found or line is not None or isinstance(labels, dict):
        hint = ", although it names others" if found else "; it names no folder at all"
        hint = hint if line is None else f" exactly: it has {line!r:.100}"
        raise DataError(
            f"{path} has the folder {name!r:.100}, which {labels_path} does not name{hint}. Write a line of "
            "folder<TAB>words for each folder."
        )
    if len(names) != len(labels):
        raise DataError(
            f"{path} has {len(names)} folders, and {labels_path} has {len(labels)} labels that are not their names. "
            "Write lines of folder<TAB>words."
        )


def _count_folders(
    path: Path, names: Sequence[str], lines: Sequence[str], labels_path: Path, *, named: bool
) -> dict[str, int] | None:
    """Return the classes of folders called by numbers, None if some are not or if numbers do not count the lines.

    Raises:
        DataError: they may count from 0 or from 1, or be names.
    """
    numbers = {name: int(name) for name in names if name.isdecimal()}
    if not numbers or len(set(numbers.values())) < len(names):
        return None
    if named:  # the lines are numbers too
        return {str(key): number for key, number in number_labels(path, names, lines, are_positions=False).items()}
    first, last = min(numbers.values()), max(numbers.values())
    if first == 0 and last < len(lines):
        return numbers
    if first == 1 and last == len(names) == len(lines):
        return {name: number - 1 for name, number in numbers.items()}
    if first > 1 and len(names) == len(lines):
        return None  # such as years
    raise DataError(
        f"{path} has {len(names)} folders from {first} to {last}, and {labels_path} has {len(lines)} labels; which "
        "label belongs to which folder is not certain. Write lines of folder<TAB>words."
    )


def _find(path: Path, names: Iterable[str], lines: Sequence[str]) -> dict[str, int]:
    """Return the line of each name that has one: written exactly so, or else composed and with spaces for ``_``.

    Raises:
        DataError: a name has several lines.
    """
    plain_names = {name: _plain(name) for name in names}
    wanted = {*plain_names, *plain_names.values()}  # of a million lines, few
    exact, plain = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for number, line in enumerate(lines):
        for form, numbers in ((line, exact), (_plain(line), plain)):
            if form in wanted:
                numbers[form].append(number)
    found = {}
    for name, plain_name in plain_names.items():
        places = exact.get(name) or plain.get(plain_name, [])
        if len(places) > 1:
            raise DataError(
                f"{path} has the label {name!r:.100}, which could be the class {places[0]} or {places[1]}: both have "
                "this name. Write the labels file with lines of name<TAB>words, one for each class."
            )
        if places:
            found[name] = places[0]
    return found


def _plain(name: str) -> str:
    """Return a name with composed letters, which macOS takes apart, and with the spaces that ``_`` stands for."""
    return normalize("NFC", name).replace("_", " ")


def _similar(name: str) -> str:
    """Return a name in lower case, without spaces and punctuation."""
    folded = normalize("NFKC", name).casefold()
    if folded.isascii():
        return folded.translate(_ASCII_PUNCTUATION)
    return "".join(each for each in folded if category(each)[0] not in "ZPC")


def number_labels(path: Path, keys: Iterable[Key], texts: Sequence[str], *, are_positions: bool) -> dict[Key, int]:
    """Return the class of each label that has one; numbers are either all names of classes or all positions.

    Raises:
        DataError: they could be both.
    """
    positions = {key: position for key in keys if (position := position_of(key)) is not None}
    by_name = _find(path, (str(key) for key in keys if not are_positions or key not in positions), texts)
    named = {key: by_name[str(key)] for key in keys if str(key) in by_name}
    placed = {key: position for key, position in positions.items() if 0 <= position < len(texts)}
    words = {key: number for key, number in named.items() if key not in positions}
    if are_positions or not positions.keys() <= named.keys():
        if placed and not are_positions and 0 not in placed.values():
            key, position = min(placed.items(), key=lambda item: item[1])
            _log.warning("%s has no label 0. Its labels count the classes from 0, so that %s is %.100r; if they count "
                         "from 1, write lines of name<TAB>words.", path, key, texts[position])  # fmt: skip
        return words | placed
    if placed.keys() == positions.keys() and not placed.items() <= named.items():
        raise DataError(
            f"{path} has labels that are numbers, such as {min(map(str, positions))}, and may be names of classes or "
            "their positions. Write the labels file with lines of name<TAB>words, one for each class."
        )
    return named


def number_names(path: Path, keys: Iterable[Key], names: Sequence[str]) -> dict[Key, int]:
    """Return the class of each name, and of each label that is one.

    Raises:
        DataError: a label has several names.
    """
    numbers: dict[Key, int] = {name: number for number, name in enumerate(names)}
    return numbers | _find(path, map(str, keys), names)


def position_of(key: Key) -> int | None:
    """Return a label that is a whole number, also one that is written as text, or by pandas as ``1.0``."""
    if isinstance(key, int):
        return key
    match = _WHOLE_NUMBER.fullmatch(key)
    return None if match is None else int(match[1])
