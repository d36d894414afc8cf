"""Files that are there whole or not at all: written under another name, forced to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ..errors import JobError

TEMPORARY = ".tmp"  # beside the final names, so that a rename moves no data
LOCK = ".lock"


def write_whole(folder: Path, name: str, chunks: Iterable[bytes]) -> None:
    """Write ``folder/name``; a reader sees the old content or the new one, also after a power cut.

    Raises:
        JobError: the folder cannot be written.
    """
    path, part = folder / name, folder / TEMPORARY / uuid4().hex
    with writing(folder):
        try:
            part.parent.mkdir(exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            with part.open("xb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def remove(folder: Path, name: str) -> None:
    """Remove ``folder/name`` if it is there.

    Raises:
        JobError: it cannot be removed.
    """
    with writing(folder):
        path = folder / name
        if path.exists():
            path.unlink()
            _sync_folder(path.parent)


def clear_temporary(folder: Path) -> None:
    """Remove what an interrupted run left half written."""
    shutil.rmtree(folder / TEMPORARY, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"{folder} cannot be written: {error.strerror or error}. Free space or change its permissions, then run "
            "the same command again: it goes on where it stopped."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs on this machine out; a run that ends or dies unlocks.

    Raises:
        JobError: another run has it.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        yield
        return
    with writing(folder):
        file = (folder / LOCK).open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"Another run is writing to {folder}; wait for it, or give another --out.") from error
        except OSError:
            pass  # a file system without locks
        yield


def _sync_folder(path: Path) -> None:
    if os.name != "nt":  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
