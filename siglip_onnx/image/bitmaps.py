"""Correct what Pillow reads wrongly in bitmaps and icons of Windows.

Source: Microsoft's ``BITMAPINFOHEADER``.
"""

from __future__ import annotations

import io
import struct
from typing import IO, Any, cast

import numpy as np
from PIL import Image, ImagePalette

from ..errors import ImageError
from .headers import read_at
from .openers import open_plain
from .png import correct_transparent_color

_HEADER = struct.Struct("<IiiHHI")  # as far as the compression
_FILE_HEADER_BYTES, _OLD_HEADER_BYTES = 14, 12
_BLACK_AND_WHITE = b"\0\0\0\xff\xff\xff"
_GRAYS = bytes(level for level in range(16) for _ in range(3))


def correct_bitmap_palette(image: Image.Image, file: IO[bytes]) -> None:
    """Give a BMP that is not yet decoded the palette that Pillow dropped, if its pixels have several bits.

    Pillow takes a palette of black and white for pixels of one bit, and one of grays for pixels of 8 bits.
    """
    bits, tiles = _pixel_bits(file, _FILE_HEADER_BYTES), cast("list[Any]", getattr(image, "tile", []))
    is_raw = bool(tiles) and tiles[0].codec_name == "raw"
    if image.mode == "1" and bits in (4, 8):
        colors = _BLACK_AND_WHITE
    elif image.mode == "L" and bits == 4 and is_raw:
        colors = _GRAYS
    else:
        return
    image._mode = "P"  # noqa: SLF001 - as the plugin of the format does
    image.palette = ImagePalette.raw("RGB", colors)
    if is_raw:
        tiles[0] = tiles[0]._replace(args=("P;4" if bits == 4 else "P", *tiles[0].args[1:]))


def drop_unused_alpha(image: Image.Image) -> Image.Image:
    """Return a bitmap without an alpha channel of zeros, which Windows leaves behind, as browsers do."""
    return image.convert("RGB") if image.mode == "RGBA" and image.getextrema()[-1] == (0, 0) else image


def check_icon(image: Image.Image, file: IO[bytes], name: str) -> None:
    """Refuse an icon whose palette Pillow drops; see :func:`correct_bitmap_palette`.

    Raises:
        ImageError: of status ``"unsupported"``.
    """
    start = _best_entry(image).offset
    if _pixel_bits(file, start) not in (4, 8):
        return
    header_bytes, num_colors = struct.unpack("<I28xI", read_at(file, start, 36).ljust(36, b"\0"))
    if num_colors == 2 and read_at(file, start + header_bytes, 7) == b"\0\0\0\0\xff\xff\xff":
        raise ImageError(
            f"{name} is an icon in black and white of several bits a pixel, which Pillow does not read right; save it "
            "as PNG.",
            status="unsupported",
        )


def is_icon_cut(icon: Image.Image, file: IO[bytes], *, also_first: bool = False) -> bool:
    """Say whether the file ends before the image of an icon that counts.

    If that is the one that Pillow decodes, Pillow reports it, unless the host lets it pass truncated images: then
    ``also_first`` is needed.
    """
    entry, entries = _best_entry(icon), icon.ico.entry  # type: ignore[attr-defined]
    is_cut: bool = entry.offset + entry.size > file.seek(0, io.SEEK_END)
    return is_cut and (also_first or entry is not entries[0])


def correct_icon(image: Image.Image, opened: Image.Image, file: IO[bytes]) -> Image.Image:
    """Return the image of a decoded icon that has the most colors, with the transparency that Pillow may lose.

    In an image of 32 bits, transparency is an alpha channel, although the directory may state other bits. If it is 0
    everywhere, as in old icons, the mask behind the pixels counts, and without a mask the icon is opaque. In a PNG,
    transparency may be a color.
    """
    entry = _best_entry(opened)
    if is_icon_cut(opened, file):
        return image
    start = entry.offset
    entries: Any = opened.ico.entry  # type: ignore[attr-defined]
    if entry is not entries[0]:
        image = opened.ico.frame(entries.index(entry))  # type: ignore[attr-defined]
        image.load()
    frame = open_plain(io.BytesIO(read_at(file, start, entry.size)))
    return _correct_alpha(image, file, start) if frame is None else _clear_color(image, frame)


def _correct_alpha(image: Image.Image, file: IO[bytes], start: int) -> Image.Image:
    """Return a decoded icon that is a bitmap of 32 bits with its alpha channel, or its mask."""
    header = read_at(file, start, _HEADER.size)
    if image.mode != "RGBA" or len(header) < _HEADER.size:
        return image
    header_bytes, width, height, _, bits, compression = _HEADER.unpack(header)
    if (width, height, bits, compression) != (image.width, 2 * image.height, 32, 0):
        return image
    alpha = np.frombuffer(read_at(file, start + header_bytes, 4 * width * image.height), np.uint8)[3::4]
    if alpha.any():
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha.reshape(image.height, width)[::-1])))
        return image
    row_bytes = (width + 31) // 32 * 4
    mask = read_at(file, start + header_bytes + 4 * width * image.height, row_bytes * image.height)
    if len(mask) < row_bytes * image.height:
        return image.convert("RGB")
    # A set bit is transparent; the rows are stored upwards.
    is_clear = np.unpackbits(np.frombuffer(mask, np.uint8).reshape(image.height, row_bytes)[::-1], axis=1)
    image.putalpha(Image.fromarray(np.where(is_clear[:, :width], 0, 255).astype(np.uint8)))
    return image


def _clear_color(image: Image.Image, frame: Image.Image) -> Image.Image:
    """Return a decoded icon with the transparent color of its PNG, ``frame``."""
    correct_transparent_color(frame)
    if "transparency" not in frame.info or image.mode not in ("1", "L", "P", "RGB"):
        return image
    image.info["transparency"] = frame.info["transparency"]
    return image.convert("RGBA")


def _best_entry(icon: Image.Image) -> Any:
    """Return the entry of the largest size with most colors, as Windows and browsers do; Pillow takes the fewest."""
    entries: Any = icon.ico.entry  # type: ignore[attr-defined]
    return max((entry for entry in entries if entry.dim == entries[0].dim), key=lambda entry: entry.color_depth)


def _pixel_bits(file: IO[bytes], start: int) -> int:
    """Return the bits of a pixel that the header at a position states; 0 if there is none."""
    header = read_at(file, start, _HEADER.size).ljust(_HEADER.size, b"\0")
    place = 10 if int.from_bytes(header[:4], "little") == _OLD_HEADER_BYTES else 14
    return int.from_bytes(header[place : place + 2], "little")
