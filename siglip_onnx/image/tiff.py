"""Correct what Pillow reads wrongly in TIFF files, or refuse what it cannot read right.

Sources: TIFF 6.0, Adobe; libtiff for color maps of 8 bits.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import IO, Any

from PIL import Image, ImagePalette

from ..errors import ImageError
from .headers import read_at

_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANES, _COLORS = 258, 259, 262, 284, 320  # tags
_STRIP_BYTES, _TILE_BYTES, _SUBSAMPLING = 279, 325, 530
_PLACES = ((273, _STRIP_BYTES), (324, _TILE_BYTES), (513, 514))  # where strips, tiles, and a JPEG of all begin and end
_OLD_JPEG, _JPEG_END = 6, b"\xff\xd9"
_SEPARATE, _UNCOMPRESSED, _FAXES, _YCBCR, _CIELAB = 2, 1, (2, 3, 4), 6, 8
_HALVED, _WHOLE = (2, 2), (1, 1)  # the default of subsampling, and none
_NATIVE_ORDER = {"F;32BF": "F;32NF", "F;64BF": "F;64NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS", "I;32B": "I;32N"}


def correct_tiff(image: Image.Image, name: str) -> None:
    """Correct a TIFF that was opened, but not yet decoded.

    Raises:
        ImageError: of status ``"unsupported"``: Pillow would decode other pixels than the file's.
    """
    tags: Any = getattr(image, "tag_v2", {})
    _check_planes(tags, name)
    _check_subsampling(tags, name)
    _check_photometric(tags, name)
    _check_strips(image, tags, name)
    _correct_byte_order(image)
    _correct_colors(image, tags)


def is_old_jpeg_cut(image: Image.Image, file: IO[bytes]) -> bool:
    """Say whether a TIFF of old JPEGs ends before its data, which libtiff fills up without a word.

    Programs state wrong lengths too: a JPEG that ends with its marker is complete.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if _first(tags, _COMPRESSION) != _OLD_JPEG:
        return False
    end = file.seek(0, os.SEEK_END)
    parts = (zip(_all(tags, start), _all(tags, length), strict=False) for start, length in _PLACES)
    cut = [place[0] for place in chain.from_iterable(parts) if all(map(_is_place, place)) and sum(place) > end]
    return bool(cut) and _JPEG_END not in read_at(file, max(cut), max(0, end - max(cut)))


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _check_planes(tags: Any, name: str) -> None:
    """Refuse a TIFF with a plane for each channel that Pillow reads as if it had 8 bits, or as interleaved."""
    if _first(tags, _PLANES) != _SEPARATE:
        return
    if _first(tags, _PHOTOMETRIC) == _CIELAB:
        raise ImageError(
            f"{name} is a TIFF with a plane for each channel of L*a*b*, which Pillow does not read right; save it with "
            "interleaved channels, or in RGB.",
            status="unsupported",
        )
    depths, is_compressed = tags.get(_BITS_PER_SAMPLE) or (1,), _first(tags, _COMPRESSION) != _UNCOMPRESSED
    if (len(depths) > 1 and max(depths) > 8 and not is_compressed) or (len(depths) == 2 and is_compressed):
        raise ImageError(
            f"{name} is a TIFF with a plane for each of {len(depths)} channels of {max(depths)} bits, which Pillow "
            "does not read right; save it with interleaved channels, or as PNG.",
            status="unsupported",
        )


def _check_subsampling(tags: Any, name: str) -> None:
    """Refuse an uncompressed TIFF whose colors have fewer levels than its brightness, which Pillow reads as noise."""
    if _first(tags, _PHOTOMETRIC) != _YCBCR or _first(tags, _COMPRESSION) != _UNCOMPRESSED:
        return
    if tags.get(_SUBSAMPLING, _HALVED) != _WHOLE:
        raise ImageError(
            f"{name} is an uncompressed TIFF with subsampled colors, which Pillow does not read right; save it as RGB.",
            status="unsupported",
        )


def _check_photometric(tags: Any, name: str) -> None:
    """Refuse a TIFF that does not say whether 0 is black, which Pillow takes for white; in faxes it is."""
    if tags and _PHOTOMETRIC not in tags and _first(tags, _COMPRESSION) not in _FAXES:
        raise ImageError(
            f"{name} is a TIFF that does not say whether its zeros are black or white; save it again, or as PNG.",
            status="unsupported",
        )


def _check_strips(image: Image.Image, tags: Any, name: str) -> None:
    """Refuse a TIFF that lacks parts, or a fax without the length of its data, which may be truncated."""
    if _first(tags, _COMPRESSION) in _FAXES and _STRIP_BYTES not in tags and _TILE_BYTES not in tags:
        raise ImageError(
            f"{name} is a TIFF of a fax without the length of its data, so that it may be truncated; save it again.",
            status="unsupported",
        )
    tiles: Any = getattr(image, "tile", ())
    if any(tile.codec_name == "raw" and tile.offset == 0 for tile in tiles):
        raise ImageError(f"{name} is a TIFF with missing parts; save it again with all of them.", status="unsupported")


def _correct_byte_order(image: Image.Image) -> None:
    """Let a compressed TIFF be read in the byte order of this machine, in which libtiff gives its levels."""
    tiles: Any = getattr(image, "tile", ())
    for number, tile in enumerate(tiles):
        if tile.codec_name == "libtiff" and (order := _NATIVE_ORDER.get(tile.args[0])):
            tiles[number] = tile._replace(args=(order, *tile.args[1:]))


def _correct_colors(image: Image.Image, tags: Any) -> None:
    """Take colors that are all below 256 as levels of 8 bits, as libtiff does, rather than of 16: not all as black."""
    colors = _all(tags, _COLORS)
    is_short = all(isinstance(level, int) and 0 <= level < 256 for level in colors) and any(colors)
    if image.mode in ("P", "PA") and getattr(image, "tile", None) and is_short:
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _all(tags: Any, tag: int) -> tuple[Any, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _first(tags: Any, tag: int) -> Any:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value
