"""Write and remove the files of a job's folder, one run at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import JobError
from ..system.files import remove as remove_file
from ..system.files import remove_own_files, sync_folder, write_atomic

TEMPORARY = ".tmp"  # beside the final names, so that a rename moves no data
LOCK = ".lock"
# What may lie in it: files half written, marks for the machines of a cluster, and a half-written index.
TEMPORARY_FILES = r"[0-9a-f]{32}|index\.usearch"


def write_whole(folder: Path, name: str, chunks: Iterable[bytes]) -> None:
    """Write ``folder/name``; a reader sees the old content or the new one, also after a power cut.

    Raises:
        JobError: the folder cannot be written.
    """
    path = folder / name
    with writing(folder):
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, chunks, part_dir=make_temporary(folder))


def remove(folder: Path, name: str) -> None:
    """Remove ``folder/name`` if it is there.

    Raises:
        JobError: it cannot be removed.
    """
    with writing(folder):
        if (folder / name).exists():
            remove_file(folder / name, within=folder)
            sync_folder((folder / name).parent)


def make_temporary(folder: Path) -> Path:
    """Return the folder for half-written files, which is made if it is not there."""
    path = folder / TEMPORARY
    path.mkdir(exist_ok=True)
    return path


def clear_temporary(folder: Path) -> None:
    """Remove what an interrupted run left half written, and nothing else.

    Raises:
        JobError: something there is a link, or cannot be removed.
    """
    with writing(folder):
        remove_own_files(folder, [(TEMPORARY, TEMPORARY_FILES)])


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
        file = (folder / LOCK).open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"Another run is writing to {folder}; wait for it, or give another --out.") from error
        except OSError:
            pass  # a file system without locks
        yield
