"""Convert an image of any Pillow mode to RGB: composite transparency on a background, scale levels beyond 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ..errors import OptionError
from ..options import DROP

Color = tuple[int, int, int]

_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_KEYED_MODES = ("1", "L", "P", "RGB")  # in which the file may name a color or palette entries as transparent
_BITS_PER_SAMPLE = 258  # a TIFF tag
_LARGEST_INT = 2**31 - 1
_BLOCK_PIXELS = 1 << 20  # that are converted at the same time


def parse_background(background: str) -> Color | None:
    """Return the color that a name or ``#rrggbb`` means, None for ``"drop"``.

    Raises:
        OptionError: it is neither.
    """
    if background == DROP:
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(background)
        if alpha:
            raise ValueError("a color with an alpha channel")
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(
            f"background is {background!r}, expected the name of a color, #rrggbb, or {DROP!r}."
        ) from error
    return red, green, blue


def name_background(background: str) -> str:
    """Return the one spelling of a background: ``#rrggbb`` or ``"drop"``."""
    color = parse_background(background)
    return DROP if color is None else "#{:02x}{:02x}{:02x}".format(*color)


def is_deep(image: Image.Image) -> bool:
    """Say whether an image's levels may exceed 8 bits; all such modes are grayscale."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def largest_level(image: Image.Image, file: Image.Image) -> int:
    """Return the level of a deep image that means white.

    That of the file's bit depth, if it is at most 16. Otherwise the smallest of 1 (mode F only), 255 and 65535 that no
    pixel exceeds; beyond 65535 it is 65535 for floats and the largest int32 for integers.

    Args:
        image: a loaded image of a deep mode.
        file: the image as it was opened, which knows its format.
    """
    bits = _bit_depth(file)
    if bits is not None and image.mode != "F":
        return (1 << bits) - 1
    if image.mode.startswith("I;16"):
        return 65535
    levels = np.asarray(image)
    largest = float(levels.max(initial=0, where=np.isfinite(levels)))
    candidates: tuple[int, ...] = (1, 255, 65535) if image.mode == "F" else (255, 65535, _LARGEST_INT)
    return next((candidate for candidate in candidates if largest <= candidate), candidates[-1])


def scale_levels(image: Image.Image, white: int) -> Image.Image:
    """Scale a deep image from 0..``white`` to 8 bits, rounded; levels outside that range are cut, NaN is black.

    Returns mode L, or LA if the file names a level as transparent.
    """
    levels = np.asarray(image)
    scaled = Image.fromarray(_scale(levels, white))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return scaled
    alpha = Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    return Image.merge("LA", (scaled, alpha))


def to_rgb(image: Image.Image, background: Color | None) -> Image.Image:
    """Convert to mode RGB; transparency is composited on ``background``, or dropped if that is None.

    Sources: ``transformers.image_transforms.convert_to_rgb`` of 5.24 on white, which however drops premultiplied alpha
    and the alpha of palettes; of 4.57, which drops all transparency.
    """
    if image.mode == "La":  # which Pillow converts only to LA
        image = image.convert("LA")
    if background is None or not _has_transparency(image):
        return image.convert("RGB")
    flat = Image.new("RGB", image.size)
    for top, bottom in _blocks(image.width, image.height):
        block = image.crop((0, top, image.width, bottom)).convert("RGBA")
        below = Image.new("RGBA", block.size, (*background, 255))
        flat.paste(Image.alpha_composite(below, block).convert("RGB"), (0, top))
    return flat


def _has_transparency(image: Image.Image) -> bool:
    keyed = image.mode in _KEYED_MODES and image.info.get("transparency") is not None
    palette_has_alpha = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return keyed or palette_has_alpha or image.mode in _ALPHA_MODES


def _bit_depth(file: Image.Image) -> int | None:
    """Return the bits per level that the file of a deep image declares, None if unknown or more than 16."""
    if file.format in ("PNG", "PPM", "JPEG2000"):
        return 16  # Pillow scales 9 to 15 bits to 16
    bits: Any = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    depth = bits[0] if isinstance(bits, tuple) and bits else bits
    return depth if isinstance(depth, int) and 8 <= depth <= 16 else None


def _scale(levels: NDArray[Any], white: int) -> NDArray[np.uint8]:
    scaled = np.empty(levels.shape, np.uint8)
    for top, bottom in _blocks(levels.shape[1], len(levels)):
        block = np.nan_to_num(levels[top:bottom].astype(np.float64))
        scaled[top:bottom] = np.rint(block.clip(0, white) * (255 / white))
    return scaled


def _blocks(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each block of rows; a whole large image would take too much memory."""
    rows = max(1, _BLOCK_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
