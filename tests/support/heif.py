"""Write HEIF files box by box: grids of tiles as phones write them, and files that no encoder writes."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from PIL import Image

from siglip_onnx.image.heif import read_container, read_extents

GAIN_MAP = b"urn:com:apple:photo:2020:aux:hdrgainmap\0"


@dataclass(frozen=True)
class Part:
    """An item of a file: its kind, data and properties, and the numbers of the items that it refers to."""

    kind: bytes
    data: bytes = b""
    properties: Sequence[bytes] = ()
    sources: Sequence[int] = ()
    auxiliary_of: Sequence[int] = ()
    preview_of: Sequence[int] = ()


def box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def size_of(width: int, height: int) -> bytes:
    return full_box(b"ispe", struct.pack(">II", width, height))


def crop(width: int, height: int) -> bytes:
    return box(b"clap", struct.pack(">8I", width, 1, height, 1, 0, 1, 0, 1))


def coded(image: Image.Image, stated: tuple[int, int] | None = None, *more: bytes) -> Part:
    """Return a coded HEVC image, which states its size or another."""
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90)
    container = read_container(buffer, "x")
    assert container.primary is not None
    item = container.items[container.primary]
    data = read_extents(buffer, item.extents, 0, len(buffer.getvalue()))
    return Part(b"hvc1", data, (box(b"hvcC", item.config), size_of(*(stated or image.size)), *more))


def grid(columns: int, rows: int, size: tuple[int, int], tiles: Sequence[int], **references: Sequence[int]) -> Part:
    content = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *size)
    return Part(b"grid", content, (size_of(*size),), tiles, **references)


def heif_file(*parts: Part, shown: int = 1) -> bytes:
    """Return a file of these items, numbered from 1."""
    numbered = list(enumerate(parts, 1))
    properties = list(dict.fromkeys(each for part in parts for each in part.properties))
    ipma = b"".join(
        struct.pack(">HB", number, len(part.properties))
        + bytes(properties.index(each) + 1 | (each[4:8] != b"ispe") << 7 for each in part.properties)
        for number, part in numbered
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
        for number, part in numbered
        for kind, targets in ((b"dimg", part.sources), (b"auxl", part.auxiliary_of), (b"thmb", part.preview_of))
        if targets
    )
    entries = b"".join(
        full_box(b"infe", struct.pack(">HH4sB", number, 0, part.kind, 0), version=2, flags=number not in (1, shown))
        for number, part in numbered
    )

    def meta(data_start: int) -> bytes:
        locations, place = b"", data_start
        for number, part in numbered:
            locations += struct.pack(">HHHII", number, 0, 1, place, len(part.data))
            place += len(part.data)
        return full_box(
            b"meta",
            full_box(b"hdlr", struct.pack(">4x4s12xB", b"pict", 0)),
            full_box(b"pitm", struct.pack(">H", shown)),
            full_box(b"iinf", struct.pack(">H", len(parts)), entries),
            full_box(b"iref", references) if references else b"",
            box(b"iprp", box(b"ipco", *properties), full_box(b"ipma", struct.pack(">I", len(parts)), ipma)),
            full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(parts)), locations),
        )

    header = box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic")
    start = len(header) + len(meta(0)) + 8
    return header + meta(start) + box(b"mdat", *(part.data for part in parts))
