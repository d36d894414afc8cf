"""Refuse decompression bombs by their headers, before Pillow opens them: some formats decode while being opened.

Each check reads a few bytes and refuses a file that would cost far more to decode than its number of pixels suggests.
Files that are merely damaged are left to the decoder, whose message is better.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import IO

from ..errors import ImageError
from ..options import ImageLimits
from .guard_heif import check_heif
from .guard_jpeg import check_jpeg, check_jpeg_parts
from .guard_jpeg2000 import CODESTREAM, check_jpeg2000
from .guard_tiff import MAX_EXIF_BYTES, TIFFS, check_tiff
from .headers import bomb, read_at

LARGE_BYTES = 50_000_000  # more than almost any photo has
MAX_PNG_TEXTS = 16  # compressed texts, each of up to a megabyte
MAX_PNG_CHUNKS = 100_000  # most are of pixels
MAX_PNG_OTHERS = 10_000
_PNG_PIXELS = (b"IDAT", b"fdAT")  # of the first frame, and of the others of an animation
MAX_WEBP_CHUNKS = 10_000
MAX_ICONS = 256
MAX_RESOURCES = 5_000
MAX_GIF_BLOCKS = 20_000
MAX_NETPBM_HEADER = 100_000
MAX_COMMENTS = 1_000
_PNG = b"\x89PNG\r\n\x1a\n"
# Magic number, width, height, and the largest value, which P1 and P4 do not have: there it is part of the data.
_NETPBM_HEADER = re.compile(rb"P\w*(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){3}")


def check_header(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Refuse a file whose header claims more than the limits, or much work for few pixels.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    prefix = read_at(file, 0, 26)
    # A file may begin as one of several formats: each decoder that might take it has its check.
    checks: list[tuple[bool, Callable[[], None]]] = [
        (prefix.startswith(_PNG), lambda: _check_png(file, 0, limits, name, iter(range(MAX_PNG_CHUNKS)))),
        (prefix.startswith(b"\xff\xd8"), lambda: check_jpeg(file, limits, name)),
        (prefix.startswith((CODESTREAM, b"\0\0\0\x0cjP  ")), lambda: check_jpeg2000(file, limits, name)),
        (prefix[4:8] == b"ftyp", lambda: check_heif(file, limits, name)),
        (prefix.startswith(TIFFS), lambda: check_jpeg_parts(file, check_tiff(file, limits, name), name)),
        (prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP", lambda: _check_webp(file, name)),
        (prefix.startswith((b"GIF87a", b"GIF89a")), lambda: _check_gif(file, name)),
        (re.match(rb"P[0-6fy]", prefix) is not None, lambda: _check_netpbm(file, name)),
        (prefix.startswith(b"\0\0\1\0"), lambda: _check_icon(file, limits, name)),
        (prefix.startswith(b"8BPS"), lambda: _check_psd(file, prefix, limits, name)),
    ]
    for is_of_format, check in checks:
        with contextlib.suppress(struct.error, IndexError):  # truncated within its header: the decoder reports it
            if is_of_format:
                check()
    file.seek(0)


def check_large_header(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check the header of a large file before all of it is read into memory; that of others is checked when decoded.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    if file.seek(0, os.SEEK_END) > LARGE_BYTES:
        check_header(file, limits, name)
    file.seek(0)


def _check_png(file: IO[bytes], start: int, limits: ImageLimits, name: str, chunks: Iterator[int]) -> None:
    """Check the size of a PNG, and its texts; ``chunks`` counts down to the last chunk that is read."""
    width, height = struct.unpack(">II", read_at(file, start + 16, 8))
    first = position = start + len(_PNG)
    texts = others = 0
    for _ in chunks:
        header = read_at(file, position, 8)
        if len(header) < 8:
            return
        length, kind = struct.unpack(">I4s", header)
        if kind == b"CgBI" and position == first:
            raise ImageError(f"{name} is a PNG of the kind for iOS apps only; convert it.", status="unsupported")
        if (kind == b"IHDR") != (position == first):  # Pillow reads it anywhere, and the last one counts
            raise ImageError(f"{name} is damaged: a PNG has one chunk IHDR, at its beginning; get the file again.")
        if position == first:
            limits.check_size(width, height, name)
        if kind == b"IEND":
            return
        position += 12 + length
        others += kind not in _PNG_PIXELS
        if others > MAX_PNG_OTHERS:
            raise bomb(name, f"more than {MAX_PNG_OTHERS:,} chunks without pixels")
        texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if kind == b"eXIf" and length > MAX_EXIF_BYTES:
            raise bomb(name, f"{length:,} bytes of EXIF data")
        if texts > MAX_PNG_TEXTS:
            raise bomb(name, f"more than {MAX_PNG_TEXTS} compressed texts")
    raise bomb(name, f"more than {MAX_PNG_CHUNKS:,} chunks")


def _check_psd(file: IO[bytes], prefix: bytes, limits: ImageLimits, name: str) -> None:
    """Check the size of a PSD, and the number of its resources, which Pillow reads one by one."""
    height, width = struct.unpack(">II", prefix[14:22])
    limits.check_size(width, height, name)
    position = 30 + struct.unpack(">I", read_at(file, 26, 4))[0]
    end = position + struct.unpack(">I", read_at(file, position, 4))[0]
    position += 4
    for _ in range(MAX_RESOURCES):
        if position >= end:
            return
        name_bytes = struct.unpack(">B", read_at(file, position + 6, 1))[0] | 1  # with its length, an even number
        position += 7 + name_bytes
        data_bytes = struct.unpack(">I", read_at(file, position, 4))[0]
        position += 4 + data_bytes + data_bytes % 2
    raise bomb(name, f"more than {MAX_RESOURCES:,} resources")


def _check_webp(file: IO[bytes], name: str) -> None:
    """Check the length of EXIF data among the first chunks."""
    position = 12
    for _ in range(MAX_WEBP_CHUNKS):
        kind, length = struct.unpack("<4sI", read_at(file, position, 8))
        if kind == b"EXIF" and length > MAX_EXIF_BYTES:
            raise bomb(name, f"{length:,} bytes of EXIF data")
        position += 8 + length + length % 2


def _check_gif(file: IO[bytes], name: str) -> None:
    """Count the blocks before the first image, which Pillow reads one by one."""
    flags = struct.unpack(">B", read_at(file, 10, 1))[0]
    file.seek(13 + (3 << (flags & 7) + 1 if flags & 128 else 0))
    blocks = 0
    while (byte := file.read(1)) not in (b"", b",", b";"):  # up to an image or the end
        blocks += 1  # also of bytes that decoders skip
        if byte == b"!":  # an extension
            file.read(1)
            while (size := file.read(1)) not in (b"", b"\0") and blocks <= MAX_GIF_BLOCKS:
                blocks += 1
                file.seek(size[0], os.SEEK_CUR)
        if blocks > MAX_GIF_BLOCKS:
            raise bomb(name, f"more than {MAX_GIF_BLOCKS:,} blocks before its image")


def _check_netpbm(file: IO[bytes], name: str) -> None:
    """Check a PPM for comments: Pillow reads those of the header byte by byte, and copies plain data for each other."""
    header = read_at(file, 0, MAX_NETPBM_HEADER)
    if len(header) == MAX_NETPBM_HEADER and not _NETPBM_HEADER.match(header):
        raise bomb(name, f"a header of more than {MAX_NETPBM_HEADER:,} bytes")
    if header[1:2] not in b"123":
        return
    file.seek(0)
    comments = 0
    while block := file.read(1 << 20):
        comments += block.count(b"#")
        if comments > MAX_COMMENTS:
            raise bomb(name, f"more than {MAX_COMMENTS:,} comments")


def _check_icon(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check every image of an icon by its own header: the directory says at most 256x256, and Pillow decodes at once.

    A bitmap's stored height is doubled, for the mask below it.
    """
    count = struct.unpack("<H", read_at(file, 4, 2))[0]
    if count > MAX_ICONS:
        raise bomb(name, f"{count} images")
    directory, chunks = read_at(file, 6, 16 * count), iter(range(MAX_PNG_CHUNKS))
    for start in {entry[12] for entry in struct.iter_unpack("<12B I", directory[: len(directory) // 16 * 16])}:
        with contextlib.suppress(struct.error):  # of one image, which may not be the one that is read
            _check_icon_image(file, start, limits, name, chunks)


def _check_icon_image(file: IO[bytes], start: int, limits: ImageLimits, name: str, chunks: Iterator[int]) -> None:
    header = read_at(file, start, 16)
    if header.startswith(_PNG):
        _check_png(file, start, limits, name, chunks)
    elif header[:4] == b"\x0c\0\0\0":
        width, height = struct.unpack("<HH", header[4:8])
        limits.check_size(width, max(1, height // 2), name)
    else:
        width, height = struct.unpack("<ii", header[4:12])
        limits.check_size(abs(width), max(1, abs(height) // 2), name)
