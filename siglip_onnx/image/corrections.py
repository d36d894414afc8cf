"""Correct what Pillow reads wrongly in some files of PNG, TIFF and TGA, or refuse what it cannot read right."""

from __future__ import annotations

from typing import IO, Any

from PIL import Image

from ..errors import ImageError
from .headers import read_at

_BITS_PER_SAMPLE, _COMPRESSION, _PLANES = 258, 259, 284  # TIFF tags
_SEPARATE, _UNCOMPRESSED = 2, 1
_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # from the levels of such a PNG to those of 8 bits
_TGA_DESCRIPTOR = 17  # the byte whose low bits count those of the alpha channel


def correct_before_decoding(image: Image.Image, file: IO[bytes] | None, name: str) -> None:
    """Correct an image that was opened, but not yet decoded; without ``file`` it is the caller's and stays as it is.

    Raises:
        ImageError: of status ``"unsupported"``: Pillow would decode other pixels than the file's.
    """
    if image.format == "PNG" and file is not None:
        _correct_transparent_color(image)
    elif image.format == "TIFF":
        _check_planes(getattr(image, "tag_v2", {}), name)


def correct_alpha(image: Image.Image, file: IO[bytes] | None) -> Image.Image:
    """Return a decoded TGA without an alpha channel of which the file says that it has no bits, if all of it is 0.

    Some programs write a channel that counts, although they state no bits.
    """
    if file is None or image.format != "TGA" or image.mode != "RGBA" or image.getextrema()[-1] != (0, 0):
        return image
    return image if read_at(file, _TGA_DESCRIPTOR, 1)[0] & 15 else image.convert("RGB")


def _correct_transparent_color(image: Image.Image) -> None:
    """Scale a PNG's transparent color as its pixels are scaled: the file names it in its own levels."""
    tiles: Any = getattr(image, "tile", None)
    key, rawmode = image.info.get("transparency"), tiles[0][3] if tiles else None
    if isinstance(key, int) and rawmode in _GRAY_STEPS:
        image.info["transparency"] = key * _GRAY_STEPS[rawmode]
    elif isinstance(key, tuple) and isinstance(rawmode, str) and rawmode.startswith("RGB;16"):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _check_planes(tags: Any, name: str) -> None:
    """Refuse a TIFF with a plane for each channel that Pillow reads as if it had 8 bits, or as interleaved."""
    if _first(tags, _PLANES) != _SEPARATE:
        return
    depths, is_compressed = tags.get(_BITS_PER_SAMPLE) or (1,), _first(tags, _COMPRESSION) != _UNCOMPRESSED
    if (len(depths) > 1 and max(depths) > 8 and not is_compressed) or (len(depths) == 2 and is_compressed):
        raise ImageError(
            f"{name} is a TIFF with a plane for each of {len(depths)} channels of {max(depths)} bits, which Pillow "
            "does not read right; save it with interleaved channels, or as PNG.",
            status="unsupported",
        )


def _first(tags: Any, tag: int) -> Any:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value
