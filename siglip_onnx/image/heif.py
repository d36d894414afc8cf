"""Read the boxes of HEIF files (HEIC, AVIF) as far as they say which coded images are decoded, and where these lie.

Sources: ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, NamedTuple

from ..errors import ImageError
from .headers import bomb, read_at

MAX_BOXES = 10_000
MAX_TABLE_BYTES = 100_000
MAX_TABLES_BYTES = 300_000  # of all tables together, each number of which is read in Python; photos have some kB
MAX_EXTENTS = 200  # of one coded image; encoders write one
MAX_NESTING = 10  # of images that are made of others
DERIVED = (b"grid", b"iovl", b"iden", b"tmap")  # kinds of images that are made of others
_EXIF = b"Exif"  # the kind of an item
_UNIQUE = (b"pitm", b"iinf", b"iref", b"iprp", b"iloc", b"idat")
_SAMPLE_TABLE = (b"mdia", b"minf", b"stbl")
_DAMAGED = (struct.error, IndexError)


class Extent(NamedTuple):
    """Where a part of an image's data lies."""

    start: int
    size: int


@dataclass
class Item:
    """An image of a file.

    Attributes:
        kind: how it is coded, such as ``hvc1``, or made of others: one of :data:`DERIVED`.
        extents: where its data lie.
        size: width and height in pixels that the file states; 0 if it does not.
        config: the configuration of its decoder, empty if there is none.
        sources: the numbers of the images that it is made of, as often as it uses them.
        auxiliary_of: the numbers of the images whose alpha, depth or gain map it is.
    """

    kind: bytes
    extents: list[Extent] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    config: bytes = b""
    sources: list[int] = field(default_factory=list)
    auxiliary_of: list[int] = field(default_factory=list)


@dataclass
class Container:
    """What a file holds: images by number, which of them is shown, and its tracks' first samples and EXIF data."""

    items: dict[int, Item] = field(default_factory=dict)
    primary: int | None = None
    samples: list[list[Extent]] = field(default_factory=list)
    track_exif: list[list[Extent]] = field(default_factory=list)

    @property
    def exif(self) -> list[list[Extent]]:
        """Where all EXIF data lie, each behind a number of four bytes."""
        return [item.extents for item in self.items.values() if item.kind == _EXIF] + self.track_exif

    def decoded(self, name: str) -> dict[int, int]:
        """Return the numbers of the coded images that the shown one and its auxiliary ones need, and how often each.

        Raises:
            ImageError: of status ``"too_large"``: they are nested too deeply.
        """
        if self.primary is None:
            return {}
        counts = {self.primary: 1}
        counts |= {number: 1 for number, item in self.items.items() if self.primary in item.auxiliary_of}
        found: dict[int, int] = {}
        for _ in range(MAX_NESTING):
            below: dict[int, int] = {}
            for number, count in counts.items():
                item = self.items.get(number)
                if item is None:
                    continue
                if item.kind not in DERIVED:
                    found[number] = found.get(number, 0) + count
                    continue
                for source in item.sources:
                    below[source] = below.get(source, 0) + count
            if not below:
                return found
            counts = below
        raise bomb(name, f"images nested more than {MAX_NESTING} deep")


class _Box(NamedTuple):
    kind: bytes
    start: int  # of its content
    end: int


def read_container(file: IO[bytes], name: str) -> Container:
    """Read the boxes of a file; what decoders might read in another way is refused.

    Raises:
        ImageError: the boxes of its images are damaged, occur twice, or take long to read.
    """
    container, reader = Container(), _Reader(file, name)
    has_items = False
    with suppress(*_DAMAGED):  # of what follows the images
        for box in reader.boxes(0, reader.file_size):
            if box.kind == b"meta":
                if has_items:
                    raise _damaged(name)
                has_items = True
                _read_meta(container, reader, box)
            elif box.kind == b"moov":
                _read_tracks(container, reader, box)
    return container


def _damaged(name: str) -> ImageError:
    return ImageError(f"{name} is damaged: the boxes that describe its images cannot be read, or occur twice.")


