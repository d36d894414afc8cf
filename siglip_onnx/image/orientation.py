"""Read the orientation of an image from its EXIF data or XMP, without the metadata that Pillow would parse with it.

Versions of Pillow before 13 copy the bytes of each EXIF entry, also where entries share them, so that data of some
kilobytes take gigabytes: the data of a file are never given to its parser, and those of a caller's image are checked.
Source: ``PIL.Image.Image.getexif`` for where an image may have them.
"""

from __future__ import annotations

import logging
import re

from PIL import Image

from ..errors import ImageError, first_line
from .guard_tiff import check_exif

_ORIENTATION = 0x0112  # the EXIF tag
_RAW_PROFILE = "Raw profile type exif"  # a text of PNG, as ImageMagick writes it
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_log = logging.getLogger(__name__)


def read_orientation(image: Image.Image, name: str, *, from_file: bool) -> int | None:
    """Return the orientation of a decoded image, in EXIF's numbers; None if nothing says it, or it cannot be read.

    The metadata of an image of the caller, which is not ``from_file``, may have been changed since they were read.

    Raises:
        ImageError: of status ``"too_large"``, see :func:`.check_exif`.
    """
    try:
        exif = _exif_of(image)
        orientation = check_exif(exif, name) if exif else None
        if not from_file:
            orientation = image.getexif().get(_ORIENTATION)
        elif orientation is None and image.format != "TIFF":  # which Pillow has turned already
            orientation = _read_xmp(image)
    except ImageError:
        raise
    except Exception as error:  # parsers raise almost anything on damaged data
        problem = first_line(error) or type(error).__name__
        _log.warning("%s has EXIF data that cannot be read, so it is not turned: %s.", name, problem)
        return None
    return orientation if isinstance(orientation, int) else None


def _exif_of(image: Image.Image) -> bytes | None:
    exif, text = image.info.get("exif"), image.info.get(_RAW_PROFILE)
    if exif is None and isinstance(text, str):
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return exif if isinstance(exif, bytes) else None


def _read_xmp(image: Image.Image) -> int | None:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp) if xmp else None
    return int(match[1]) if match else None


def turn_upright(image: Image.Image, orientation: int | None) -> Image.Image:
    """Turn an image as an orientation says."""
    turn = _TURNS.get(orientation or 0)
    return image if turn is None else image.transpose(turn)
