"""Convert an image of any Pillow mode to RGB: composite transparency on a background, scale levels beyond 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFile

from ..errors import OptionError
from ..options import DROP

Color = tuple[int, int, int]

_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_OVERSHOOT = 1.25  # by which sharpening and resampling exceed the white of floats
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


def scale_levels(image: Image.Image, file: Image.Image) -> tuple[Image.Image, int]:
    """Scale a deep image to 8 bits, rounded; also return the level that means white, or black in a TIFF that says so.

    That level is the largest of the file's bit depth, if it is at most 16. Otherwise it is the smallest of 1 (mode F
    only), 255 and 65535 that no pixel exceeds, of floats by more than a quarter; beyond 65535 it is 65535 for floats
    and the largest of 32 bits for integers. Levels outside the range from 0 to it are cut, NaN is black.

    Args:
        image: a loaded image of a deep mode.
        file: the image as it was opened, which knows its format.

    Returns:
        An image of mode L, or LA if the file names a level as transparent, and the level.
    """
    levels = np.asarray(image)
    if image.mode == "I" and _tiff_tag(file, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        levels = levels.view(np.uint32)  # Pillow has signed ones only
    largest = _largest_level(levels, image.mode, file)
    scaled = Image.fromarray(_scale(levels, largest, inverted=_tiff_tag(file, _PHOTOMETRIC, None) == _WHITE_IS_ZERO))
    key = _transparent_color(image, file)
    if not isinstance(key, int):
        return scaled, largest
    alpha = Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    return Image.merge("LA", (scaled, alpha)), largest


def _largest_level(levels: NDArray[Any], mode: str, file: Image.Image) -> int:
    bits = _bit_depth(file)
    if bits is not None and mode != "F":
        return (1 << bits) - 1
    if mode.startswith("I;16"):
        return 65535
    reached = float(levels.max(initial=0, where=np.isfinite(levels)))
    candidates = (1, 255, 65535) if mode == "F" else (255, 65535, int(np.iinfo(levels.dtype).max))
    reached /= _OVERSHOOT if mode == "F" else 1
    return next((candidate for candidate in candidates if reached <= candidate), candidates[-1])


def to_rgb(image: Image.Image, file: Image.Image, background: Color | None) -> Image.Image:
    """Convert to mode RGB; transparency is composited on ``background``, or dropped if that is None.

    An image that is RGB already, without transparency, is returned as it is: a copy costs as much as decoding some.

    Args:
        image: a loaded image of any mode.
        file: the image as it was opened, or as the caller gave it.
        background: the color behind transparent pixels.

    Sources: ``transformers.image_transforms.convert_to_rgb`` of 5.24 on white, which however drops premultiplied alpha
    and the alpha of palettes; of 4.57, which drops all transparency.
    """
    if image.mode == "La":  # which Pillow converts only to LA
        image = image.convert("LA")
    if background is None or not _has_transparency(image, file):
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size)
    for top, bottom in _blocks(image.width, image.height):
        block = image.crop((0, top, image.width, bottom)).convert("RGBA")
        below = Image.new("RGBA", block.size, (*background, 255))
        flat.paste(Image.alpha_composite(below, block).convert("RGB"), (0, top))
    return flat


def _has_transparency(image: Image.Image, file: Image.Image) -> bool:
    palette_has_alpha = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return palette_has_alpha or image.mode in _ALPHA_MODES or _transparent_color(image, file) is not None


def _transparent_color(image: Image.Image, file: Image.Image) -> Any:
    """Return the color, level or palette entries that an image names as transparent, None if there are none.

    Pillow keeps them when it converts, resizes or quantizes an image, whose opaque pixels may have that color by then:
    of the caller's images it counts only as they were opened, and in the palette that it belongs to.
    """
    key = image.info.get("transparency")
    if image.mode == "P":
        return None if isinstance(key, tuple) else key
    return key if isinstance(file, ImageFile.ImageFile) else None


def _bit_depth(file: Image.Image) -> int | None:
    """Return the bits per level that the file of a deep image declares, None if unknown or more than 16."""
    if file.format in ("PNG", "PPM", "JPEG2000"):
        return 16  # Pillow scales 9 to 15 bits to 16
    depth = _tiff_tag(file, _BITS_PER_SAMPLE, None)
    if not isinstance(depth, int) or not 8 <= depth <= 16:
        return None
    return depth - 1 if _tiff_tag(file, _SAMPLE_FORMAT, _UNSIGNED) == _SIGNED else depth


def _tiff_tag(file: Image.Image, tag: int, default: Any) -> Any:
    """Return the value of a tag, the first of several; None if the file is not a TIFF."""
    if file.format != "TIFF":
        return None
    value = getattr(file, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value


def _scale(levels: NDArray[Any], largest: int, *, inverted: bool) -> NDArray[np.uint8]:
    scaled = np.empty(levels.shape, np.uint8)
    for top, bottom in _blocks(levels.shape[1], len(levels)):
        block = np.nan_to_num(levels[top:bottom].astype(np.float64))
        scaled[top:bottom] = np.rint(block.clip(0, largest) * (255 / largest))
    return 255 - scaled if inverted else scaled


def _blocks(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each block of rows; a whole large image would take too much memory."""
    rows = max(1, _BLOCK_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