class _Reader:
    """Reads boxes and tables of a file, up to a number of boxes and bytes."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name, self.file_size = file, name, file.seek(0, 2)
        self._num_boxes = self._table_bytes = 0

    def read(self, position: int, count: int) -> bytes:
        return read_at(self.file, position, count)

    def boxes(self, start: int, end: int) -> Iterator[_Box]:
        while start + 8 <= end:
            self._num_boxes += 1
            if self._num_boxes > MAX_BOXES:
                raise bomb(self.name, f"more than {MAX_BOXES:,} boxes")
            size, kind = struct.unpack(">I4s", self.read(start, 8))
            header = 8
            if size == 1:
                size, header = struct.unpack(">Q", self.read(start + 8, 8))[0], 16
            stop = end if size == 0 else min(end, start + size)
            if stop < start + header:
                raise IndexError
            yield _Box(kind, start + header, stop)
            start = stop

    def table(self, box: _Box) -> bytes:
        size = box.end - box.start
        self._table_bytes += size
        if size > MAX_TABLE_BYTES or self._table_bytes > MAX_TABLES_BYTES:
            raise bomb(self.name, f"tables of {self._table_bytes:,} bytes")
        return self.read(box.start, size)


def _read_meta(container: Container, reader: _Reader, meta: _Box) -> None:
    try:
        _read_items(container, reader, meta)
    except _DAMAGED as error:
        raise _damaged(reader.name) from error


def _read_items(container: Container, reader: _Reader, meta: _Box) -> None:
    parts: dict[bytes, _Box] = {}
    for box in reader.boxes(meta.start + 4, meta.end):
        if box.kind in parts and box.kind in _UNIQUE:
            raise IndexError
        parts[box.kind] = box
    items = container.items
    if b"iinf" in parts:
        entries = list(_entries(reader, parts[b"iinf"]))
        items |= {number: Item(kind) for number, kind in entries}
        if len(items) < len(entries):
            raise IndexError
    if b"pitm" in parts:
        numbers = _Numbers(reader.table(parts[b"pitm"]))
        container.primary = numbers.read_item(wide=numbers.version > 0)
    for kind, number, targets in _references(reader, parts[b"iref"]) if b"iref" in parts else ():
        item = items.get(number, Item(b""))
        item.sources += targets if kind == b"dimg" else []
        item.auxiliary_of += targets if kind == b"auxl" else []
    if b"iprp" in parts:
        _read_properties(items, reader, parts[b"iprp"])
    if b"iloc" in parts:
        idat = parts[b"idat"].start if b"idat" in parts else 0
        for number, extents in _locations(reader, parts[b"iloc"], idat):
            if items.get(number, Item(b"")).extents:
                raise IndexError
            items.setdefault(number, Item(b"")).extents = extents


def _entries(reader: _Reader, iinf: _Box) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the kind of each item."""
    count_bytes = 2 if reader.read(iinf.start, 1) == b"\0" else 4
    count = int.from_bytes(reader.read(iinf.start + 4, count_bytes), "big")
    for box in islice(reader.boxes(iinf.start + 4 + count_bytes, iinf.end), count):
        version = reader.read(box.start, 1)
        layout = ">H2x4s" if version <= b"\2" else ">I2x4s"
        yield struct.unpack(layout, reader.read(box.start + 4, struct.calcsize(layout)))


def _references(reader: _Reader, iref: _Box) -> Iterator[tuple[bytes, int, list[int]]]:
    """Yield the kind of each reference, the item that refers, and those that it refers to, which fill its box."""
    wide = reader.read(iref.start, 1) != b"\0"
    for box in reader.boxes(iref.start + 4, iref.end):
        numbers = _Numbers(reader.table(box), 0)
        number = numbers.read_item(wide=wide)
        yield box.kind, number, [numbers.read_item(wide=wide) for _ in range(numbers.read(2))]
        if not numbers.at_end:
            raise IndexError


def _read_properties(items: dict[int, Item], reader: _Reader, iprp: _Box) -> None:
    """Read the sizes and the decoders' configurations of images: each once, however many images have it."""
    properties: list[_Box] | None = None
    associations: list[_Box] = []
    for box in reader.boxes(iprp.start, iprp.end):
        if box.kind == b"ipco":
            if properties is not None:
                raise IndexError
            properties = list(reader.boxes(box.start, box.end))
        elif box.kind == b"ipma":
            associations.append(box)
    contents: dict[int, bytes] = {}
    for box in associations:
        for item, index in _associations(_Numbers(reader.table(box)), items):
            prop = properties[index - 1] if properties and index > 0 else _Box(b"", 0, 0)
            if prop.kind not in (b"hvcC", b"ispe"):
                continue
            if index not in contents:
                contents[index] = reader.table(prop)
            if prop.kind == b"ispe":
                item.size = max(item.size, struct.unpack_from(">II", contents[index], 4))
            elif not item.config:  # the first one, as decoders do
                item.config = contents[index]


