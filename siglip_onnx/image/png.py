"""Correct what Pillow reads wrongly in PNGs."""

from __future__ import annotations

from typing import Any

from PIL import Image

_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # from the levels of such a PNG to those of 8 bits


def correct_transparent_color(image: Image.Image) -> None:
    """Scale a PNG's transparent color as its pixels are scaled: the file names it in its own levels."""
    tiles: Any = getattr(image, "tile", None)
    key, rawmode = image.info.get("transparency"), tiles[0][3] if tiles else None
    if isinstance(key, int) and rawmode in _GRAY_STEPS:
        image.info["transparency"] = key * _GRAY_STEPS[rawmode]
    elif isinstance(key, tuple) and isinstance(rawmode, str) and rawmode.startswith("RGB;16"):
        image.info["transparency"] = tuple(level >> 8 for level in key)
