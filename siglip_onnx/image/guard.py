"""Refuse decompression bombs by their headers, before Pillow opens them: some formats decode while being opened.

Each check reads a few bytes and refuses a file that would cost far more to decode than its number of pixels suggests.
Files that are merely damaged are left to the decoder, whose message is better.
"""

from __future__ import annotations

import re
import struct
from typing import IO

from PIL import Image

from ..errors import ImageError
from ..options import ImageLimits

MAX_SCANS = 64  # an encoder's progressive JPEG has about ten; each costs a pass over the whole image
MAX_J2K_TILES = 4096  # each costs 11 kB, whatever its size
MAX_PNG_TEXTS = 16  # compressed texts, each of up to a megabyte
MAX_BOXES = 1000
MAX_SEGMENTS = 10_000  # of a JPEG; reading their headers alone takes time
MAX_PNG_CHUNKS = 100_000
MAX_ICONS = 256
_FARTHEST = 1 << 62  # the largest position that a file can seek to
_PNG = b"\x89PNG\r\n\x1a\n"
_J2K = b"\xff\x4f\xff\x51"
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_ALONE, _END, _SCAN, _PROGRESSIVE = 0x01, 0xD9, 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)  # markers; the first has no length
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check_header(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Refuse a file whose header claims more than the limits, or much work for few pixels.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    prefix = _read_at(file, 0, 26)
    try:
        if prefix.startswith(_PNG):
            _check_png_size(file, 0, limits, name)
            _check_png_texts(file, name)
        elif prefix.startswith(b"\xff\xd8"):
            _check_jpeg(file, name)
        elif prefix.startswith((_J2K, b"\0\0\0\x0cjP  ")):
            _check_jpeg2000(file, limits, name)
        elif prefix.startswith(b"\0\0\1\0"):
            _check_icon(file, limits, name)
        elif prefix.startswith(b"8BPS"):
            height, width = struct.unpack(">II", prefix[14:22])
            limits.check_size(width, height, name)
    except struct.error:
        pass  # truncated within its header: the decoder reports it
    file.seek(0)


def check_tiles(image: Image.Image, name: str) -> None:
    """Refuse an opened TIFF whose tiles are far larger than the image: each is decoded whole.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if not isinstance(width, int) or not isinstance(height, int):
        return
    if width * height > max(4 * image.width * image.height, 4_000_000):
        raise _bomb(name, f"tiles of {width}x{height} pixels for an image of {image.width}x{image.height}")


def _check_png_size(file: IO[bytes], start: int, limits: ImageLimits, name: str) -> None:
    width, height = struct.unpack(">II", _read_at(file, start + 16, 8))
    limits.check_size(width, height, name)


def _check_png_texts(file: IO[bytes], name: str) -> None:
    position, texts = len(_PNG), 0
    for _ in range(MAX_PNG_CHUNKS):
        header = _read_at(file, position, 8)
        if len(header) < 8:
            return
        length, kind = struct.unpack(">I4s", header)
        position += 12 + length
        texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if texts > MAX_PNG_TEXTS:
            raise _bomb(name, f"more than {MAX_PNG_TEXTS} compressed texts")
    raise _bomb(name, f"more than {MAX_PNG_CHUNKS:,} chunks")


def _check_jpeg(file: IO[bytes], name: str) -> None:
    """Count the scans up to the end of the first image; others, or a video, may follow it."""
    scans, progressive, position = 0, False, 2
    for _ in range(MAX_SEGMENTS):
        position = _next_marker(file, position)
        header = _read_at(file, position, 4)
        if len(header) < 4:
            return
        _, marker, length = struct.unpack(">BBH", header)
        if marker == _END or (marker == _SCAN and not progressive):
            return
        progressive = progressive or marker in _PROGRESSIVE
        position += 2 if marker == _ALONE else 2 + length
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise _bomb(name, f"more than {MAX_SCANS} scans")
    raise _bomb(name, f"more than {MAX_SEGMENTS:,} segments")


def _next_marker(file: IO[bytes], position: int) -> int:
    """Return the position of the next marker, after fill bytes; in entropy-coded data such bytes are escaped."""
    while block := _read_at(file, position, 1 << 16):
        if match := _JPEG_MARKER.search(block):
            return position + match.start()
        position += max(1, len(block) - 1)
    return position


def _check_jpeg2000(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check the size in the codestream, which may differ from that in a JP2's header, and its tiles."""
    start = 0 if _read_at(file, 0, 4) == _J2K else _codestream(file, name)
    size_marker = _read_at(file, start + 8, 32)
    right, bottom, left, top, tile_width, tile_height, *_ = struct.unpack(">8I", size_marker)
    limits.check_size(right - left, bottom - top, name)
    if tile_width == 0 or tile_height == 0:
        return
    tiles = -(-(right - left) // tile_width) * -(-(bottom - top) // tile_height)
    if tiles > MAX_J2K_TILES:
        raise _bomb(name, f"{tiles} tiles")


def _codestream(file: IO[bytes], name: str) -> int:
    """Return the position of the codestream of a JP2."""
    position = 0
    for _ in range(MAX_BOXES):
        length, kind = struct.unpack(">I4s", _read_at(file, position, 8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", _read_at(file, position + 8, 8))[0], 16
        if kind == b"jp2c":
            return position + header
        position += max(length, header)
    raise _bomb(name, f"more than {MAX_BOXES} boxes")


def _check_icon(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check every image of an icon by its own header: the directory says at most 256x256, and Pillow decodes at once.

    A bitmap's stored height is doubled, for the mask below it.
    """
    count = struct.unpack("<H", _read_at(file, 4, 2))[0]
    if count > MAX_ICONS:
        raise _bomb(name, f"{count} images")
    for number in range(count):
        start = struct.unpack("<I", _read_at(file, 6 + 16 * number + 12, 4))[0]
        header = _read_at(file, start, 16)
        if header.startswith(_PNG):
            _check_png_size(file, start, limits, name)
        elif header[:4] == b"\x0c\0\0\0":
            width, height = struct.unpack("<HH", header[4:8])
            limits.check_size(width, max(1, height // 2), name)
        else:
            width, height = struct.unpack("<ii", header[4:12])
            limits.check_size(abs(width), max(1, abs(height) // 2), name)


def _read_at(file: IO[bytes], position: int, count: int) -> bytes:
    if position >= _FARTHEST:
        return b""
    file.seek(position)
    return file.read(count)


def _bomb(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} has {what}, which is disproportionately expensive to decode; re-save it.", status="too_large"
    )
