"""Locks on files and folders, which end with the process that holds them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL_SECONDS = 0.01


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


@contextmanager
def folder_locked(folder: Path, *, wait_s: float = 10.0) -> Iterator[bool]:
    """Keep other processes that do the same out of a folder, in which no file is created for it.

    Yields False if another process has kept it for so many seconds. Where folders cannot be locked, as on Windows,
    nobody is kept out.
    """
    if sys.platform == "win32":
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # what is done in the folder reports why
        yield True
        return
    try:
        yield _is_free(descriptor, time.monotonic() + wait_s)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int, end: float) -> bool:
    """Lock an open folder until it is closed; False if another process holds it until ``end``."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks
            return True
        else:
            return True
