"""Refuse HEIC and AVIF files whose coded frames are larger than the limits, whatever size their boxes state.

The decoder reads whole frames, also those that are not shown, which it then crops or scales to the stated size, and a
frame as often as a grid of tiles names it. Sources: sections 5.3 to 5.5 of the AV1 bitstream specification for the open
bitstream units (OBUs); ITU-T H.265, sections 7.3.1, 7.3.2 and 7.3.6, for network abstraction layer (NAL) units; ISO/IEC
14496-15 for how files hold them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from ..options import ImageLimits
from .guard_tiff import MAX_EXIF_BYTES, check_exif
from .headers import bomb
from .heif import Container, Extent, Item, read_container, read_extents

MAX_UNITS = 20_000  # OBUs or NAL units of all coded images
_MOST_DECODED = 3  # times the limit of pixels: a grid beyond its edges, alpha, a gain map
_MOST_ENLARGED = 2  # times: the sizes of a frame and its image differ by some rows and columns
_SLICES = 8  # of a frame beyond its first that count as another frame: they may say that they are the same part of it
_SEQUENCE_HEADER, _FRAMES = 1, (3, 6)  # kinds of OBUs
_SEQUENCE_PARAMETERS, _FIRST_OTHER = 33, 32  # kinds of NAL units; the smaller ones hold pixels
_HEADER_BYTES = 256  # a sequence header has less
_PARAMETERS_BYTES = 1024  # of sequence parameters, as far as the size of frames
_PADDING = 64  # bytes after the last unit that are not taken for a lost one
_HEVC = (b"hvc1", b"hev1")
_DAMAGED = (struct.error, IndexError)
_Size = tuple[int, int]


@dataclass
class _Coded:
    """What the data of a coded image hold: the sizes of their frames as far as they are stated, and how many frames."""

    sizes: list[_Size] = field(default_factory=list)
    num_frames: int = 0
    num_slices: int = 0

    def count_pixels(self, limits: ImageLimits, name: str, stated: int = 0) -> int:
        """Check each size, and return the pixels of all frames, each of which has ``stated`` ones at least."""
        for width, height in self.sizes:
            limits.check_size(width, height, name)
        frames = max(1, self.num_frames) + self.num_slices // _SLICES
        return frames * max([stated, *(width * height for width, height in self.sizes)])


def check_heif(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Compare the sizes of all frames that are decoded with the limits, each by itself and all together.

    Raises:
        ImageError: of status ``"too_large"``; or its boxes are damaged.
    """
    container, left = read_container(file, name), iter(range(MAX_UNITS))
    _check_exif(file, container, name)
    totals = [sum(_read_av1(file, each, left, name).count_pixels(limits, name) for each in container.samples), 0]
    if (shown := container.items.get(container.primary or 0)) and all(shown.size):
        limits.check_size(*shown.size, name)
    decoded = container.decoded(name)
    for number, item in container.items.items():
        coded = _read_coded(file, item, left, name)
        stated, largest = item.size[0] * item.size[1], max((width * height for width, height in coded.sizes), default=0)
        pixels = coded.count_pixels(limits, name, stated)
        if largest and stated > _MOST_ENLARGED * largest:
            raise bomb(name, f"a frame of {largest:,} pixels for an image of {item.size[0]}x{item.size[1]}")
        totals[1] += pixels * decoded.get(number, 0)
    if max(totals) > _MOST_DECODED * limits.max_pixels:
        raise bomb(name, f"coded images of {max(totals):,} pixels together")


def _check_exif(file: IO[bytes], container: Container, name: str) -> None:
    """Check EXIF data, which Pillow parses when it opens AVIF."""
    total = sum(extent.size for extents in container.exif for extent in extents)
    if total > MAX_EXIF_BYTES:
        raise bomb(name, f"{total:,} bytes of EXIF data")
    for extents in container.exif:
        check_exif(read_extents(file, extents, 4, total), name)


def is_incomplete(file: IO[bytes], name: str) -> bool:
    """Say whether data of the shown image are missing: they lie behind the end of the file, or are a hole in it.

    The decoder leaves out a tile without data, and says nothing.
    """
    container: Container = read_container(file, name)
    end, left = file.seek(0, 2), iter(range(MAX_UNITS))
    for number in container.decoded(name):
        item = container.items[number]
        if any(start + size > end for start, size in item.extents):
            return True
        with suppress(*_DAMAGED):  # the decoder reports it
            if item.kind in _HEVC and not _has_whole_units(file, item, left, name):
                return True
    return False


