"""Which inputs there are: the pictures of folders, or the lines of lists, in a stable order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from ..errors import JobError
from .records import Input

# What a file of the formats of ``siglip_onnx.image`` is usually called.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
     ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".psd")
)  # fmt: skip


class Listing:
    """Inputs of folders and lists, one by one; afterwards, how many files were left out and what was not listed."""

    def __init__(self, sources: Iterable[Path | IO[bytes]], *, all_files: bool = False) -> None:
        """Take folders, of which pictures are known by their suffix, and open lists of one path per line.

        With ``all_files`` every file of a folder is taken.

        Raises:
            JobError: a folder is none.
        """
        self._sources = list(sources)
        self._all_files = all_files
        self.left_out = 0
        self.unlisted: list[str] = []
        self._begun: Iterator[Input] | None = None
        for source in self._sources:
            if isinstance(source, Path) and not source.is_dir():
                raise JobError(f"{source} is no folder; give a folder of pictures, a list of paths (.txt), or -.")

    def __iter__(self) -> Iterator[Input]:
        """Return the inputs, folder by folder, each sorted by name."""
        begun, self._begun = self._begun, None
        return begun or self._inputs()

    def is_empty(self) -> bool:
        """Say whether there are no inputs; only the first one is looked for, and yielded again later."""
        inputs = self._inputs() if self._begun is None else self._begun
        first = next(inputs, None)
        self._begun = inputs if first is None else chain([first], inputs)
        return first is None

    def _inputs(self) -> Iterator[Input]:
        for source in self._sources:
            if isinstance(source, Path):
                yield from self._walk(os.path.abspath(source))  # noqa: PTH100 - resolve() would follow links
            else:
                yield from self._read_list(source)

    def _walk(self, folder: str) -> Iterator[Input]:
        """Yield the inputs under a folder; links to folders are not followed, for they may lead in circles."""
        try:
            names = sorted(os.listdir(folder), reverse=True)  # noqa: PTH208 - no Path per name
        except OSError:
            self.unlisted.append(folder)
            yield Input(folder, None, None)
            return
        while names:
            name = names.pop()  # what is done need not stay in memory
            path = f"{folder.rstrip(os.sep)}{os.sep}{name}"
            found = _stat(path)
            is_folder = found is not None and stat.S_ISDIR(found.st_mode)
            if self._is_wanted(name, is_folder):
                yield _input(path, found)
            elif not is_folder:
                self.left_out += 1
            if is_folder and not os.path.islink(path):  # noqa: PTH114
                yield from self._walk(path)

    def _is_wanted(self, name: str, is_folder: bool) -> bool:
        """Say whether something is an input; a folder called like a picture is, so that its row says what it is."""
        return (self._all_files and not is_folder) or os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122

    @staticmethod
    def _read_list(lines: IO[bytes]) -> Iterator[Input]:
        for line in lines:
            name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
            if name:
                path = os.path.abspath(name)  # noqa: PTH100
                yield _input(path, _stat(path))


def _input(path: str, found: os.stat_result | None) -> Input:
    if found is None or not stat.S_ISREG(found.st_mode):
        return Input(path, None, None)
    return Input(path, found.st_size, found.st_mtime_ns)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
