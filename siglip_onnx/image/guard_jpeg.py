"""Refuse a JPEG by its segments: scans, each of which is a pass over the whole image, and metadata."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections import deque
from typing import IO

from .guard_tiff import EXIF, check_entries
from .headers import bomb, read_at

MAX_SCANS = 64  # an encoder's progressive JPEG has about ten
MAX_SEQUENTIAL_SCANS = 8  # one per component at most
MAX_SEGMENTS = 5_000  # reading their headers alone takes time
MAX_FILL = 100_000  # bytes between the segments before the first scan, which Pillow reads one by one in Python
MAX_METADATA_SEGMENTS = 32  # of EXIF and of Photoshop, each of up to 64 kB, which Pillow parses in Python
_END, _SCAN, _EXIF, _PHOTOSHOP = 0xD9, 0xDA, 0xE1, 0xED  # markers
_ALONE = (0x01, 0xD8, _END)  # without a length
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = (*_PROGRESSIVE, 0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check_jpeg(file: IO[bytes], name: str) -> None:
    """Count the scans up to the end of the first image; others, or a video, may follow it.

    Raises:
        ImageError: of status ``"too_large"``.
        struct.error: a segment is truncated.
    """
    scans, metadata, components, fill, position = 0, 0, 0, 0, 2
    most = MAX_SEQUENTIAL_SCANS
    for _ in range(MAX_SEGMENTS):
        start, position = position, _next_marker(file, position)
        fill += position - start if scans == 0 else 0
        if fill > MAX_FILL:
            raise bomb(name, f"more than {MAX_FILL:,} bytes between its segments")
        header = read_at(file, position, 10)
        if len(header) < 4:
            return
        _, marker, length = struct.unpack(">BBH", header[:4])
        if marker == _END and scans > 0:  # before the first scan, decoders read on
            return
        if marker in _FRAMES and len(header) == 10:
            components = header[9]
            most = MAX_SCANS if marker in _PROGRESSIVE else most
        elif marker in (_EXIF, _PHOTOSHOP):
            metadata += marker == _PHOTOSHOP or header[4:8] == b"Exif"
            if metadata > MAX_METADATA_SEGMENTS:
                raise bomb(name, f"more than {MAX_METADATA_SEGMENTS} segments of EXIF or Photoshop data")
            if header[4:10] == EXIF:
                with contextlib.suppress(struct.error):  # it is damaged, which changes no pixel
                    deque(check_entries(io.BytesIO(read_at(file, position + 10, length - 8)), name), maxlen=0)
        elif marker == _SCAN:
            scans += 1
            if scans > most:
                raise bomb(name, f"more than {most} scans")
            if scans == 1 and most == MAX_SEQUENTIAL_SCANS and header[4] >= components > 0:
                return  # all components in one scan, after which nothing is decoded
        position += 2 if marker in _ALONE else 2 + length
    raise bomb(name, f"more than {MAX_SEGMENTS:,} segments")


def is_read_in_one_pass(file: IO[bytes]) -> bool:
    """Say whether a JPEG is decoded as it is read, so that a reduced scale also reduces its cost.

    The decoder keeps all coefficients of a progressive JPEG, and of one with a scan for each color.
    """
    position, components = 2, None
    for _ in range(MAX_SEGMENTS):
        position = _next_marker(file, position)
        header = read_at(file, position, 10)
        if len(header) < 10 or header[1] in _PROGRESSIVE:
            return False
        if header[1] in _SEQUENTIAL:
            components = header[9]
        elif header[1] == _SCAN:
            return header[4] == components
        position += 2 if header[1] in _ALONE else 2 + int.from_bytes(header[2:4], "big")
    return False


def _next_marker(file: IO[bytes], position: int) -> int:
    """Return the position of the next marker, after fill bytes; in entropy-coded data such bytes are escaped."""
    while block := read_at(file, position, 1 << 16):
        if match := _MARKER.search(block):
            return position + match.start()
        position += max(1, len(block) - 1)
    return position
