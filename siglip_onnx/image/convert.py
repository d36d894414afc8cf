"""Convert an image of any Pillow mode to RGB: composite transparency on a background, scale levels beyond 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ..errors import SiglipOnnxError
from ..options import DROP

Color = tuple[int, int, int]

_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_KEYED_MODES = ("1", "L", "P", "RGB")  # in which the file may name a color or palette entries as transparent
_BITS_PER_SAMPLE = 258  # a TIFF tag
_LARGEST_INT = 2**31 - 1
_BLOCK_PIXELS = 1 << 20  # that are f64 at the same time


def parse_background(background: str) -> Color | None:
    """Return the color that a name or ``#rrggbb`` means, None for ``"drop"``.

    Raises:
        SiglipOnnxError: it is neither.
    """
    if background == DROP:
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(background)
        if alpha:
            raise ValueError("a color with an alpha channel")
    except (AttributeError, TypeError, ValueError) as error:
        raise SiglipOnnxError(
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

    Sources: ``transformers.image_transforms.convert_to_rgb`` of 5.24 on white; of 4.57, which drops transparency.
    """
    if image.mode == "La":  # which Pillow converts only to LA
        image = image.convert("LA")
    keyed = image.mode in _KEYED_MODES and image.info.get("transparency") is not None
    if background is None or not (keyed or image.mode in _ALPHA_MODES):
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def _bit_depth(file: Image.Image) -> int | None:
    """Return the bits per level that the file of a deep image declares, None if unknown or more than 16."""
    if file.format in ("PNG", "PPM", "JPEG2000"):
        return 16  # Pillow scales 9 to 15 bits to 16
    bits: Any = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    depth = bits[0] if isinstance(bits, tuple) and bits else bits
    return depth if isinstance(depth, int) and 8 <= depth <= 16 else None


def _scale(levels: NDArray[Any], white: int) -> NDArray[np.uint8]:
    scaled = np.empty(levels.shape, np.uint8)
    step = max(1, _BLOCK_PIXELS // levels.shape[1])
    for start in range(0, len(levels), step):
        block = np.nan_to_num(levels[start : start + step].astype(np.float64))
        scaled[start : start + step] = np.rint(block.clip(0, white) * (255 / white))
    return scaled
