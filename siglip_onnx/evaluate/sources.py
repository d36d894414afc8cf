"""Images of a data set where they lie: in files, in webdataset archives, and in Parquet columns; read when needed."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from ..bulk.listing import SUFFIXES, read_file
from ..bulk.parquet import ParquetFile
from ..errors import DataError, ImageError, first_line
from ..options import DEFAULT_LIMITS
from ..system.files import open_regular

_TEXTS = ("cls", "txt")  # suffixes of the files beside an image that are used
_MAX_TEXT_BYTES = 100_000
_MAX_HEADER_BYTES = 1_000_000  # of one file in an archive, long names included
_MAX_NAME = 4096  # characters of a member of a tar; as many bytes as a path may have
# What Python's tarfile raises for damaged headers besides its own errors.
_TAR_ERRORS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image.

    Attributes:
        name: what it is called in results: its path, or its place in an archive.
        stamp: changes when the image does, as far as sizes and times tell.
        path: its file, None in an archive.
        part: returns the bytes of an image in an archive; raises ImageError.
        labels: numbers of the classes that it belongs to.
    """

    name: str
    stamp: str
    path: str | None = None
    part: Callable[[], bytes] | None = None
    labels: tuple[int, ...] = ()

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            ImageError: it cannot be read.
        """
        if self.part is not None:
            return self.part()
        return read_file(self.path or self.name, DEFAULT_LIMITS)


def file_sample(folder: Path, name: str) -> Sample:
    """Return the sample of an image file, which need not exist yet, by its path from a folder on."""
    path = os.path.join(folder, name)  # noqa: PTH118 - a path object takes ten times as long, for each row of a table
    return Sample(name, file_stamp(path), path)


def file_stamp(path: str | Path) -> str:
    """Return size and time of a file, or ``missing``."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


def is_image_name(name: str) -> bool:
    """Say whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - names inside archives are not paths


def read_webdataset(path: Path) -> Iterator[tuple[Sample, Mapping[str, bytes]]]:
    """Yield the images of an archive, each with its texts by suffix: ``cls``, ``txt``.

    Files belong together if their names are equal up to the first full stop. Images are found by their suffix and read
    later, from their place in the archive. Nothing is unpacked; links, devices and sparse files are ignored.

    Raises:
        DataError: not an uncompressed tar archive, or damaged.
    """
    try:
        with open_regular(path) as file, tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
            yield from _group(path, archive)
    except (OSError, tarfile.TarError, *_TAR_ERRORS) as error:
        raise DataError(
            f"{path} cannot be read as a tar archive: {first_line(error):.200}. Expected an uncompressed .tar as "
            "webdataset writes it; unpack a compressed one first."
        ) from error


class _Headers:
    """A file of which only headers and small texts are read: a header can name any size for what follows it."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")
        return self._file.read(size)

    def seek(self, place: int) -> int:
        """Go to a place."""
        return self._file.seek(place)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()


def _group(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[Sample, Mapping[str, bytes]]]:
    key, image, rest = "", None, dict[str, bytes]()
    num_left_out = 0
    stamp, last = file_stamp(path), -1
    while (member := archive.next()) is not None:
        if member.offset_data <= last or member.size < 0:  # it would never end
            raise tarfile.ReadError("a header leads backward")
        last = member.offset_data
        if len(member.name) > _MAX_NAME:
            raise tarfile.ReadError(f"a name of {len(member.name):,} characters, expected at most {_MAX_NAME:,}")
        if not member.isfile() or member.issparse():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if (member_key := f"{folder}/{stem}") != key:
            if image is not None:
                yield image, rest
            num_left_out += image is None and bool(rest)
            key, image, rest = member_key, None, {}
        if is_image_name(base):
            if image is not None:
                raise tarfile.ReadError(f"the images {image.name[-100:]} and {base:.100} are one sample")
            read = partial(_read_part, path, member.offset_data, member.size)
            image = Sample(f"{path.name}/{member.name}", f"{stamp}-{member.offset_data}", part=read)
        elif suffix.lower() in _TEXTS and member.size <= _MAX_TEXT_BYTES:
            rest[suffix.lower()] = _read_text(archive, member)
    if image is not None:
        yield image, rest
    num_left_out += image is None and bool(rest)
    if num_left_out:
        _log.warning("%s: samples without a file that has an image extension were left out: %d.", path, num_left_out)


def _read_text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    text = b"" if content is None else content.read()
    if len(text) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return text


def _read_part(path: Path, offset: int, size: int) -> bytes:
    DEFAULT_LIMITS.check_bytes(size, str(path))
    try:
        with open_regular(path) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.", status="io_error") from error
    if len(content) < size:
        raise ImageError(f"{path} ends in the middle of an image; get it again.", status="truncated")
    return content


def read_parquet(path: Path, columns: Collection[str]) -> Iterator[tuple[Sample, Mapping[str, Any]]]:
    """Yield the images of a Parquet file, each with those of some other columns that it has.

    The column ``image`` holds bytes, or ``{bytes, path}`` as the library datasets writes it.

    Raises:
        DataError: not a Parquet file, or without the column ``image``.
        MissingExtraError: the extra [parquet] is not installed.
    """
    file = ParquetFile(path)
    if "image" not in file.columns:
        raise DataError(
            f"{path} has the columns {', '.join(file.columns):.300}; expected one called image, with the bytes of an "
            "image."
        )
    stamp = file_stamp(path)
    for row, values in enumerate(file.rows(columns)):
        yield Sample(f"{path.name}/{row}", f"{stamp}-{row}", part=partial(_read_cell, file, row)), values


def _read_cell(file: ParquetFile, row: int) -> bytes:
    try:
        content = file.value("image", row)
    except DataError as error:
        raise ImageError(str(error)) from error
    if not isinstance(content, bytes):
        raise ImageError(f"{file.path.name}/{row} holds no bytes of an image; embed the images in the Parquet file.")
    DEFAULT_LIMITS.check_bytes(len(content), f"{file.path.name}/{row}")
    return content
