"""List the inputs, the images of folders or the lines of lists, in a stable order; read an input's bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from ..errors import ImageError, JobError
from ..options import ImageLimits
from ..system.files import open_regular
from .records import Input

# The usual suffixes of the formats that ``siglip_onnx.image`` reads.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
     ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".psd")
)  # fmt: skip


class Listing:
    """Yields the inputs; afterwards ``left_out`` counts skipped files and ``unlisted`` names unreadable folders."""

    def __init__(self, sources: Iterable[Path | IO[bytes]], *, all_files: bool = False) -> None:
        """Take folders, whose images are recognized by their suffixes, and open lists of one path per line.

        With ``all_files``, every file of a folder is an input.

        Raises:
            JobError: a path is not a folder.
        """
        self._sources = list(sources)
        self._all_files = all_files
        self.left_out = 0
        self.unlisted: list[str] = []
        self._started: Iterator[Input] | None = None
        for source in self._sources:
            if isinstance(source, Path) and not source.is_dir():
                raise JobError(f"{source} is not a folder; give a folder of images, a list of paths (.txt), or -.")

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

    def _walk(self, folder: str) -> Iterator[Input]:
        """Yield the inputs under a folder; links to folders are not followed, because they may form a cycle."""
        try:
            names = sorted(os.listdir(folder), reverse=True)  # noqa: PTH208 - no Path per name
        except OSError:
            self.unlisted.append(folder)
            yield Input(folder, None, None)
            return
        while names:
            name = names.pop()  # frees the names that are done
            path = f"{folder.rstrip(os.sep)}{os.sep}{name}"
            status = _stat(path)
            is_folder = status is not None and stat.S_ISDIR(status.st_mode)
            if self._is_input(name, is_folder):
                yield _input(path, status)
            elif not is_folder:
                self.left_out += 1
            if is_folder and not os.path.islink(path):  # noqa: PTH114
                yield from self._walk(path)

    def _is_input(self, name: str, is_folder: bool) -> bool:
        """Return whether an entry is an input. A folder named like an image is one: it gets a row with an error."""
        return (self._all_files and not is_folder) or os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122

    @staticmethod
    def _read_list(lines: IO[bytes]) -> Iterator[Input]:
        for line in lines:
            name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
            if name:
                path = os.path.abspath(name)  # noqa: PTH100
                yield _input(path, _stat(path))


def _input(path: str, status: os.stat_result | None) -> Input:
    if status is None or not stat.S_ISREG(status.st_mode):
        return Input(path, None, None)
    return Input(path, status.st_size, status.st_mtime_ns)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


def read_file(path: str, limits: ImageLimits) -> bytes:
    """Read a whole file at once, so that the bytes that are hashed are those that are decoded; never block on a pipe.

    Raises:
        ImageError: the path is not a regular file, cannot be read, or has more bytes than allowed.
    """
    try:
        with open_regular(path) as file:
            limits.check_bytes(os.fstat(file.fileno()).st_size, path)
            content = file.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        problem = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} cannot be read: {problem}.", status="io_error") from error
    limits.check_bytes(len(content), path)
    return content
