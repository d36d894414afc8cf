"""Write files atomically, and remove only files of this package. No other module removes a file or folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO
from uuid import uuid4

from .locks import folder_locked

if sys.platform != "win32":
    import fcntl

STALE_S = 86_400  # a temporary file this old belongs to a run that was killed
_OPEN_DESCRIPTOR = re.compile(r"/dev/stdin|(/dev|/proc/self)/fd/\d+")
_BLOCK_BYTES = 1 << 20
_MAX_LINKS = 40  # as the kernel follows
_LOCK = ".lock"  # beside a temporary folder
_PART = re.compile(r"\.siglip_onnx-[0-9a-f]{32}\.part(\..*)?")


def write_atomic(
    path: Path, content: bytes | Iterable[bytes], *, durable: bool = True, part_dir: Path | None = None
) -> None:
    """Write a file atomically: readers see the old content or the new one, and a failure leaves the old one.

    A symbolic link is followed and stays. A device or pipe is written directly. The mode of a file that is replaced is
    kept.

    Args:
        path: the file to write; its folder exists.
        content: all bytes, or chunks of them.
        durable: force the content to the disk first, so that this holds after a power cut too.
        part_dir: an existing folder on the same file system for the temporary file, by default that of ``path``.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    with atomic_path(path, durable=durable, part_dir=part_dir) as part, part.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files that belong together: all contents are on the disk before the first file is renamed.

    Processes that write to the same folder do so one after the other, so that their files are not mixed.

    Raises:
        OSError: a file cannot be written; no file is replaced then, unless the renaming itself failed midway.
    """
    with contextlib.ExitStack() as replacing:
        for folder in sorted({path.parent for path in files}):
            replacing.enter_context(folder_locked(folder))
        for path, content in files.items():
            part = replacing.enter_context(atomic_path(path))
            part.write_bytes(content)
            if part.is_file():
                _sync(part)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True, part_dir: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path, for libraries that write by name; after the block that file replaces ``path``.

    The temporary name has the suffix of ``path``. See :func:`write_atomic`.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    old = _stat(path)
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if old is not None and not stat.S_ISREG(old.st_mode):
        if part_dir is None:  # replacing a device or pipe of the user would destroy it
            with _reader_of(path, old):
                yield path
            return
        old = None
    # A link inside a folder of ours is replaced; one that a user made is followed.
    target = path if part_dir is not None else follow_links(path)
    part = new_part(target) if part_dir is None else part_dir / part_name()
    try:
        yield part
        if durable:
            _sync(part)
        if old is not None:
            part.chmod(stat.S_IMODE(old.st_mode))
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):  # the first error matters more
            part.unlink(missing_ok=True)
    if durable:
        with contextlib.suppress(OSError):  # some network file systems cannot; the file has its name already
            sync_folder(target.parent)


def make_absolute(path: Path) -> Path:
    """Return a path that stands for the same file when the current folder changes; as it is if that was removed."""
    try:
        return path.absolute()
    except OSError:
        return path


def follow_links(path: Path) -> Path:
    """Return the file or folder that a path of an output leads to, which need not exist.

    Raises:
        PermissionError: another user made a link in a folder in which everybody may, such as ``/tmp``. The kernel does
            not follow such a link either, see ``fs.protected_symlinks``.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
    for _ in range(_MAX_LINKS):
        try:
            link = place.lstat()
        except OSError:  # it does not exist, or its error comes when it is written
            break
        if not stat.S_ISLNK(link.st_mode):
            break
        folder = place.parent.stat()
        is_shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
        if is_shared and link.st_uid not in (os.geteuid(), folder.st_uid):
            raise _refusal(place, "it is a link of another user in a folder of everybody, and is not followed")
        place = place.parent / place.readlink()
    return Path(os.path.realpath(path))


def open_regular(path: Path | str) -> BufferedReader:
    """Open a file to read; never wait, as opening a pipe without a writer does.

    Raises:
        OSError: the file cannot be opened, or is a folder, pipe, socket or device.
    """
    # Windows opens no pipes and devices of this kind by their paths.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")
    raise OSError(errno.EINVAL, f"it is a {kind}, expected a regular file", str(path))


