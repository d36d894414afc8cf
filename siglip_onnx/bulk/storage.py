"""Write and remove the files of a job's folder; a lock admits one run at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import JobError
from ..system.files import remove as remove_file
from ..system.files import remove_own_files, sync_folder, write_atomic

TEMPORARY = ".tmp"  # beside the final names, so that a rename moves no data
LOCK = ".lock"
# Half-written files, test files of a cluster, and the half-written index of version 0.1.
TEMPORARY_FILES = r"[0-9a-f]{32}|index\.usearch"

_ERRORS_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


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
    """Return the folder for half-written files; it is created if necessary."""
    path = folder / TEMPORARY
    path.mkdir(exist_ok=True)
    return path


def clear_temporary(folder: Path) -> None:
    """Remove half-written files of an interrupted run, and nothing else.

    Raises:
        JobError: something there is a link, or cannot be removed.
    """
    with writing(folder):
        remove_own_files(folder, [(TEMPORARY, TEMPORARY_FILES)])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into a JobError that says what to do."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"{folder} cannot be written: {error.strerror or error}. Free space or change its permissions, then run "
            "the same command again: it resumes where it stopped."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs on this machine out of a folder; the lock ends with the process that holds it.

    On a file system without locks, runs are not kept apart.

    Raises:
        JobError: another run holds the lock, or the folder cannot be written.
    """
    # A soft lock would outlive a process that is killed.
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    with writing(folder):
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise JobError(f"Another run is writing to {folder}; wait for it, or choose another --out.") from error
        except OSError as error:
            if error.errno not in _ERRORS_WITHOUT_LOCKS:
                raise
    try:
        yield
    finally:
        lock.release()