def _read_coded(file: IO[bytes], item: Item, left: Iterator[int], name: str) -> _Coded:
    """Read the frames of a coded image; nothing of other items, or from where on one is damaged."""
    if item.kind == b"av01":
        return _read_av1(file, item.extents, left, name)
    coded = _Coded()
    if item.kind in _HEVC:
        with suppress(*_DAMAGED):
            for unit in _configured_units(item.config):
                _count(left, name)
                coded.sizes += _hevc_size(unit[:_PARAMETERS_BYTES])
        with suppress(*_DAMAGED):
            for start, size in _hevc_units(file, item, left, name):
                unit = read_extents(file, item.extents, start, min(size, _PARAMETERS_BYTES))
                if _hevc_kind(unit) < _FIRST_OTHER:
                    is_first = unit[2:3] >= b"\x80"
                    coded.num_frames += is_first
                    coded.num_slices += not is_first
                coded.sizes += _hevc_size(unit)
    return coded


def _read_av1(file: IO[bytes], extents: list[Extent], left: Iterator[int], name: str) -> _Coded:
    """Read the largest width and height of a frame from each sequence header of a coded image, and count its frames."""
    coded = _Coded()
    with suppress(*_DAMAGED):
        position, end = 0, sum(extent.size for extent in extents)
        while position < end:
            _count(left, name)
            header = read_extents(file, extents, position, 10)
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
            coded.num_frames += kind in _FRAMES
            if kind == _SEQUENCE_HEADER:
                coded.sizes.append(_av1_frame_size(_Bits(read_extents(file, extents, position, _HEADER_BYTES))))
            position += size
    return coded


def _count(left: Iterator[int], name: str) -> None:
    if next(left, None) is None:
        raise bomb(name, f"more than {MAX_UNITS:,} parts of coded images")


def _av1_frame_size(bits: _Bits) -> _Size:
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
        if bits.read(1):  # equal intervals
            bits.read_golomb()
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


def _configured_units(config: bytes) -> Iterator[bytes]:
    """Yield the NAL units of a decoder's configuration (14496-15, 8.3.3.1)."""
    position = 23
    for _ in range(config[22]):
        (count,) = struct.unpack_from(">H", config, position + 1)
        position += 3
        for _ in range(count):
            (size,) = struct.unpack_from(">H", config, position)
            yield config[position + 2 : position + 2 + size]
            position += 2 + size


def _hevc_units(file: IO[bytes], item: Item, left: Iterator[int], name: str) -> Iterator[tuple[int, int]]:
    """Yield position and size of each NAL unit of a coded image, up to the first one without a sound length."""
    length_bytes, end, position = (item.config[21] & 3) + 1, sum(extent.size for extent in item.extents), 0
    while position + length_bytes < end:
        _count(left, name)
        size = int.from_bytes(read_extents(file, item.extents, position, length_bytes), "big")
        position += length_bytes
        if size == 0 or position + size > end:
            return
        yield position, size
        position += size


def _has_whole_units(file: IO[bytes], item: Item, left: Iterator[int], name: str) -> bool:
    """Say whether the NAL units of a coded image follow each other to its end, and some hold pixels."""
    last, has_pixels = 0, False
    for start, size in _hevc_units(file, item, left, name):
        has_pixels |= _hevc_kind(read_extents(file, item.extents, start, 1)) < _FIRST_OTHER
        last = start + size
    return has_pixels and sum(extent.size for extent in item.extents) - last <= _PADDING


def _hevc_kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63


def _hevc_size(unit: bytes) -> list[_Size]:
    """Return the size of frames, if a NAL unit holds sequence parameters (7.3.2.2)."""
    if _hevc_kind(unit) != _SEQUENCE_PARAMETERS:
        return []
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    num_layers = bits.read(3)
    bits.read(1 + 88 + 8)  # nesting; the general profile, tier and level
    present = [(bits.read(1), bits.read(1)) for _ in range(num_layers)]
    bits.read(2 * (8 - num_layers) if num_layers else 0)
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.read_golomb()
    if bits.read_golomb() == 3:  # chroma in full resolution
        bits.read(1)
    return [(bits.read_golomb(), bits.read_golomb())]


class _Bits:
    """Bits of a header, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def read_golomb(self) -> int:
        """Read a number in the universal code of both formats (AV1 4.10.3, H.265 9.2)."""
        zeros = 0
        while zeros < 32 and not self.read(1):  # behind 32 of them, decoders expect no other bit
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros if zeros < 32 else 0)
