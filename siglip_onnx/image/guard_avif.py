"""Refuse AVIF files whose coded frames are larger than the limits, whatever size their container states.

The decoder reads the whole frame and then scales it to the stated size. Sources: ISO/IEC 14496-12 and 23008-12 for the
boxes, and sections 5.3 to 5.5 of the AV1 bitstream specification for the open bitstream units (OBUs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, NamedTuple

from ..options import ImageLimits
from .headers import bomb, read_at

MAX_BOXES = 10_000
MAX_TABLE_BYTES = 100_000
MAX_EXTENTS = 200  # of all coded images; encoders write one for each
MAX_OBUS = 5_000  # of all coded images
_SEQUENCE_HEADER = 1
_HEADER_BYTES = 256  # a sequence header has less
_SAMPLE_TABLE = (b"trak", b"mdia", b"minf", b"stbl")
_DAMAGED = (struct.error, IndexError)


class _Box(NamedTuple):
    kind: bytes
    start: int  # of its content
    end: int


class _Extent(NamedTuple):
    start: int
    size: int


def check_avif(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Compare the sizes in the sequence headers of all coded images with the limits.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    boxes_left, obus_left = iter(range(MAX_BOXES)), iter(range(MAX_OBUS))
    size = file.seek(0, 2)
    for box in _boxes(file, 0, size, boxes_left, name):
        items: Iterator[list[_Extent]] = iter(())
        if box.kind == b"meta":
            items = _items(file, box, size, boxes_left, name)
        elif box.kind == b"moov":
            items = _samples(file, box, boxes_left, name)
        with suppress(*_DAMAGED):
            for extents in items:
                with suppress(*_DAMAGED):
                    for width, height in _sequence_sizes(file, extents, obus_left, name):
                        limits.check_size(width, height, name)


def _boxes(file: IO[bytes], start: int, end: int, left: Iterator[int], name: str) -> Iterator[_Box]:
    while start + 8 <= end:
        if next(left, None) is None:
            raise bomb(name, f"more than {MAX_BOXES:,} boxes")
        size, kind = struct.unpack(">I4s", read_at(file, start, 8))
        header = 8
        if size == 1:
            if start + 16 > end:
                return
            size, header = struct.unpack(">Q", read_at(file, start + 8, 8))[0], 16
        stop = end if size == 0 else min(end, start + size)
        if stop < start + header:
            return
        yield _Box(kind, start + header, stop)
        start = stop


def _items(file: IO[bytes], meta: _Box, file_size: int, left: Iterator[int], name: str) -> Iterator[list[_Extent]]:
    """Yield where the data of each AV1 image item lies."""
    coded, locations, idat = set(), b"", 0
    for box in _boxes(file, meta.start + 4, meta.end, left, name):
        if box.kind == b"iinf":
            coded |= set(_coded_items(file, box, left, name))
        elif box.kind == b"iloc":
            locations = _table(file, box, name)
        elif box.kind == b"idat":
            idat = box.start
    for item, extents in _locations(locations, idat, file_size, name):
        if item in coded:
            yield extents


def _coded_items(file: IO[bytes], iinf: _Box, left: Iterator[int], name: str) -> Iterator[int]:
    count_bytes = 2 if read_at(file, iinf.start, 1) == b"\0" else 4
    for box in _boxes(file, iinf.start + 4 + count_bytes, iinf.end, left, name):
        version = read_at(file, box.start, 1)
        layout = ">H2x4s" if version <= b"\2" else ">I2x4s"
        with suppress(struct.error):  # a cut entry after those that the decoder reads
            item, kind = struct.unpack(layout, read_at(file, box.start + 4, struct.calcsize(layout)))
            if kind == b"av01":
                yield item


def _locations(table: bytes, idat: int, file_size: int, name: str) -> Iterator[tuple[int, list[_Extent]]]:
    """Yield the items of an iloc box and their extents."""
    version, sizes, num_extents = table[0], table[4:6], 0
    numbers = _Numbers(table, 6)
    offset_bytes, length_bytes, base_bytes = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_bytes = sizes[1] & 15 if version else 0
    for _ in range(numbers.read(2 if version < 2 else 4)):
        item = numbers.read(2 if version < 2 else 4)
        in_idat = bool(version) and numbers.read(2) & 15 == 1
        numbers.read(2)  # the file, which is this one
        base = numbers.read(base_bytes) + (idat if in_idat else 0)
        count = numbers.read(2)
        num_extents += count
        if num_extents > MAX_EXTENTS:
            raise bomb(name, f"more than {MAX_EXTENTS} parts of coded images")
        extents = []
        for _ in range(count):
            numbers.read(index_bytes)
            start, size = base + numbers.read(offset_bytes), numbers.read(length_bytes)
            extents.append(_Extent(start, size or max(0, file_size - start)))
        yield item, extents


def _samples(file: IO[bytes], moov: _Box, left: Iterator[int], name: str) -> Iterator[list[_Extent]]:
    """Yield where the first sample of each track lies."""
    parents = [moov]
    for kind in _SAMPLE_TABLE:
        parents = [
            box for parent in parents for box in _boxes(file, parent.start, parent.end, left, name) if box.kind == kind
        ]
    for table in parents:
        start = size = 0
        for box in _boxes(file, table.start, table.end, left, name):
            if box.kind in (b"stco", b"co64"):
                layout = ">I" if box.kind == b"stco" else ">Q"
                (start,) = struct.unpack(layout, read_at(file, box.start + 8, struct.calcsize(layout)))
            elif box.kind == b"stsz":
                uniform, _, first = struct.unpack(">III", read_at(file, box.start + 4, 12).ljust(12, b"\0"))
                size = uniform or first
        yield [_Extent(start, size)]


def _sequence_sizes(
    file: IO[bytes], extents: list[_Extent], left: Iterator[int], name: str
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Yield the largest width and height of a frame from each sequence header of a coded image."""
    position, end = 0, sum(extent.size for extent in extents)
    while position < end:
        if next(left, None) is None:
            raise bomb(name, f"more than {MAX_OBUS:,} parts of coded images")
        header = _read(file, extents, position, 10)
        kind, has_extension, has_size = header[0] >> 3 & 15, header[0] >> 2 & 1, header[0] >> 1 & 1
        position += 1 + has_extension
        size = end - position
        if has_size:
            size = 0
            for shift, byte in enumerate(header[1 + has_extension :]):
                size |= (byte & 127) << 7 * shift
                position += 1
                if byte < 128:
                    break
        if kind == _SEQUENCE_HEADER:
            yield _frame_size(_Bits(_read(file, extents, position, _HEADER_BYTES)))
        position += size


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """Read a sequence header as far as the size of its frames (5.5.1)."""
    bits.read(3 + 1)  # profile, still picture
    if bits.read(1):  # a reduced header
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing info
        bits.read(64)
        if bits.read(1):  # equal intervals, a number in universal code
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros if zeros < 32 else 0)
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    initial_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # the level, and for high ones the tier
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if initial_delay and bits.read(1):
            bits.read(4)


def _read(file: IO[bytes], extents: list[_Extent], position: int, count: int) -> bytes:
    """Read from the data of an item, whose extents follow each other."""
    content = b""
    for start, size in extents:
        if position < size and len(content) < count:
            content += read_at(file, start + position, min(count - len(content), size - position))
            position = size
        position -= size
    return content


def _table(file: IO[bytes], box: _Box, name: str) -> bytes:
    if box.end - box.start > MAX_TABLE_BYTES:
        raise bomb(name, f"a table of {box.end - box.start:,} bytes")
    return read_at(file, box.start, box.end - box.start)


class _Numbers:
    """Big-endian numbers of a table, one after the other."""

    def __init__(self, table: bytes, position: int) -> None:
        self._table, self._position = table, position

    def read(self, size: int) -> int:
        self._position += size
        if self._position > len(self._table):
            raise IndexError
        return int.from_bytes(self._table[self._position - size : self._position], "big")


class _Bits:
    """Bits of a header, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1
