"""Locks on files, which end with the process that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def acquire(path: Path, *, wait_s: float = -1, fallback_to_soft: bool = True) -> BaseFileLock | None:
    """Return the lock of a file, acquired; None if another process has held it for so many seconds.

    Without ``wait_s`` it is waited for. Where the system has no locks, the soft one, to which this falls back, would
    outlive a process that is killed.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    import filelock  # noqa: PLC0415 - only to change folders that are shared, which most runs do not

    lock = filelock.FileLock(path, fallback_to_soft=fallback_to_soft)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout:
        return None
    return lock
