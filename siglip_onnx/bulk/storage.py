"""Write and remove the files of a job's folder; a lock admits one run at a time."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import JobError, SiglipOnnxError
from ..system.files import remove as remove_file
from ..system.files import remove_own_files, sync_folder, write_atomic
from ..system.locks import acquire

_log = logging.getLogger(__name__)
TEMPORARY = ".tmp"  # beside the final names, so that a rename moves no data
LOCK = ".lock"
# Half-written files, and test files of a cluster.
TEMPORARY_FILES = r"\.siglip_onnx-[0-9a-f]{32}\.part"

_UNWRITABLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_ERRORS_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def write_whole(folder: Path, name: str, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Write ``folder/name``; a reader sees the old content or the new one, if ``durable`` also after a power cut.

    Raises:
        JobError: the folder cannot be written.
    """
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise JobError(f"{path.parent} is a link, expected a folder of the job. Remove it, or choose another --out.")
    with writing(folder):
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, chunks, durable=durable, part_dir=make_temporary(folder))


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
    except SiglipOnnxError:
        raise
    except OSError as error:
        raise JobError(
            f"{folder} cannot be written: {error.strerror or error}. Free space or change its permissions, then run "
            "the same command again: it resumes where it stopped."
        ) from error


@contextmanager
def unless_unwritable(*, optional: bool) -> Iterator[None]:
    """End a block where the disk is full or read-only, if what the block writes is ``optional``.

    Raises:
        JobError: the block raised it, for another reason.
    """
    try:
        yield
    except JobError as error:
        if not (optional and is_unwritable(error)):
            raise


def is_unwritable(error: JobError) -> bool:
    """Say whether an error means that the disk is full or read-only."""
    return getattr(error.__cause__, "errno", None) in _UNWRITABLE


@contextmanager
def locked(folder: Path, *, wait_s: float = 0, optional: bool = False) -> Iterator[None]:
    """Keep other runs on this machine out of a folder; the lock ends with the process that holds it.

    Another run is waited for as long as ``wait_s`` seconds.

    On a file system without locks, runs are not kept apart; nor on one that is read-only, if the lock is ``optional``.

    Raises:
        JobError: another run holds the lock, or the folder cannot be written.
    """
    lock = None
    with unless_unwritable(optional=optional), writing(folder):
        try:
            lock = acquire(folder / LOCK, wait_s=0, fallback_to_soft=False)
            if lock is None and wait_s:
                _log.warning("Another run is writing to %s; waiting for it to end.", folder)
                lock = acquire(folder / LOCK, wait_s=wait_s, fallback_to_soft=False)
            if lock is None:
                raise JobError(f"Another run is writing to {folder}; wait for it, or choose another --out.")
        except OSError as error:
            if error.errno not in _ERRORS_WITHOUT_LOCKS:
                raise
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