def read_up_to(file: IO[bytes], count: int) -> bytes:
    """Read at most ``count`` bytes, in as many calls as the file needs.

    Python would allocate all that one call asks for before it reads.

    Raises:
        TypeError: the file does not give bytes.
    """
    chunks = []
    while count > 0 and (chunk := file.read(min(count, _BLOCK_BYTES))):
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def read_small(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file that may come from a stranger.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it has more than ``max_bytes``.
    """
    with open_regular(path) as file:
        content = read_up_to(file, max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content


def open_list(path: Path) -> BufferedReader:
    """Open a list that a user names: a regular file, or a descriptor that is already open.

    ``/dev/stdin``, and ``/dev/fd/63`` as a shell passes for ``<(command)``, may be pipes: their writers exist. A named
    pipe is refused, because nobody may ever write to it.

    Raises:
        OSError: the list cannot be opened, or is a folder, named pipe, socket or device.
    """
    return path.open("rb") if is_open_descriptor(path) else open_regular(path)


def is_open_descriptor(path: Path) -> bool:
    """Say whether a path stands for a descriptor that this process has open, such as ``/dev/stdin``."""
    return _OPEN_DESCRIPTOR.fullmatch(str(path)) is not None


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk, so that what was renamed or removed stays so after a power cut."""
    if os.name != "nt":  # Windows opens no folders
        _sync(path)


@contextmanager
def new_part_folder(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``target``, and remove what is left of it.

    A lock beside it is held until then, so that the folder of a run that was killed is recognized, and removed by the
    next run here. Without locks (on Windows, and some network file systems) it is removed after a day.

    Raises:
        OSError: it cannot be made.
    """
    part = new_part(target)
    lock = part.with_name(part.name + _LOCK)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        _try_lock(descriptor)
        part.mkdir()
        yield part
    finally:
        with contextlib.suppress(OSError):  # the error of the run matters more; a later run removes the rest
            remove(part, within=part.parent)
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; say whether that is possible here, and no other process has locked it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def new_part(target: Path) -> Path:
    """Return an unused temporary name beside ``target``; old temporary files of killed runs are removed there."""
    _clear_stale_parts(target.parent)
    return target.with_name(part_name(target.suffix))


def part_name(suffix: str = "") -> str:
    """Return an unused name of a temporary file, which no other program would choose."""
    return f".siglip_onnx-{uuid4().hex}.part{suffix}"


def is_part(name: str) -> bool:
    """Say whether a name is one of :func:`part_name`."""
    return _PART.fullmatch(name) is not None


def replace_folder(new: Path, target: Path) -> Path | None:
    """Rename the folder ``new`` to ``target``; return the new path of the folder that it replaced, None if none.

    Raises:
        OSError: it cannot be renamed; ``target`` is as it was.
    """
    if not target.exists():
        new.rename(target)
        return None
    old = target.with_name(f"{target.name}.replaced-{uuid4().hex}")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    return old


def remove(path: Path, *, within: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists. Links inside are removed, never followed.

    Raises:
        OSError: ``path`` is a symbolic link, does not lie strictly inside ``within``, or cannot be removed.
    """
    if path.is_symlink():
        raise _refusal(path, "it is a symbolic link, and is not removed")
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(within))
    if real == home or not real.is_relative_to(home):
        raise _refusal(path, f"{real} is outside {home}, and is not removed")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_own_files(folder: Path, own: Sequence[tuple[str, str]]) -> None:
    """Remove the files of ``folder`` that have our names, then folders in it that became empty.

    Args:
        folder: the folder to clear; it is kept.
        own: pairs of a folder inside (empty: ``folder`` itself) and a pattern that whole file names match. Files are
            removed in this order.

    Raises:
        OSError: an entry of such a name is a symbolic link or not a file, and nothing was removed; or a file cannot
            be removed.
    """
    home = Path(os.path.realpath(folder))
    files: list[Path] = []
    for inside, pattern in own:
        entry = home / inside
        if not os.path.lexists(entry):
            continue
        if Path(os.path.realpath(entry)) != entry or not entry.is_dir():
            raise _refusal(entry, f"{entry} is not a real folder, and nothing is removed")
        names = sorted(name for name in os.listdir(entry) if re.fullmatch(pattern, name))  # noqa: PTH208 - names only
        files += [entry / name for name in names]
    for path in files:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _refusal(path, f"{path} is a symbolic link or not a file, and nothing is removed")
    for path in files:
        path.unlink(missing_ok=True)
    below = {home / inside for inside, _ in own if inside}
    for entry in sorted(below, key=lambda entry: len(entry.parts), reverse=True):
        while entry != home and entry.is_dir() and not any(entry.iterdir()):
            entry.rmdir()
            entry = entry.parent  # noqa: PLW2901 - upward while folders are empty


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files and folders of killed runs in ``folder``.

    These are the folders whose lock nobody holds, and what no run has written to for a day.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):  # an unreadable folder is left alone
        names = os.listdir(folder)  # noqa: PTH208 - no Path per name
    for name in sorted(filter(_PART.fullmatch, names)):  # a folder before its lock
        with contextlib.suppress(OSError):  # and so are files of another user
            if _is_abandoned(folder / name):
                remove(folder / name, within=folder)


@functools.lru_cache(1000)
def _clear_stale_parts(folder: Path) -> None:
    """Remove stale parts once per process and folder: folders may be large."""
    remove_stale_parts(folder)


def _is_abandoned(path: Path) -> bool:
    """Say whether a temporary file or folder belongs to no run: its lock is free, or it is a day old."""
    lock = path if path.name.endswith(_LOCK) else path.with_name(path.name + _LOCK)
    if lock.is_file() and not lock.is_symlink():
        with open_regular(lock) as file:
            if _try_lock(file.fileno()):
                return path != lock or not lock.with_name(lock.name.removesuffix(_LOCK)).exists()  # the folder first
    return time.time() - _last_write(path) > STALE_S


def _last_write(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return max(float(entry.lstat().st_mtime) for entry in (path, *inside))


@contextmanager
def _reader_of(path: Path, status: os.stat_result) -> Iterator[None]:
    """Keep a pipe open that has a reader; opening one without a reader would wait for ever.

    Raises:
        OSError: nobody reads from the pipe.
    """
    if not stat.S_ISFIFO(status.st_mode):
        yield
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(descriptor)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: Path, reason: str) -> PermissionError:
    return PermissionError(errno.EPERM, reason, str(path))
