"""Correct what Pillow reads wrongly in the merged image of a PSD, or refuse what it cannot read right.

Source: Adobe Photoshop File Formats Specification.
"""

from __future__ import annotations

import struct
from typing import IO, Any

from PIL import Image

from ..errors import ImageError
from .headers import read_at

_HEADER = struct.Struct(">12xHIIHH")  # channels, height, width, bits, and mode
_HEADER_BYTES, _VERSION_INFO = _HEADER.size, 1057  # the number of a resource
_MERGED_TRANSPARENCY, _MAX_BLOCKS_BYTES = b"8BIMMtrn", 65_536
_MULTICHANNEL, _PACKED = 7, "packbits"


def correct_psd_planes(image: Image.Image, file: IO[bytes] | None, name: str) -> None:
    """Correct where the channels of a PSD begin, and the levels of a bitmap, of an image that is not yet decoded.

    Pillow takes the lengths of the rows of channels that it does not read, such as saved selections, for pixels.

    Args:
        image: the opened image.
        file: its file; None if it is the caller's, which stays as it is.
        name: what errors call it.

    Raises:
        ImageError: of status ``"unsupported"``: it has no merged image, or only inks.
    """
    _check_composite(image, name)
    if file is None:
        return
    channels, height, _, _, mode = _HEADER.unpack(read_at(file, 0, _HEADER_BYTES))
    if mode == _MULTICHANNEL and channels > 1:
        raise ImageError(
            f"{name} is a PSD of {channels} inks without colors for them; save it in RGB.", status="unsupported"
        )
    tiles: Any = getattr(image, "tile", ())
    unread = channels - len(tiles)
    for number, tile in enumerate(tiles):
        skipped = 2 * height * unread if tile.codec_name == _PACKED else 0
        # In a bitmap, a set bit is black.
        tiles[number] = tile._replace(offset=tile.offset + skipped, args="1;I" if tile.args == "1" else tile.args)


def correct_psd_transparency(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Return a PSD without its fourth channel if that is not transparency."""
    return image if image.mode != "RGBA" or _has_transparency(file) else image.convert("RGB")


def _has_transparency(file: IO[bytes]) -> bool:
    """Say whether the fourth channel of a PSD is transparency: its count of layers is negative, or a block says so.

    Otherwise it is a saved selection or a spot color. A file that ends before its layers has none.
    """
    try:
        position = _HEADER_BYTES
        for _ in range(2):  # the colors and the resources
            position += 4 + struct.unpack(">I", read_at(file, position, 4))[0]
        section_bytes, layers_bytes = struct.unpack(">II", read_at(file, position, 8))
        if not section_bytes:
            return False
        if layers_bytes and struct.unpack(">h", read_at(file, position + 8, 2))[0] < 0:
            return True
    except struct.error:
        return False
    blocks_bytes = min(max(0, section_bytes - 4 - layers_bytes), _MAX_BLOCKS_BYTES)
    return _MERGED_TRANSPARENCY in read_at(file, position + 8 + layers_bytes, blocks_bytes)


def _check_composite(image: Image.Image, name: str) -> None:
    """Refuse a PSD that was saved without the image of all layers together, in whose place it is white."""
    resources: Any = getattr(image, "resources", ())
    if any(number == _VERSION_INFO and content[4:5] == b"\0" for number, _, content in resources):
        raise ImageError(
            f"{name} is a PSD without a merged image; save it for maximum compatibility.", status="unsupported"
        )
