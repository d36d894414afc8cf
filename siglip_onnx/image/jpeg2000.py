"""Correct what Pillow reads wrongly in JPEG 2000 files, or refuse what it cannot read right.

Pillow shifts levels to 8 bits: of more bits, white overflows to black; of fewer, it becomes gray. It reads the palette
of a JP2 as if no color occurred twice, and neither the order nor the kinds of channels.

Source: ISO/IEC 15444-1, annexes A.5.1 (SIZ) and I.5.3 (boxes of the header).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from ..errors import ImageError
from .guard_jpeg2000 import CODESTREAM, MAX_BOXES, find_codestream
from .headers import read_at

_MAX_BOX_BYTES = 65_536
_END = b"\xff\xd9"
_END_BYTES = 64  # in which the end of a codestream is looked for
_COMPONENTS = 40  # where SIZ counts the components, and then describes each in three bytes
_COLOR, _ALPHA, _PREMULTIPLIED = 0, 1, 2  # kinds of channels
_ENUMERATED, _SYCC = 1, 18
_OTHER_SPACES = (1, 3, 4, 9, 11, 13, 14, 19, 22, 23)  # YCbCr, PhotoYCC, CMY, YCCK, CIELab, CIEJab and YPbPr
_ASSOCIATIONS = range(1, 65_535)  # of a channel with a color of the color space
_PALETTES = {3: "RGB", 4: "RGBA"}  # by the number of columns


@dataclass(frozen=True)
class _Layout:
    """What a file says of its channels.

    Attributes:
        depths: bits of each component of the codestream.
        boxes: content of the boxes in the header of a JP2, the first of each kind.
    """

    depths: tuple[int, ...]
    boxes: Mapping[bytes, bytes]

    @property
    def color_space(self) -> int | None:
        """The number of the color space, None if it has none."""
        color = self.boxes.get(b"colr", b"")
        return int.from_bytes(color[3:7], "big") if color[:1] == bytes([_ENUMERATED]) else None

    @property
    def is_sycc(self) -> bool:
        return self.color_space == _SYCC

    @property
    def channels(self) -> list[tuple[int, int, int]]:
        """Numbers of channels, their kinds, and the colors that they belong to, counted from 1; none if unstated."""
        content = self.boxes.get(b"cdef", b"")[2:]
        return list(struct.iter_unpack(">3H", content[: len(content) // 6 * 6]))

    def palette(self) -> tuple[bytes, str] | None:
        """Return the 256 colors of the values that Pillow gives for indices, and their mode; None if it has others."""
        content = self.boxes[b"pclr"]
        if len(content) < 3:
            return None
        count, columns = struct.unpack(">HB", content[:3])
        depths, colors = content[3 : 3 + columns], content[3 + columns : 3 + columns + count * columns]
        maps = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
        is_direct = len(self.depths) == 1 and self.boxes.get(b"cmap") == maps and not self.is_sycc
        if not is_direct or columns not in _PALETTES or set(depths) != {7} or not 0 < len(colors) == count * columns:
            return None
        shift = 8 - self.depths[0]
        indices = [min(value >> shift, count - 1) for value in range(256)]
        return b"".join(colors[columns * index :][:columns] for index in indices), _PALETTES[columns]

    def find_problem(self, mode: str) -> str | None:
        """Return what Pillow would read wrongly in this mode, None if nothing."""
        deepest, count = max(self.depths), len(self.depths)
        if deepest > (16 if mode == "I;16" else 8):
            return f"levels of {deepest} bits"
        if self.color_space in _OTHER_SPACES:
            return f"the color space {self.color_space}"
        if b"pclr" in self.boxes:
            return None if mode == "P" and self.palette() else "a palette of an unusual form"
        if min(self.depths) < 8 and (self.is_sycc or count != Image.getmodebands(mode)):
            return f"components of {min(self.depths)} bits in an unusual color space"
        last = count - 1
        for number, kind, color in self.channels:
            if (kind == _COLOR and color in _ASSOCIATIONS and color != number + 1) or (
                kind in (_ALPHA, _PREMULTIPLIED) and number != last
            ):
                return "channels in an unusual order"
        return None


def check_jpeg2000_levels(image: Image.Image, file: IO[bytes], name: str) -> None:
    """Check an image that was opened, but not yet decoded.

    Raises:
        ImageError: of status ``"unsupported"``: Pillow would decode other pixels than the file's.
    """
    layout = _read_layout(file)
    if layout is not None and (problem := layout.find_problem(image.mode)):
        raise ImageError(
            f"{name} is a JPEG 2000 with {problem}, which Pillow does not read right; save it as PNG.",
            status="unsupported",
        )


def correct_jpeg2000(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Return a decoded image with the levels, colors and transparency of its file."""
    layout = _read_layout(file)
    if layout is None:
        return image
    if image.mode == "P" and (palette := layout.palette()):
        image.putpalette(*palette)
    elif min(layout.depths) < 8 and image.mode != "I;16":
        shifted = np.arange(256)
        tables = [np.rint((shifted >> 8 - depth) * (255 / ((1 << depth) - 1))) for depth in layout.depths]
        image = image.point(np.concatenate(tables).astype(int).tolist())
    kinds = {number: kind for number, kind, _ in layout.channels}
    if image.mode not in ("LA", "RGBA") or not kinds or (kind := kinds.get(len(layout.depths) - 1)) == _ALPHA:
        return image
    if kind == _PREMULTIPLIED:
        return Image.merge(image.mode[:-1] + "a", image.split())
    return image.convert(image.mode[:-1])


def is_cut(file: IO[bytes], name: str) -> bool:
    """Say whether a file ends before its codestream does."""
    with contextlib.suppress(struct.error):
        start, size = find_codestream(file, name), file.seek(0, 2)
        length = int.from_bytes(read_at(file, start - 8, 4), "big") if start >= 8 else 0
        end = start - 8 + length if length > 8 else size
        return end > size or _END not in read_at(file, max(start, end - _END_BYTES), _END_BYTES)
    return True


def _read_layout(file: IO[bytes]) -> _Layout | None:
    """Return the layout of a file; None if it is truncated within its header."""
    boxes: dict[bytes, bytes] = {}
    start = 0
    with contextlib.suppress(struct.error):
        if read_at(file, 0, 4) != CODESTREAM:
            for kind, begin, end in _walk(file, 0, file.seek(0, 2)):
                if kind == b"jp2h" and not boxes:
                    for inner, position, stop in _walk(file, begin, end):
                        boxes.setdefault(inner, read_at(file, position, min(stop - position, _MAX_BOX_BYTES)))
                elif kind == b"jp2c":
                    start = begin
                    break
        count = struct.unpack(">H", read_at(file, start + _COMPONENTS, 2))[0]
        depths = read_at(file, start + _COMPONENTS + 2, 3 * count)[::3]
        if depths:
            return _Layout(tuple((depth & 127) + 1 for depth in depths), boxes)
    return None


def _walk(file: IO[bytes], position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes between two positions: kind, start and end of the content."""
    for _ in range(MAX_BOXES):
        if position >= end:
            return
        length, kind = struct.unpack(">I4s", read_at(file, position, 8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", read_at(file, position + 8, 8))[0], 16
        stop = position + length if length else end
        position += header
        yield kind, position, max(stop, position)
        position = max(stop, position)
