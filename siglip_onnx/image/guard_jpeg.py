"""Refuse a JPEG by its segments: scans, each of which is a pass over the whole image, and metadata."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterator
from typing import IO, NamedTuple

from ..options import ImageLimits
from .guard_tiff import EXIF, check_exif
from .headers import bomb, read_at

MAX_SCANS = 64  # an encoder's progressive JPEG has about ten, of CMYK 18
MAX_PASSES = 20  # scans of the largest image within the limits, of smaller ones in proportion more
MAX_SEQUENTIAL_SCANS = 8  # one per component at most
MAX_SEGMENTS = 5_000  # reading their headers alone takes time
MAX_PART_SEGMENTS = 200_000  # of all JPEGs in a TIFF
MAX_FILL = 100_000  # bytes between the segments before the first scan, which Pillow reads one by one in Python
MAX_METADATA_SEGMENTS = 32  # of EXIF and of Photoshop, each of up to 64 kB, which Pillow parses in Python
_START, _SHARED = b"\xff\xd8", 8  # times the bytes of a TIFF that its JPEGs may have together
_END, _SCAN, _EXIF, _MPF, _PHOTOSHOP = 0xD9, 0xDA, 0xE1, 0xE2, 0xED  # markers
# Without a length; the reserved ones have one, but Pillow reads on behind them, and libjpeg refuses them.
_ALONE = (0x01, 0xD8, _END, 0xC8, *range(0xF0, 0xFE))
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_SEQUENTIAL = (0xC0, 0xC1)
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_FRAMES = (*_PROGRESSIVE, *_SEQUENTIAL, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_HEADER_BYTES = 10  # of a segment that are read: those of a frame, and the name of metadata


class Frame(NamedTuple):
    """How the image of a JPEG is coded.

    Attributes:
        is_lossless: it cannot be decoded at a reduced scale, which Pillow tries nevertheless.
        is_arithmetic: its codes are arithmetic, which few programs write, and take time without taking bytes.
        pixels: where they begin in the file, behind the header of the first scan.
        in_one_pass: it is decoded as it is read, so that a reduced scale also reduces its cost. Of a progressive JPEG,
            and of one with a scan for each color, the decoder keeps all coefficients.
    """

    is_lossless: bool
    is_arithmetic: bool
    in_one_pass: bool
    pixels: int


def check_jpeg(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Count the scans up to the end of the first image; others, or a video, may follow it.

    Raises:
        ImageError: of status ``"too_large"``.
    """
    scans, metadata, components, fill = 0, 0, 0, 0
    most = MAX_SEQUENTIAL_SCANS
    exif: list[bytes] = []
    index = b""  # of several images
    for marker, position, length, header, before in _segments(file, name):
        fill += before if scans == 0 else 0
        if fill > MAX_FILL:
            raise bomb(name, f"more than {MAX_FILL:,} bytes between its segments")
        if marker == _END and scans > 0:  # before the first scan, decoders read on
            return
        if marker in _FRAMES and len(header) == _HEADER_BYTES:
            height, width, components = struct.unpack(">HHB", header[5:])
            parts = limits.max_pixels // max(1, width * height)
            most = min(MAX_SCANS, MAX_PASSES * max(1, parts)) if marker in _PROGRESSIVE else most
        elif marker in (_EXIF, _PHOTOSHOP):
            metadata += marker == _PHOTOSHOP or header[4:8] == b"Exif"
            if metadata > MAX_METADATA_SEGMENTS:
                raise bomb(name, f"more than {MAX_METADATA_SEGMENTS} segments of EXIF or Photoshop data")
            if header[4:10] == EXIF and length >= 8:
                exif.append(read_at(file, position + 10, length - 8))
        elif marker == _MPF and header[4:8] == b"MPF\0" and length >= 6:
            index = read_at(file, position + 8, length - 6)
        elif marker == _SCAN:
            scans += 1
            if scans == 1:  # where Pillow parses what it has read, the segments of EXIF data as one
                check_exif(b"".join(exif), name)
                check_exif(index, name)
            if scans > most:
                raise bomb(name, f"more than {most} scans")
            if scans == 1 and most == MAX_SEQUENTIAL_SCANS and len(header) > 4 and header[4] >= components > 0:
                return  # all components in one scan, after which nothing is decoded


def check_jpeg_parts(file: IO[bytes], starts: Collection[int], name: str) -> None:
    """Check the JPEGs that a TIFF consists of: each scan is a pass over all pixels of a part, which others may share.

    Raises:
        ImageError: of status ``"too_large"``: one is progressive or arithmetic-coded, which programs do not write into
            TIFFs, or has more scans than channels; or it takes too long to find that out.
    """
    segments = scanned = 0
    most_scanned = _SHARED * file.seek(0, os.SEEK_END)
    for start in starts:
        if read_at(file, start, 2) != _START:
            continue
        scans = components = 0
        for marker, _, _, header, _ in _segments(file, name, start):
            segments += 1
            if segments > MAX_PART_SEGMENTS:
                raise bomb(name, f"more than {MAX_PART_SEGMENTS:,} segments of JPEGs in it")
            if marker in _FRAMES and len(header) == _HEADER_BYTES:
                components = header[9]
                if marker not in (*_SEQUENTIAL, _LOSSLESS[0]):
                    raise bomb(name, "a progressive or arithmetic-coded JPEG in it")
            scans += marker == _SCAN
            if scans > MAX_SEQUENTIAL_SCANS:
                raise bomb(name, f"a JPEG of more than {MAX_SEQUENTIAL_SCANS} scans in it")
            is_whole = marker == _SCAN and scans == 1 and len(header) > 4 and header[4] >= components > 0
            if is_whole or (marker == _END and scans > 0) or marker == _START[1]:  # a second start is an error
                break
        scanned += max(0, file.tell() - start)
        if scanned > most_scanned:
            raise bomb(name, "JPEGs in it that overlap")


def read_frame(file: IO[bytes], name: str) -> Frame | None:
    """Return how a JPEG is coded, None if it ends before its pixels."""
    frame = b""
    for marker, position, length, header, _ in _segments(file, name):
        if marker in _FRAMES and len(header) == _HEADER_BYTES:
            frame = header
        elif marker == _SCAN and frame:
            in_one_pass = frame[1] in _SEQUENTIAL and header[4:5] == frame[9:10]
            return Frame(frame[1] in _LOSSLESS, frame[1] in _ARITHMETIC, in_one_pass, position + 2 + length)
    return None


def _segments(file: IO[bytes], name: str, start_of_image: int = 0) -> Iterator[tuple[int, int, int, bytes, int]]:
    """Yield marker, position, stated length and first bytes of each segment, and the bytes between it and the last."""
    position = start_of_image + 2
    for _ in range(MAX_SEGMENTS):
        start, header = position, read_at(file, position, _HEADER_BYTES)
        if not _MARKER.match(header):
            position = _next_marker(file, position)
            header = read_at(file, position, _HEADER_BYTES)
        if len(header) < 4:
            return
        _, marker, length = struct.unpack(">BBH", header[:4])
        yield marker, position, length, header, position - start
        position += 2 if marker in _ALONE else 2 + length
    raise bomb(name, f"more than {MAX_SEGMENTS:,} segments")


def _next_marker(file: IO[bytes], position: int) -> int:
    """Return the position of the next marker, after fill bytes; in entropy-coded data such bytes are escaped."""
    while block := read_at(file, position, 1 << 16):
        if match := _MARKER.search(block):
            return position + match.start()
        position += max(1, len(block) - 1)
    return position
