"""Files: JSON objects that may be damaged or hostile, and names that must stay inside a folder."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

MAX_JSON_BYTES = 10_000_000


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger than ``max_bytes``, no UTF-8, no JSON, nested without end, or no object.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    try:
        document = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"it holds a JSON {type(document).__name__}, expected an object")
    return document


def check_name(name: str) -> None:
    """Check that a file's name in a manifest or graph is relative and stays below its folder, on every system.

    Raises:
        ValueError: it does not.
    """
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    leaves = not parts or ".." in parts or ".." in windows.parts
    if leaves or name.startswith("/") or windows.drive or windows.root or "\0" in name:
        raise ValueError(f"file {name!r} outside the bundle")


def leaves_folder(folder: Path, path: Path) -> bool:
    """Say whether ``path`` is a link to somewhere else than its folder.

    A snapshot of the Hugging Face cache, whose files are links to its own blobs, is the one place where they may.
    """
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return False
    snapshots = (place.parent for place in (home, home.parent) if place.parent.name == "snapshots")
    return not any(real.is_relative_to(place.parent / "blobs") for place in snapshots)
