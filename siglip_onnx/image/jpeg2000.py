"""Correct what Pillow reads wrongly in JPEG 2000: levels of other than 8 bits, and palettes; notice a truncated one.

Source: ISO/IEC 15444-1, annexes A.5.1 and I.5.3.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import IO, Any

from PIL import Image

from ..errors import ImageError
from .guard_jpeg2000 import find_codestream
from .headers import read_at

_SUPERBOX, _PALETTE = b"jp2h", b"pclr"
_END = b"\xff\xd9"
_END_BYTES = 64  # in which the end of a codestream is looked for
_MAX_HEADER_BYTES = 100_000
_MAX_COMPONENTS = 4  # that Pillow reads


def correct_jpeg2000(image: Image.Image, file: IO[bytes], name: str) -> None:
    """Give an image that was opened the palette of its file: Pillow leaves out a color that occurs again.

    Raises:
        ImageError: of status ``"unsupported"``: a color has more than 8 bits, of which Pillow makes another one.
    """
    if image.mode != "I;16" and max(_read_depths(file, name), default=0) > 8:
        raise ImageError(
            f"{name} has colors of more than 8 bits, which Pillow does not read right in JPEG 2000; save it with 8 "
            "bits, or as PNG.",
            status="unsupported",
        )
    palette: Any = image.palette
    if image.mode in ("P", "PA") and palette is not None and (colors := _read_palette(file)):
        palette.palette = colors


def scale_jpeg2000(image: Image.Image, file: IO[bytes], name: str) -> Image.Image:
    """Scale channels of less than 8 bits, whose levels Pillow only shifts, so that the highest one is 255."""
    depths = _read_depths(file, name)
    if image.mode not in ("L", "LA", "RGB", "RGBA") or len(depths) != len(image.getbands()) or min(depths) >= 8:
        return image
    levels = [min(255, (level >> 8 - depth) * 255 // ((1 << depth) - 1)) for depth in depths for level in range(256)]
    return image.point(levels)


def is_cut(file: IO[bytes], name: str) -> bool:
    """Say whether a file ends before its codestream does."""
    with suppress(struct.error):
        start, size = find_codestream(file, name), file.seek(0, 2)
        length = int.from_bytes(read_at(file, start - 8, 4), "big") if start >= 8 else 0
        end = start - 8 + length if length > 8 else size
        return end > size or _END not in read_at(file, max(start, end - _END_BYTES), _END_BYTES)
    return True


def _read_depths(file: IO[bytes], name: str) -> list[int]:
    """Return the bits of each component."""
    with suppress(struct.error):
        start = find_codestream(file, name)
        components = min(_MAX_COMPONENTS, struct.unpack(">H", read_at(file, start + 40, 2))[0])
        fields = read_at(file, start + 42, 3 * components)
        return [(depth & 0x7F) + 1 for depth in fields[::3]]
    return []


def _read_palette(file: IO[bytes]) -> bytes:
    """Return the colors of a palette of a byte for each channel; nothing if there is none."""
    header = read_at(file, 0, _MAX_HEADER_BYTES)
    start = header.find(_PALETTE, max(0, header.find(_SUPERBOX))) + len(_PALETTE)
    fields = header[start : start + 3]
    if start < len(_PALETTE) or len(fields) < 3:
        return b""
    count, channels = struct.unpack(">HB", fields)
    colors = start + 3 + channels
    is_of_bytes = max(header[start + 3 : colors], default=0) <= 7
    return header[colors : colors + count * channels] if is_of_bytes else b""
