"""Check file names from untrusted sources: relative, and inside their folder on every system."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath


def check_name(name: str) -> None:
    """Check that a file name is relative and stays inside its folder, on every system.

    Raises:
        ValueError: the name leads outside.
    """
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    leaves = not parts or ".." in parts or ".." in windows.parts
    if leaves or name.startswith("/") or windows.drive or windows.root or "\0" in name:
        raise ValueError(f"file {name!r} outside the bundle")


def find_outside(folder: Path, suffixes: Collection[str]) -> Path | None:
    """Return a file that is a link out of a folder, in it or in a folder inside it; None without one.

    See :func:`leaves_folder`.
    """
    paths = chain(folder.glob("*"), folder.glob("*/*"))
    files = (path for path in paths if path.suffix in suffixes and path.is_symlink())
    return next((path for path in files if leaves_folder(folder, path)), None)


def leaves_folder(folder: Path, path: Path) -> bool:
    """Say whether ``path`` is a link that leads out of its folder.

    In a snapshot of the Hugging Face cache, links to the cache's own blobs do not count.
    """
    # Unlike Path.resolve, realpath takes a loop of links as it is.
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(home):
        return False
    repositories = (each.parent.parent for each in (home, home.parent) if each.parent.name == "snapshots")
    return not any(real.is_relative_to(repository / "blobs") for repository in repositories)
