"""Correct what Pillow reads wrongly in TIFF files, or refuse what it cannot read right."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..errors import ImageError

_BITS_PER_SAMPLE, _COMPRESSION, _STRIP_BYTES, _PLANES = 258, 259, 279, 284
_SEPARATE, _UNCOMPRESSED, _FAX = 2, 1, (2, 3, 4)
_NATIVE_ORDER = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}  # of levels, as Pillow calls it


def check_planes(image: Image.Image, name: str) -> None:
    """Refuse a TIFF with a plane for each channel that Pillow reads as if it had 8 bits, or as interleaved.

    Raises:
        ImageError: of status ``"unsupported"``.
    """
    tags = getattr(image, "tag_v2", {})
    if _first(tags, _PLANES) != _SEPARATE:
        return
    depths, is_compressed = tags.get(_BITS_PER_SAMPLE) or (1,), _first(tags, _COMPRESSION) != _UNCOMPRESSED
    if (len(depths) > 1 and max(depths) > 8 and not is_compressed) or (len(depths) == 2 and is_compressed):
        raise ImageError(
            f"{name} is a TIFF with a plane for each of {len(depths)} channels of {max(depths)} bits, which Pillow "
            "does not read right; save it with interleaved channels, or as PNG.",
            status="unsupported",
        )


def correct_tiles(image: Image.Image, name: str) -> None:
    """Refuse a TIFF without some of its pixels, and let Pillow unpack those of libtiff in the order of this machine.

    Raises:
        ImageError: of status ``"unsupported"``.
    """
    tiles: Any = getattr(image, "tile", None) or []
    if any(codec == "raw" and offset == 0 for codec, _, offset, _ in tiles):  # where the header is
        raise ImageError(
            f"{name} is a TIFF that leaves out parts of the image, which Pillow does not read right; save it with all "
            "strips or tiles, or as PNG.",
            status="unsupported",
        )
    if tiles and tiles[0][0] == "libtiff" and (native := _NATIVE_ORDER.get(tiles[0][3][0])):
        image.tile = [tile._replace(args=(native, *tile[3][1:])) for tile in tiles]  # type: ignore[attr-defined]


def may_be_cut(image: Image.Image) -> bool:
    """Say whether nothing tells a truncated TIFF from a complete one: what is missing of fax data is white."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and _first(tags, _COMPRESSION) in _FAX and not any(tags.get(_STRIP_BYTES) or ())


def _first(tags: Any, tag: int) -> Any:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value
