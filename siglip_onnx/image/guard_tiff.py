"""Refuse a TIFF, or EXIF data of its form, by its directories: entries, values, strips and tiles."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from ..errors import ImageError
from ..options import ImageLimits
from .headers import bomb, read_at

EXIF = b"Exif\0\0"  # before a TIFF in other files
MAX_EXIF_BYTES = 1_000_000
MAX_ENTRIES = 4096
MAX_NESTED_ENTRIES = 70_000  # in all; where a directory was lost, its place may seem to have 65,535
MAX_VALUES = 400_000  # numbers of one directory: two for each row of the tallest image in three planes
MAX_TILES = 500_000
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are of Pillow's own
_BIG_ENDIAN_BIGTIFF = b"MM\0+"
_ORIENTATION = 274
_NESTED = (34665, 34853, 40965)  # tags of further directories, which Pillow reads: EXIF, GPS, interoperability
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP = 256, 257, 322, 323, 278
_COMPRESSION, _JPEG, _PARTS = 259, 7, (273, 324)  # a value, and the tags of where strips and tiles begin
_SMALL_TILE, _SMALL_TILES = 4_000_000, 40_000_000  # pixels of one, and of all, for an image of any size
# struct's codes and sizes of the types that libtiff takes for a size, whatever type the standard demands.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BYTES = (1, 2, 6, 7)  # types that are not unpacked one by one
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHARED = 4  # times the bytes of a file that its entries may have together: they may overlap


class _Entry(NamedTuple):
    tag: int
    kind: int
    num_values: int
    value: int | None  # the first one of an integer type
    position: int  # where the values stand


def check_tiff(file: IO[bytes], limits: ImageLimits, name: str) -> set[int]:
    """Check the first directory of a TIFF, and those of metadata to which it points.

    Returns where its strips or tiles begin if they are JPEGs, which have to be checked too.

    Raises:
        ImageError: of status ``"too_large"``; or it is a BigTIFF that Pillow takes for another TIFF.
        struct.error: the first directory is truncated.
    """
    if read_at(file, 0, 4) == _BIG_ENDIAN_BIGTIFF:
        raise ImageError(
            f"{name} is a BigTIFF with big-endian byte order, which Pillow does not read; save it as TIFF or PNG.",
            status="unsupported",
        )
    if read_at(file, 4, 4) == bytes(4):  # no directory
        return set()
    directories = _Directories(file, name)
    sizes: dict[int, int] = {}
    nested: list[int] = []
    parts: list[_Entry] = []
    has_jpegs = False
    for entry in directories.read_first():
        if entry.kind not in _BYTES and entry.num_values > MAX_VALUES:  # also those behind the end
            raise bomb(name, f"more than {MAX_VALUES:,} values in a directory")
        if entry.value is not None:
            sizes[entry.tag] = max(sizes.get(entry.tag, 0), entry.value)
            nested += [entry.value] if entry.tag in _NESTED else []
            parts += [entry] if entry.tag in _PARTS else []
            has_jpegs |= entry.tag == _COMPRESSION and entry.value == _JPEG  # of several, decoders may take another
    _check_tiles(sizes, limits, name)
    for position in nested:  # grows by those to which they point
        with contextlib.suppress(struct.error):  # the decoder reads the image without this one
            entries = directories.read(position, MAX_NESTED_ENTRIES)
            nested += [entry.value for entry in entries if entry.tag in _NESTED and entry.value is not None]
    starts = (start for entry in parts for start in directories.integers(entry)) if has_jpegs else ()
    return {start for start in starts if start >= 0}


def _check_tiles(sizes: dict[int, int], limits: ImageLimits, name: str) -> None:
    width, height = sizes.get(_WIDTH, 0), sizes.get(_HEIGHT, 0)
    if width == 0 or height == 0:
        return
    limits.check_size(width, height, name)
    tile_width, tile_length = sizes.get(_TILE_WIDTH, 0), sizes.get(_TILE_LENGTH, 0)
    if tile_width > 0 and tile_length > 0:
        if tile_width * tile_length > max(4 * width * height, _SMALL_TILE):  # each is decoded whole
            raise bomb(name, f"tiles of {tile_width}x{tile_length} pixels for an image of {width}x{height}")
        tiles = -(-width // tile_width) * -(-height // tile_length)
        if tiles > MAX_TILES:
            raise bomb(name, f"{tiles:,} tiles")
        if tiles * tile_width * tile_length > max(4 * width * height, _SMALL_TILES):  # they may all have the same data
            raise bomb(name, f"{tiles:,} tiles of {tile_width}x{tile_length} pixels for an image of {width}x{height}")


def is_cut_tiff(file: IO[bytes]) -> bool:
    """Say whether a file is a TIFF that ends before or within its first directory."""
    header, size = read_at(file, 0, 16), file.seek(0, io.SEEK_END)
    if not header.startswith(TIFFS):
        return False
    order = ">" if header.startswith(b"MM") else "<"
    start, code, number, entry_bytes = (8, "Q", "Q", 20) if header[2:4] in (b"+\0", b"\0+") else (4, "I", "H", 12)
    try:
        (place,) = struct.unpack_from(order + code, header, start)
        count_bytes = struct.calcsize(f"={number}")
        (count,) = struct.unpack(order + number, read_at(file, place, count_bytes))
    except struct.error:
        return True
    return bool(place + count_bytes + entry_bytes * count > size)


def check_exif(exif: bytes, name: str) -> int | None:
    """Check EXIF data as Pillow reads them; return the orientation, None if they do not say or are damaged.

    Raises:
        ImageError: of status ``"too_large"``: they are very long, or their entries together have far more bytes.
    """
    if len(exif) > MAX_EXIF_BYTES:
        raise bomb(name, f"{len(exif):,} bytes of EXIF data")
    while exif.startswith(EXIF):
        exif = exif.removeprefix(EXIF)
    orientations: list[int | None] = []
    if exif.startswith(TIFFS):
        with contextlib.suppress(struct.error):
            entries = _Directories(io.BytesIO(exif), name).read_first()
            orientations += [entry.value for entry in entries if entry.tag == _ORIENTATION]
    return orientations[0] if orientations else None


class _Directories:
    """Reads the directories of a TIFF, all of which share one bound of entries, values and bytes."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        header = read_at(file, 0, 16)
        self._file, self._name, self._header = file, name, header
        self._order = ">" if header.startswith(b"MM") else "<"
        self._is_big = header[2:3] == b"+"
        self._end = file.seek(0, 2)
        self._entries = self._values = self._bytes = 0

    def read_first(self) -> Iterator[_Entry]:
        """Yield the entries of the first directory; raises as :meth:`read`."""
        start, code = (8, "Q") if self._is_big else (4, "I")
        yield from self.read(struct.unpack_from(self._order + code, self._header, start)[0], MAX_ENTRIES)

    def read(self, position: int, most: int) -> Iterator[_Entry]:
        """Yield the entries of a directory; ``most`` is the number that all together may have.

        Raises:
            ImageError: of status ``"too_large"``: they, with those that were read before, are more, have far more bytes
                than the file, or very many values.
            struct.error: the directory is truncated.
        """
        number, field, size = ("Q", "Q", 20) if self._is_big else ("H", "I", 12)
        count_bytes = struct.calcsize(f"={number}")
        count = struct.unpack(self._order + number, read_at(self._file, position, count_bytes))[0]
        self._entries += count
        if self._entries > most:
            raise bomb(self._name, f"directories of {self._entries:,} entries")
        entry = struct.Struct(f"{self._order}HH{field}")
        directory = read_at(self._file, position + count_bytes, size * count)
        for offset in range(0, len(directory) - size + 1, size):
            tag, kind, num_values = entry.unpack_from(directory, offset)
            self._count(kind, num_values)
            field_place = position + count_bytes + offset + entry.size
            place = self._values_place(kind, num_values, field_place, directory[offset + entry.size : offset + size])
            yield _Entry(tag, kind, num_values, self._first_value(kind, num_values, place), place)

    def integers(self, entry: _Entry) -> list[int]:
        """Return the values of an entry of an integer type, as many as there are."""
        code = struct.Struct(self._order + _INTEGERS[entry.kind])
        data = read_at(self._file, entry.position, code.size * entry.num_values)
        return [value for (value,) in code.iter_unpack(data[: len(data) // code.size * code.size])]

    def _count(self, kind: int, num_values: int) -> None:
        size = _TYPE_BYTES.get(kind, 1) * num_values
        if size > self._end:  # nothing of it is read
            return
        self._bytes += size
        self._values += 0 if kind in _BYTES else num_values
        if self._bytes > _SHARED * self._end:
            raise bomb(self._name, f"entries of {self._bytes:,} bytes in {self._end:,}")
        if self._values > MAX_VALUES:
            raise bomb(self._name, f"more than {MAX_VALUES:,} values in its directories")

    def _values_place(self, kind: int, count: int, field_place: int, field: bytes) -> int:
        """Return where the values of an entry stand: in its field if all fit there, else where it points."""
        if _TYPE_BYTES.get(kind, 1) * count <= len(field):
            return field_place
        return int(struct.unpack(self._order + ("Q" if self._is_big else "I"), field)[0])

    def _first_value(self, kind: int, count: int, place: int) -> int | None:
        if kind not in _INTEGERS or count == 0:
            return None
        code = self._order + _INTEGERS[kind]
        data = read_at(self._file, place, struct.calcsize(code))
        return struct.unpack(code, data)[0] if len(data) == struct.calcsize(code) else None
