"""What is known of one input before and after it was embedded, as one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..errors import ImageError, JobError

OK, CRASH = "ok", "crash"
STATUSES = (OK, *ImageError.STATUSES, CRASH)


class Input(NamedTuple):
    """One input as it was listed; ``size_bytes`` and ``mtime_ns`` are None for what is no file that can be read."""

    path: str
    size_bytes: int | None
    mtime_ns: int | None


@dataclass(frozen=True)
class Row:
    """What became of one input.

    ``row`` is its row in the shard's vectors, None unless ``status`` is ``"ok"``. ``sha256`` is that of the bytes that
    were embedded, ``width`` and ``height`` are the pixels of the upright picture as it was decoded.
    """

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    status: str
    row: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    truncated: bool = False
    message: str = ""

    @property
    def input(self) -> Input:
        """What was listed."""
        return Input(self.path, self.size_bytes, self.mtime_ns)


def to_line(document: object) -> str:
    """Return one line of JSON that can be written as UTF-8; names that are no valid Unicode are escaped."""
    line = json.dumps(document, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(document)
    return line + "\n"


def inputs_to_bytes(inputs: Iterable[Input]) -> bytes:
    """Return a plan file's content."""
    return "".join(to_line(one._asdict()) for one in inputs).encode()


def inputs_from_bytes(content: bytes, name: str) -> list[Input]:
    """Read a plan file's content; see :func:`read_lines`."""
    return [Input(**line) for line in read_lines(content, Input._fields, name)]


def rows_to_bytes(rows: Iterable[Row]) -> bytes:
    """Return the content of a shard's rows."""
    return "".join(to_line(asdict(row)) for row in rows).encode()


def rows_from_bytes(content: bytes, name: str) -> list[Row]:
    """Read the content of a shard's rows; see :func:`read_lines`."""
    return [Row(**line) for line in read_lines(content, tuple(Row.__dataclass_fields__), name)]


def read_lines(content: bytes, fields: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Read JSON lines that must have exactly those fields.

    Raises:
        JobError: they have not; ``name`` says where they come from.
    """
    try:
        # JSON escapes every line feed in a name, so that only true ends of lines are found.
        lines = [json.loads(line) for line in content.split(b"\n") if line]
    except ValueError as error:
        raise _damaged(name) from error
    if not all(isinstance(line, dict) and tuple(line) == fields for line in lines):
        raise _damaged(name)
    return lines


def _damaged(name: str) -> JobError:
    return JobError(f"{name} is damaged. Begin anew with --overwrite, or give another --out.")
