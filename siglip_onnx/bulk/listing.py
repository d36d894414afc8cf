"""List the inputs, the images of folders or the lines of lists, in a stable order; read an input's bytes."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import ImageError, ImageFileError, ImageNotFoundError, JobError
from ..image.guard import check_large_header
from ..options import ImageLimits
from ..system.files import open_regular
from .records import Input

HEIC_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")  # read with the extra [heic]
# The usual suffixes of the formats that ``siglip_onnx.image`` reads.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
     ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".psd",
     *HEIC_SUFFIXES)
)  # fmt: skip
RAW, JXL, VIDEO, OTHER = "raw", "jxl", "video", "other"  # kinds of files that are left out
KIND_NAMES = {RAW: "RAW", JXL: "JPEG XL", VIDEO: "video", OTHER: "other"}
_KINDS = {
    RAW: (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos",
          ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    JXL: (".jxl",),
    VIDEO: (".3g2", ".3gp", ".avi", ".flv", ".insv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
            ".ogv", ".vob", ".webm", ".wmv"),
}  # fmt: skip
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes}
# Folders for trash, thumbnails and snapshots whose names do not begin with a dot, in lower case.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "$recycle.bin", "recycler",
     "system volume information", "lost+found", "__macosx")
)  # fmt: skip
_EARLIEST, _LATEST = 1 - (1 << 63), (1 << 63) - 1  # times in nanoseconds that 64 bits can hold: the years 1677 and 2262
_MAX_NAME_BYTES = 100_000
_READS = 3  # of a file that is being written to


@dataclass(frozen=True)
class Filter:
    """The entries of folders that are listed.

    Attributes:
        all_files: take every file, not only those with the suffix of an image.
        hidden: also take hidden files and folders, trash, thumbnails and snapshots.
        exclude: patterns of names to leave out, as in a shell; one that contains ``/`` is compared with the path below
            the folder.
        follow_links: list the folders that links lead to, each folder once.
    """

    all_files: bool = False
    hidden: bool = False
    exclude: Sequence[str] = ()
    follow_links: bool = False


class Listing:
    """Yields the inputs and counts what it leaves out.

    Attributes:
        left_out_kinds: number of files without the suffix of an image, by kind: ``raw``, ``jxl``, ``video``, ``other``.
        linked_folders: number of links to folders that were not followed.
        unlisted: folders that cannot be listed.
    """

    def __init__(
        self, sources: Iterable[Path | IO[bytes]], *, all_files: bool = False, entries: Filter | None = None
    ) -> None:
        """Take folders, whose images are recognized by their suffixes, and open lists of one path per line.

        ``all_files`` stands for ``Filter(all_files=True)``.

        Raises:
            JobError: a path is not a folder.
        """
        self._sources = list(sources)
        self._filter = entries or Filter(all_files=all_files)
        self.left_out_kinds = Counter[str]()
        self.linked_folders = 0
        self.unlisted: list[str] = []
        self._started: Iterator[Input] | None = None
        for source in self._sources:
            if isinstance(source, Path) and not os.path.isdir(source):  # noqa: PTH112 - is_dir() raises for long names
                raise JobError(f"{source} is not a folder; give a folder of images, a list of paths (.txt), or -.")

    @property
    def left_out(self) -> int:
        """Number of files that were left out because they do not have the suffix of an image."""
        return self.left_out_kinds.total()

    def describe_left_out(self) -> str:
        """Return the number of such files with their kinds: ``3 files without an image extension (1 RAW, 2 other)``."""
        kinds, total = self.left_out_kinds, self.left_out
        files = f"{total:,} file{'' if total == 1 else 's'} without an image extension"
        counts = ", ".join(f"{kinds[kind]:,} {name}" for kind, name in KIND_NAMES.items() if kinds[kind])
        return files if set(kinds) <= {OTHER} else f"{files} ({counts})"

    def __iter__(self) -> Iterator[Input]:
        """Return the inputs, folder by folder, each sorted by name."""
        started, self._started = self._started, None
        return started or self._inputs()

    def is_empty(self) -> bool:
        """Return whether there are no inputs; reads only the first one, which is yielded again later."""
        inputs = self._inputs() if self._started is None else self._started
        first = next(inputs, None)
        self._started = inputs if first is None else chain([first], inputs)
        return first is None

    def _inputs(self) -> Iterator[Input]:
        for source in self._sources:
            if isinstance(source, Path):
                yield from self._walk(os.path.abspath(source))  # noqa: PTH100 - resolve() would follow links
            else:
                yield from self._read_list(source)

    def _walk(self, top: str) -> Iterator[Input]:
        """Yield the inputs under a folder; linked folders come last, so that no folder is listed under two names."""
        visited: set[tuple[int, int]] = set()
        links: list[str] = []
        yield from self._walk_tree(top, top, visited, links)
        for link in links:  # which grows
            if self._filter.follow_links:
                yield from self._walk_tree(link, top, visited, links)
            else:
                self.linked_folders += 1

    def _walk_tree(self, root: str, top: str, visited: set[tuple[int, int]], links: list[str]) -> Iterator[Input]:
        """Yield the inputs of a folder and the real folders in it; append the links to folders to ``links``."""
        if self._filter.follow_links and not _is_new(root, visited):
            return
        folders: list[_Folder] = []  # a stack: recursion would end at a thousand levels
        yield from self._enter(root, folders)
        while folders:
            folder = folders[-1]
            if not folder.names:
                folders.pop()
                continue
            name = folder.names.pop()  # frees the names that are done
            path = f"{folder.path.rstrip(os.sep)}{os.sep}{name}"
            status = status_of(path)
            is_folder = folder.has_folder(name) if status is None else stat.S_ISDIR(status.st_mode)
            if self._is_excluded(name, path, top, status):
                continue
            if self._is_input(name, is_folder):
                yield input_of(path, status)
            elif not is_folder:
                self.left_out_kinds[_KIND_OF.get(_suffix(name), OTHER)] += 1
            if is_folder and _is_link(path):
                links.append(path)
            elif is_folder and (not self._filter.follow_links or _is_new(path, visited)):
                yield from self._enter(path, folders)

    def _enter(self, path: str, folders: list[_Folder]) -> Iterator[Input]:
        """Push a folder on the stack; yield the input that stands for one that cannot be listed."""
        try:
            names = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 - no Path per name
        except OSError:
            self.unlisted.append(path)
            yield Input(path, None, None)
        else:
            folders.append(_Folder(path, names))

    def _is_excluded(self, name: str, path: str, top: str, status: os.stat_result | None) -> bool:
        if not self._filter.hidden and is_left_out(name, status):
            return True
        if not self._filter.exclude:
            return False
        below = path[len(top.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
        globs = (glob.rstrip("/") for glob in self._filter.exclude)
        return any(fnmatch(below if "/" in glob else name, glob) for glob in globs)

    def _is_input(self, name: str, is_folder: bool) -> bool:
        """Return whether an entry is an input. A folder named like an image is one: it gets a row with an error."""
        return (self._filter.all_files and not is_folder) or _suffix(name) in SUFFIXES

    @staticmethod
    def _read_list(lines: IO[bytes]) -> Iterator[Input]:
        for name in read_names(lines):
            yield stat_input(os.path.abspath(name))  # noqa: PTH100


def read_names(lines: IO[bytes]) -> Iterator[str]:
    """Yield the names in a list, one per line; empty lines are skipped.

    Of a line that is longer than any path, such as a hole in a sparse file, only the beginning is kept.
    """
    while line := lines.readline(_MAX_NAME_BYTES):
        rest = line
        while len(rest) == _MAX_NAME_BYTES and not rest.endswith(b"\n"):
            rest = lines.readline(_MAX_NAME_BYTES)
        name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
        if name:
            yield name


@dataclass
class _Folder:
    """A folder that is being listed, and the names in it that remain, the next one last."""

    path: str
    names: list[str]

    def has_folder(self, name: str) -> bool:
        """Say whether an entry that cannot be examined, for want of rights or a shorter path, is a real folder."""
        return name in self._folder_names

    @cached_property
    def _folder_names(self) -> set[str]:
        with os.scandir(self.path) as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}


def stat_input(path: str) -> Input:
    """Return a path as an input with its current size and time."""
    return input_of(path, status_of(path))


def input_of(path: str, status: os.stat_result | None) -> Input:
    """Return a path as an input with the size and time of its status."""
    if status is None or not stat.S_ISREG(status.st_mode):
        return Input(path, None, None)
    return Input(path, status.st_size, max(_EARLIEST, min(status.st_mtime_ns, _LATEST)))


def status_of(path: str) -> os.stat_result | None:
    """Return the status of what a path or link leads to, None if that does not exist."""
    try:
        return os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def is_heic(path: str) -> bool:
    """Say whether a file has the suffix of a HEIC image, which only the extra [heic] reads."""
    return _suffix(path) in HEIC_SUFFIXES


def is_left_out(name: str, status: os.stat_result | None) -> bool:
    """Say whether an entry is hidden, or trash, thumbnails or snapshots of a system, which hold no images of a user."""
    return _is_hidden(name, status) or name.lower() in _SYSTEM_FOLDERS


def _is_hidden(name: str, status: os.stat_result | None) -> bool:
    """Say whether an entry is hidden by its name or, on Windows and macOS, by its attributes."""
    windows, macos = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    return name.startswith(".") or bool(windows & stat.FILE_ATTRIBUTE_HIDDEN) or bool(macos & stat.UF_HIDDEN)


def _is_link(path: str) -> bool:
    is_junction = getattr(os.path, "isjunction", None)  # of Windows; new in Python 3.12
    return os.path.islink(path) or (is_junction is not None and is_junction(path))  # noqa: PTH114


def _is_new(folder: str, visited: set[tuple[int, int]]) -> bool:
    """Say whether a folder has not been visited under any name, and remember it."""
    status = status_of(folder)
    if status is None:
        return True  # it cannot be listed either, which is reported
    new = (status.st_dev, status.st_ino) not in visited
    visited.add((status.st_dev, status.st_ino))
    return new


class Content(NamedTuple):
    """The bytes of a file, and its path with the size and time that belong to them."""

    content: bytes
    item: Input


def read_content(path: str, limits: ImageLimits) -> Content:
    """Read a whole file at once, so that the bytes that are hashed are those that are decoded; never block on a pipe.

    Raises:
        ImageError: the path is not a regular file, cannot be read, has more bytes than allowed, or is being written to.
    """
    try:
        for _ in range(_READS):
            with open_regular(path) as file:
                before = input_of(path, os.fstat(file.fileno()))
                limits.check_bytes(before.size_bytes or 0, path)
                check_large_header(file, limits, path)
                content = file.read()
                after = input_of(path, os.fstat(file.fileno()))
            limits.check_bytes(len(content), path)
            if before == after:
                return Content(content, after)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        problem = getattr(error, "strerror", None) or error
        kind = ImageNotFoundError if isinstance(error, FileNotFoundError) else ImageFileError
        raise kind(f"{path} cannot be read: {problem}.") from error
    raise ImageFileError(
        f"{path} cannot be read: another program is writing to it. Run the command again when it is complete."
    )


def read_file(path: str, limits: ImageLimits) -> bytes:
    """Return the bytes of a file; see :func:`read_content`."""
    return read_content(path, limits).content
