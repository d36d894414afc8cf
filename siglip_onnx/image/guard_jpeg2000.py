"""Refuse a JPEG 2000 by the markers of its codestream: tiles, components, precincts, code-blocks and layers.

OpenJPEG allocates for each of them before it decodes anything, whatever the number of pixels: 158 bytes can take 12 GB.
Source: ISO/IEC 15444-1, annexes A and B.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import IO

from ..options import ImageLimits
from .headers import bomb, read_at

MAX_COMPONENTS = 16  # Pillow decodes up to four
MAX_TILES = 4096
MAX_RESOLUTIONS = 120_000  # of all tiles and components; each costs 640 bytes
MAX_PACKETS = 1_000_000  # one per layer and precinct
MAX_BOXES = 1000
MAX_JP2_HEADER_BYTES = 4_000_000  # a color profile has less; Pillow reads the boxes in it in Python
MAX_MARKERS = 20_000
CODESTREAM = b"\xff\x4f\xff\x51"
_FEW_PRECINCTS, _SAMPLES_PER_PRECINCT = 4096, 512  # a precinct costs 2 kB; encoders make them of 128x128 and more
_FEW_BLOCKS, _SAMPLES_PER_BLOCK = 4096, 200  # a code-block costs 900 bytes; encoders make them of 32x32 or 64x64
_COD, _COC, _SOT, _SOD, _END = 0x52, 0x53, 0x90, 0x93, 0xD9
# The markers that the decoder knows; behind another one it looks for the next known one, wherever that stands.
_KNOWN = frozenset(b"\x50\x51\x52\x53\x55\x57\x58\x59\x5c\x5d\x5e\x5f\x60\x61\x63\x64\x74\x75\x77\x78\x90\x91\x93")
_STOP = re.compile(b"\xff[" + re.escape(bytes([*sorted(_KNOWN), _END])) + b"]")


@dataclass(frozen=True)
class _Size:
    """The SIZ marker: the area in pixels, its tiles, and the number of components."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiles: int
    components: int


def check_jpeg2000(file: IO[bytes], limits: ImageLimits, name: str) -> None:
    """Check the size in the codestream, which may differ from that in a JP2's header, and the work that it promises.

    Raises:
        ImageError: of status ``"too_large"``.
        struct.error: the header is truncated.
    """
    start = find_codestream(file, name)
    fields = read_at(file, start + 8, 34)
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, components = struct.unpack(">8IH", fields)
    limits.check_size(right - left, bottom - top, name)
    if tile_width == 0 or tile_height == 0:
        return
    tiles = -((tiles_left - right) // tile_width) * -((tiles_top - bottom) // tile_height)
    if tiles > MAX_TILES:
        raise bomb(name, f"{tiles} tiles")
    if components > MAX_COMPONENTS:
        raise bomb(name, f"{components} components")
    width, height = right - left, bottom - top
    size = _Size(width, height, min(tile_width, width), min(tile_height, height), tiles, components)
    _check_markers(file, start, size, name)


def find_codestream(file: IO[bytes], name: str) -> int:
    """Return the position of the codestream: in a JP2 that of its box.

    Raises:
        ImageError: of status ``"too_large"``: there are very many boxes before it, or a header of very many bytes.
        struct.error: there is none.
    """
    position = 0
    if read_at(file, 0, 4) == CODESTREAM:
        return position
    for _ in range(MAX_BOXES):
        length, kind = struct.unpack(">I4s", read_at(file, position, 8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", read_at(file, position + 8, 8))[0], 16
        if kind == b"jp2c":
            return position + header
        if kind == b"jp2h" and length > MAX_JP2_HEADER_BYTES:
            raise bomb(name, f"a JP2 header of {length:,} bytes")
        position += max(length, header)
    raise bomb(name, f"more than {MAX_BOXES} boxes")


def _check_markers(file: IO[bytes], start: int, size: _Size, name: str) -> None:
    """Check the coding styles in the main header and in those of all tile-parts; a later one may replace an earlier."""
    position, layers = start + 2, 1
    part_length, tile_end, in_tile_header, had_tile = 0, 0, False, False
    for _ in range(MAX_MARKERS):
        header = read_at(file, position, 18)
        if len(header) < 4:  # the end of the file
            return
        marker, length = header[1], int.from_bytes(header[2:4], "big")
        if marker == _END and had_tile and not in_tile_header:
            return
        is_expected = header[0] == 0xFF and marker in _KNOWN and (marker != _SOD or in_tile_header)
        if not is_expected and not _is_skipped(file, position, length):
            raise bomb(name, f"an unexpected marker {header[:2].hex()}")
        if marker == _SOT and len(header) >= 12:
            part_length = int.from_bytes(header[6:10], "big")
            tile_end, in_tile_header, had_tile = position + part_length, True, True
        elif marker == _SOD:
            if part_length == 0:  # the last tile-part, up to the end
                return
            if tile_end < position + 2:
                raise bomb(name, "a tile-part that ends before its data")
            position, in_tile_header = tile_end, False
            continue
        elif marker in (_COD, _COC):
            style = read_at(file, position + 4, length)
            if marker == _COD:
                layers = struct.unpack(">H", style[2:4])[0]
                _check_style(style[5:], bool(style[0] & 1), layers, size, name)
            else:
                index = 1 if size.components < 257 else 2
                _check_style(style[index + 1 :], bool(style[index] & 1), layers, size, name)
        if length < 2:
            raise bomb(name, f"a marker of {length} bytes")
        position += 2 + length
    raise bomb(name, f"more than {MAX_MARKERS:,} markers")


def _is_skipped(file: IO[bytes], position: int, length: int) -> bool:
    """Say whether a marker is unknown, and the decoder finds the next known one where its length says."""
    content = read_at(file, position, length + 4)
    known = _STOP.search(content)
    return content[:1] == b"\xff" and length % 2 == 0 and known is not None and known.start() == 2 + length


def _check_style(style: bytes, has_precincts: bool, layers: int, size: _Size, name: str) -> None:
    """Check one coding style as if all components of all tiles had it."""
    levels, block_width, block_height = struct.unpack(">3B", style[:3])
    levels = min(levels, 32)
    tile_components = size.tiles * size.components
    if tile_components * (levels + 1) > MAX_RESOLUTIONS:
        raise bomb(name, f"{tile_components * (levels + 1)} resolutions of tiles and components")
    precincts = further = blocks = 0
    for resolution in range(levels + 1):
        shift = levels - resolution
        width, height = (-(-side >> shift) for side in (size.tile_width, size.tile_height))
        packed = style[5 + resolution] if has_precincts else 0xFF
        precinct_width, precinct_height = packed & 15, packed >> 4
        count = -(-width >> precinct_width) * -(-height >> precinct_height)
        across, down = (
            min(block + 2, max(0, precinct - (resolution > 0)))
            for block, precinct in ((block_width, precinct_width), (block_height, precinct_height))
        )
        precincts += tile_components * count
        further += tile_components * (count - 1)
        blocks += tile_components * -(-width >> across) * -(-height >> down)
    samples = size.width * size.height * size.components
    if further > _FEW_PRECINCTS + samples // _SAMPLES_PER_PRECINCT:
        raise bomb(name, f"{precincts} precincts")
    if blocks - tile_components * (levels + 1) > _FEW_BLOCKS + samples // _SAMPLES_PER_BLOCK:
        raise bomb(name, f"{blocks} code-blocks")
    if precincts * layers > MAX_PACKETS:
        raise bomb(name, f"{precincts * layers} packets")
