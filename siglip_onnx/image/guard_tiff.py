"""Refuse a TIFF, or EXIF data of its form, by its first directory: entries, values, strips and tiles."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from ..options import ImageLimits
from .headers import bomb, read_at

EXIF = b"Exif\0\0"  # before a TIFF in other files
MAX_ENTRIES = 4096
MAX_VALUES = 400_000  # numbers of one directory: two for each row of the tallest image in three planes
MAX_TILES = 500_000
_ORIENTATION = 274
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP = 256, 257, 322, 323, 278
_SMALL_TILE = 4_000_000  # pixels
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


def check_tiff(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check the first directory of a TIFF.

    Raises:
        ImageError: of status ``"too_large"``.
        struct.error: the directory is truncated.
    """
    sizes: dict[int, int] = {}
    values = 0
    for entry in check_entries(file, name):
        values += 0 if entry.kind in _BYTES else entry.num_values
        if values > MAX_VALUES:
            raise bomb(name, f"more than {MAX_VALUES:,} values in a directory")
        if entry.value is not None:
            sizes[entry.tag] = max(sizes.get(entry.tag, 0), entry.value)
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


def check_entries(file: IO[bytes], name: str) -> Iterator[_Entry]:
    """Yield the entries of the first directory of a TIFF, or of EXIF data, which Pillow reads one by one.

    Raises:
        ImageError: of status ``"too_large"``: together they have far more bytes than the file.
        struct.error: the directory is truncated.
    """
    end, total = file.seek(0, 2), 0
    for entry in _read_entries(file, 0, name):
        size = _TYPE_BYTES.get(entry.kind, 1) * entry.num_values
        total += size if size <= end else 0  # of a longer one nothing is read
        if total > _SHARED * end:
            raise bomb(name, f"entries of {total:,} bytes in {end:,}")
        yield entry


def read_orientation(exif: bytes, name: str) -> int | None:
    """Return the orientation of EXIF data, None if there is none: whatever other entries are, or where they point.

    Raises:
        ImageError: of status ``"too_large"``, see :func:`check_entries`.
    """
    with contextlib.suppress(struct.error):
        for entry in check_entries(io.BytesIO(exif.removeprefix(EXIF)), name):
            if entry.tag == _ORIENTATION:
                return entry.value
    return None


def _read_entries(file: IO[bytes], start: int, name: str) -> Iterator[_Entry]:
    header = read_at(file, start, 16)
    order = ">" if header.startswith(b"MM") else "<"
    is_big = struct.unpack(f"{order}H", header[2:4])[0] == 43
    if is_big and header[4:8] != struct.pack(f"{order}HH", 8, 0):  # Pillow takes some as files that are not big
        raise bomb(name, "a header of a BigTIFF with other offsets than of 8 bytes")
    position = struct.unpack(f"{order}Q", header[8:16])[0] if is_big else struct.unpack(f"{order}I", header[4:8])[0]
    number, field = ("Q", "Q") if is_big else ("H", "I")
    count_bytes = struct.calcsize(f"={number}")
    count = struct.unpack(f"{order}{number}", read_at(file, start + position, count_bytes))[0]
    if count > MAX_ENTRIES:
        raise bomb(name, f"a directory of {count:,} entries")
    size = 20 if is_big else 12
    directory = read_at(file, start + position + count_bytes, size * count)
    for offset in range(0, len(directory) - size + 1, size):
        entry = directory[offset : offset + size]
        tag, kind, values = struct.unpack(f"{order}HH{field}", entry[: size - struct.calcsize(f"={field}")])
        yield _Entry(tag, kind, values, _first_value(file, order, kind, values, entry[-struct.calcsize(f"={field}") :]))


def _first_value(file: IO[bytes], order: str, kind: int, count: int, field: bytes) -> int | None:
    """Return the first value of an entry, which stands in its field if all fit there, else where the field points."""
    if kind not in _INTEGERS or count == 0:
        return None
    code = f"{order}{_INTEGERS[kind]}"
    size = struct.calcsize(code)
    if size * count <= len(field):
        data = field[:size]
    else:
        data = read_at(file, struct.unpack(f"{order}{'Q' if len(field) == 8 else 'I'}", field)[0], size)
    return struct.unpack(code, data)[0] if len(data) == size else None