def _associations(numbers: _Numbers, items: dict[int, Item]) -> Iterator[tuple[Item, int]]:
    """Yield images with the numbers of their properties, from 1 on."""
    long_indices = numbers.flags & 1
    for _ in range(numbers.read(4)):
        item = items.get(numbers.read_item(wide=numbers.version > 0), Item(b""))
        for _ in range(numbers.read(1)):
            yield item, numbers.read(2) & 0x7FFF if long_indices else numbers.read(1) & 0x7F


def _locations(reader: _Reader, iloc: _Box, idat: int) -> Iterator[tuple[int, list[Extent]]]:
    """Yield the items of an iloc box and their extents."""
    numbers = _Numbers(reader.table(iloc))
    version, sizes = numbers.version, (numbers.read(1), numbers.read(1))
    offset_bytes, length_bytes, base_bytes = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_bytes = sizes[1] & 15 if version else 0
    for _ in range(numbers.read_item(wide=version >= 2)):
        item = numbers.read_item(wide=version >= 2)
        in_idat = bool(version) and numbers.read(2) & 15 == 1
        numbers.read(2)  # the file, which is this one
        base = numbers.read(base_bytes) + (idat if in_idat else 0)
        count = numbers.read(2)
        if count > MAX_EXTENTS:
            raise bomb(reader.name, f"a coded image of more than {MAX_EXTENTS} parts")
        extents = []
        for _ in range(count):
            numbers.read(index_bytes)
            start, size = base + numbers.read(offset_bytes), numbers.read(length_bytes)
            extents.append(Extent(start, size or max(0, reader.file_size - start)))
        yield item, extents


def _read_tracks(container: Container, reader: _Reader, moov: _Box) -> None:
    """Read the EXIF data of all tracks, then where the first sample of each lies."""
    tracks = [box for box in reader.boxes(moov.start, moov.end) if box.kind == b"trak"]
    for box in [part for track in tracks for part in reader.boxes(track.start, track.end) if part.kind == b"meta"]:
        _read_meta(described := Container(), reader, box)
        container.track_exif += described.exif
    container.samples += _samples(reader, tracks)


def _samples(reader: _Reader, parents: list[_Box]) -> Iterator[list[Extent]]:
    """Yield where the first sample of each track lies."""
    for kind in _SAMPLE_TABLE:
        parents = [box for parent in parents for box in reader.boxes(parent.start, parent.end) if box.kind == kind]
    for table in parents:
        start = size = 0
        for box in reader.boxes(table.start, table.end):
            if box.kind in (b"stco", b"co64"):
                layout = ">I" if box.kind == b"stco" else ">Q"
                (start,) = struct.unpack(layout, reader.read(box.start + 8, struct.calcsize(layout)))
            elif box.kind == b"stsz":
                uniform, _, first = struct.unpack(">III", reader.read(box.start + 4, 12).ljust(12, b"\0"))
                size = uniform or first
        yield [Extent(start, size)]


def read_extents(file: IO[bytes], extents: list[Extent], position: int, count: int) -> bytes:
    """Read from the data of an image, whose extents follow each other."""
    content = b""
    for start, size in extents:
        if position < size and len(content) < count:
            content += read_at(file, start + position, min(count - len(content), size - position))
            position = size
        position -= size
    return content


class _Numbers:
    """Big-endian numbers of a table, one after the other, from behind its version and flags on."""

    def __init__(self, table: bytes, position: int = 4) -> None:
        self._table, self._position = table, position
        self.version = table[0] if table else 0
        self.flags = int.from_bytes(table[1:4], "big")

    def read(self, size: int) -> int:
        self._position += size
        if self._position > len(self._table):
            raise IndexError
        return int.from_bytes(self._table[self._position - size : self._position], "big")

    @property
    def at_end(self) -> bool:
        return self._position == len(self._table)

    def read_item(self, *, wide: bool) -> int:
        return self.read(4 if wide else 2)
