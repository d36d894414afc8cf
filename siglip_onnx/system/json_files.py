"""Read JSON objects from files that may be damaged or malicious; write JSON of names that may not be Unicode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import read_small

MAX_JSON_BYTES = 10_000_000


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: the file is too large, not UTF-8, not JSON, nested too deeply, or not an object.
    """
    document = read_json(path, max_bytes)
    if not isinstance(document, dict):
        raise ValueError(f"it holds a JSON {type(document).__name__}, expected an object")
    return document


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the JSON value in ``path``; see :func:`read_json_object` for errors."""
    content = read_small(path, max_bytes)
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_json(document: object, indent: int | None = None, *, encoding: str = "utf-8") -> str:
    """Return JSON that can be encoded: file names that are not valid Unicode are escaped."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(document, indent=indent)
    return text
