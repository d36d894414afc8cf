"""Check names of files from elsewhere: relative, and below their folder on every system."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath


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
