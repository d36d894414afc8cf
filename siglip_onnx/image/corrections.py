"""Correct what Pillow reads wrongly in some files of several formats, or refuse what it cannot read right.

pillow-heif is held to the image that a HEIC file shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import IO

from PIL import Image

from ..errors import ImageError
from .bitmaps import check_icon, correct_bitmap_palette, correct_icon, drop_unused_alpha
from .headers import read_at
from .jpeg2000 import check_jpeg2000_levels, correct_jpeg2000
from .png import correct_transparent_color
from .psd import correct_psd_planes, correct_psd_transparency
from .tiff import correct_tiff

_TGA_HEADER_BYTES, _TGA_PALETTE_BITS, _TGA_BITS = 18, 7, 16
_TGA_DESCRIPTOR = 17  # the byte whose low bits count those of the alpha channel
_WEBP_ANIMATION, _MAX_WEBP_CHUNKS = 2, 100  # a flag; chunks up to the first frame


def correct_before_decoding(image: Image.Image, file: IO[bytes] | None, name: str) -> None:
    """Correct an image that was opened, but not yet decoded; without ``file`` it is the caller's and stays as it is.

    Raises:
        ImageError: of status ``"unsupported"``: Pillow would decode other pixels than the file's; or
            ``"decode_error"``: another image than the one that the file shows.
    """
    if image.format == "PNG" and file is not None:
        correct_transparent_color(image)
    elif image.format == "BMP" and file is not None:
        correct_bitmap_palette(image, file)
    elif image.format == "ICO" and file is not None:
        check_icon(image, file, name)
    elif image.format == "JPEG2000" and file is not None:
        check_jpeg2000_levels(image, file, name)
    elif image.format == "TIFF":
        correct_tiff(image, name)
    elif image.format == "PSD":
        correct_psd_planes(image, file, name)
    elif image.format == "HEIF" and file is not None and not image.info.get("primary", True):
        # pillow-heif opens the first image that it can read if the primary one is damaged or of another codec.
        raise ImageError(
            f"{name} has a primary image that cannot be opened, and its other images are not taken for it; get the "
            "file again, or save it as JPEG.",
            status="decode_error",
        )


def correct_after_decoding(image: Image.Image, opened: Image.Image, file: IO[bytes] | None) -> Image.Image:
    """Return a decoded image with the levels of its file, without an alpha channel that is none, or elsewhere.

    Args:
        image: the decoded image.
        opened: the image as it was opened, which knows its format.
        file: its file; None if it is the caller's, which stays as it is.
    """
    correct = _CORRECTIONS.get(opened.format or "")
    return image if file is None or correct is None else correct(image, opened, file)


def _correct_tga(image: Image.Image, _: Image.Image, file: IO[bytes]) -> Image.Image:
    """Return a TGA without an alpha channel that does not count.

    Some programs write one of 32 bits that counts, although they state no bits for it. In pixels of 16 bits, a set bit
    is opaque, while Pillow reads it as transparent; those that would all be transparent were written without alpha.
    """
    header = read_at(file, 0, _TGA_HEADER_BYTES)
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        image = image.convert("RGBA")
        is_short = header[_TGA_PALETTE_BITS] == 16
    else:
        is_short = header[_TGA_BITS] == 16
    if image.mode != "RGBA":
        return image
    states_alpha = header[_TGA_DESCRIPTOR] & 15 != 0
    if is_short:
        image.putalpha(image.getchannel("A").point([*range(255, -1, -1)]))
    is_clear = image.getextrema()[-1] == (0, 0)
    is_opaque = (is_clear or not states_alpha) if is_short else (is_clear and not states_alpha)
    return image.convert("RGB") if is_opaque else image


def _clear_around_frame(image: Image.Image, _: Image.Image, file: IO[bytes]) -> Image.Image:
    """Return an animated WebP whose first frame is smaller than its canvas with transparency around the frame."""
    if image.mode != "RGB" or read_at(file, 12, 4) != b"VP8X" or not read_at(file, 20, 1)[0] & _WEBP_ANIMATION:
        return image
    position = 12
    for _chunk in range(_MAX_WEBP_CHUNKS):
        kind, length = struct.unpack("<4sI", read_at(file, position, 8).ljust(8, b"\0"))
        if kind == b"ANMF":
            fields = read_at(file, position + 8, 12)
            left, top, width, height = (int.from_bytes(fields[start : start + 3], "little") for start in (0, 3, 6, 9))
            box = (2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1)
            if box != (0, 0, *image.size):
                alpha = Image.new("L", image.size)
                alpha.paste(255, box)
                image.putalpha(alpha)
            return image
        position += 8 + length + length % 2
    return image


_CORRECTIONS: dict[str, Callable[[Image.Image, Image.Image, IO[bytes]], Image.Image]] = {
    "BMP": lambda image, _, __: drop_unused_alpha(image),
    "ICO": correct_icon,
    "JPEG2000": lambda image, _, file: correct_jpeg2000(image, file),
    "PSD": lambda image, _, file: correct_psd_transparency(image, file),
    "TGA": _correct_tga,
    "WEBP": _clear_around_frame,
}
