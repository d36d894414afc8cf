"""Small files whose decoding would cost far more than their bytes, by name: each is a known kind of attack."""

import struct
import zlib
from collections.abc import Callable

from PIL import Image
from support.images import encode


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black-and-white PNG of zeros, which deflates to nearly nothing."""
    packer = zlib.compressobj(9)
    data = b"".join([packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = (struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x)) for k, x in all_chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def small(format_: str, mode: str = "RGB", side: int = 8, **options: object) -> bytes:
    return encode(Image.new(mode, (side, side)), format_, **options)


def patch(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite bytes at an offset from a marker's first place."""
    position = data.index(marker, 13 if marker == b"," else 0) + offset  # a comma may be in a GIF's header
    return data[:position] + value + data[position + len(value) :]


def png_of_texts() -> bytes:
    texts = [(b"zTXt", b"key%d\0\0" % number + zlib.compress(bytes(1_000_000), 9)) for number in range(60)]
    return png(8, 8, *texts)


def png_of_many_chunks() -> bytes:
    data = png(8, 8)
    return data[:33] + struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd")) * 1_000_000 + data[33:]


def webp_canvas() -> bytes:
    frames = [Image.new("RGBA", (64, 64), (n, 0, 0, 9)) for n in (1, 2)]
    data = encode(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    return patch(data, b"VP8X", 12, (16_000).to_bytes(3, "little") * 2)


def jpeg_of_many_scans() -> bytes:
    data = encode(Image.new("L", (6000, 6000), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 400 + b"\xff\xd9"


def jpeg_of_many_segments() -> bytes:
    data = small("JPEG", "L")
    return data[:2] + b"\xff\xfe\0\2" * 2_000_000 + data[2:]


def jpeg2000(tile: int, size: int, *, boxed: bool) -> bytes:
    """A JPEG 2000 whose codestream has another size and other tiles than its pixels."""
    data = small("JPEG2000", side=64, tile_size=(64, 64), no_jp2=not boxed)
    data = patch(data, b"\xff\x4f\xff\x51", 8, struct.pack(">II", size, size))
    return patch(data, b"\xff\x4f\xff\x51", 24, struct.pack(">II", tile, tile))


def tiff(size: tuple[int, int], tile: tuple[int, int], data: bytes) -> bytes:
    """A deflated RGB TIFF of one tile."""
    tags = [(256, size[0]), (257, size[1]), (258, 8), (259, 8), (262, 2), (277, 3), (322, tile[0]), (323, tile[1])]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (324, start), (325, len(data))])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + struct.pack("<I", 0) + data


def tiff_of(*tags: tuple[int, int, int, bytes], data: bytes = b"", big: bool = False) -> bytes:
    """A TIFF, or a BigTIFF, of tags given as number, type, count and the bytes of their field, with data at its end."""
    header = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) if big else b"II*\0" + struct.pack("<I", 8)
    entry, end = ("<HHQ8s", struct.pack("<Q", 0)) if big else ("<HHI4s", struct.pack("<I", 0))
    entries = b"".join(struct.pack(entry, *tag) for tag in tags)
    return header + struct.pack("<Q" if big else "<H", len(tags)) + entries + end + data


def shorts(**values: int) -> list[tuple[int, int, int, bytes]]:
    """Entries of a gray TIFF of one value each, as 32-bit integers."""
    sizes = {"ImageWidth": 16, "ImageLength": 16} | values
    numbers = {"ImageWidth": 256, "ImageLength": 257, "TileWidth": 322, "TileLength": 323, "RowsPerStrip": 278}
    fixed = [(258, 8), (262, 1), (277, 1), (259, 1)]
    pairs = sorted([(numbers[name], value) for name, value in sizes.items()] + fixed)
    return [(number, 4, 1, struct.pack("<i", value)) for number, value in pairs]


def tiff_of_many_strips(kind: int = 4) -> bytes:
    count = 3_000_000
    offsets = (273, kind, count, struct.pack("<I", 8))
    return tiff_of(*shorts(), offsets, data=b"\10\0\0\0" * count)


def tiff_of_a_signed_large_tile() -> bytes:
    """Its tile has a type that only libtiff takes."""
    data = tiff_of_a_large_tile()
    for tag in (322, 323):
        data = data.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, 9, 1))
    return data


def tiff_of_many_entries() -> bytes:
    return tiff_of(*[(40_000 + number, 4, 1, b"\0\0\0\0") for number in range(20_000)])


def bigtiff_of_many_entries() -> bytes:
    return tiff_of(*[(number % 65_536, 4, 1, bytes(8)) for number in range(900_000)], big=True)


def jpeg_of_empty_scans(frame: int, scans: int = 100, *, side: int = 6300) -> bytes:
    """A JPEG without data, of any type of frame; a scan without data is one of zeros."""
    table = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    header = b"\xff" + bytes([frame]) + struct.pack(">HBHHB", 17, 8, side, side, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    codes = b"".join(b"\xff\xc4" + struct.pack(">HB", 20, kind) + b"\1" + bytes(15) + b"\0" for kind in (0x00, 0x10))
    scan = b"".join(b"\xff\xda\0\x08\1" + bytes([number, 0]) + b"\0\x3f\0" for number in (1, 2, 3))
    return b"\xff\xd8" + table + header + codes + scan * scans + b"\xff\xd9"


def jpeg2000_style(*, levels: int = 2, block: tuple[int, int] = (4, 4), precincts: bytes = b"", layers: int = 1,
                   in_tile: bool = False, width: int = 1300) -> bytes:  # fmt: skip
    """A gray codestream whose coding style promises many parts; ``in_tile`` hides it in the header of a tile-part."""
    size = struct.pack(">HHIIIIIIIIHBBB", 41, 0, width, 1300, 0, 0, width, 1300, 0, 0, 1, 7, 1, 1)

    def style(blocks: tuple[int, int], sizes: bytes, count: int) -> bytes:
        fields = struct.pack(">BBHBBBBBB", bool(sizes), 0, count, 0, levels, *blocks, 0, 1)
        return b"\xff\x52" + struct.pack(">H", 2 + len(fields) + len(sizes)) + fields + sizes

    quantization = b"\xff\x5c" + struct.pack(">HB", 4 + 3 * levels, 0x40) + bytes([0x40] * (1 + 3 * levels))
    heavy = style(block, precincts, layers)
    main = style((4, 4), b"", 1) if in_tile else heavy
    part = (heavy if in_tile else b"") + b"\xff\x93" + bytes(16)
    tile = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 12 + len(part), 0, 1) + part
    return b"\xff\x4f\xff\x51" + size + main + quantization + tile + b"\xff\xd9"


def jpeg2000_with(marker: bytes) -> bytes:
    """Precincts behind a marker where none of its kind may stand, behind which decoders look for the next known one."""
    data = jpeg2000_style(precincts=bytes(3))
    end = data.index(b"\xff\x52")
    return data[:end] + marker + data[end:]


def jpeg2000_of_a_short_tile_part(comment: bytes = b"") -> bytes:
    """Precincts in the second tile-part, behind a first one whose length ends before its data."""
    data = jpeg2000_style(precincts=bytes(3), in_tile=True)
    start = data.index(b"\xff\x90")
    return data[:start] + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 12, 0, 2) + comment + b"\xff\x93" + data[start:]


def jp2_of_components(components: int = 400) -> bytes:
    """4,096 tiles of 400 components each, behind a box that decoders skip."""
    data = jpeg2000(1, 64, boxed=True)
    position = data.index(b"\xff\x4f\xff\x51")
    size = data[position + 4 : position + 42]
    size = struct.pack(">H", 38 + 3 * components) + size[2:36] + struct.pack(">H", components)
    rest = data[data.index(b"\xff\x52", position) :]
    return (
        data[: position - 8] + b"\0\0\0\x08free" + b"\0\0\0\0jp2c"
        + b"\xff\x4f\xff\x51" + size + b"\7\1\1" * components + rest
    )  # fmt: skip


def jpeg2000_far_from_its_tiles() -> bytes:
    """An image of 64x64 pixels, 16 million tiles to the right of the first tile."""
    data = jpeg2000(64, 64, boxed=False)
    far = 1 << 30
    data = patch(data, b"\xff\x4f\xff\x51", 8, struct.pack(">I", far + 64))
    return patch(data, b"\xff\x4f\xff\x51", 16, struct.pack(">I", far))


def psd_of_many_resources() -> bytes:
    resource = b"8BIM" + bytes(8)
    header = b"8BPS" + struct.pack(">HxxxxxxHIIHH", 1, 3, 8, 8, 8, 3) + bytes(4)
    return header + struct.pack(">I", 1_000_000 * 12) + resource * 1_000_000 + bytes(4) + b"\0\0" + bytes(192)


def gif_of_many_blocks(block: bytes) -> bytes:
    data = small("GIF", "P")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"!\xfe" + block * 3_000_000 + b"\0" + data[start:]


def jpeg_of_metadata(marker: bytes, content: bytes) -> bytes:
    data = small("JPEG", "L")
    return data[:2] + (b"\xff" + marker + struct.pack(">H", 2 + len(content)) + content) * 300 + data[2:]


def shared_entries(count: int, size: int, *, order: str = "<", pad: int = 0) -> bytes:
    """EXIF data whose entries all have the same bytes, which some versions of Pillow copy for each."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, count)
    entries = b"".join(struct.pack(f"{order}HHII", 0x9000 + number, 7, size, 8) for number in range(count))
    return (header + entries + bytes(4)).ljust(max(size + 8, pad), b"\0")


def segment(marker: bytes, content: bytes) -> bytes:
    return b"\xff" + marker + struct.pack(">H", 2 + len(content)) + content


def jpeg_without_density(*segments: bytes) -> bytes:
    """A JPEG in whose EXIF data Pillow looks for the density while it opens it."""
    data = small("JPEG", "L")
    return data[:2] + b"".join(segments) + data[20:]


def jpeg_of_joined_exif() -> bytes:
    """Each segment has fewer bytes than an entry, which is read from what all of them make together."""
    exif = shared_entries(4000, 900_000)
    parts = (exif[start : start + 65_000] for start in range(0, len(exif), 65_000))
    return jpeg_without_density(*(segment(b"\xe1", b"Exif\0\0" + part) for part in parts))


def png_of_exif_in_a_text() -> bytes:
    exif = b"Exif\0\0" + shared_entries(4000, 400_000)
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}".encode()
    return png(8, 8, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text, 9)))


def avif_of_exif() -> bytes:
    exif = Image.Exif()
    exif.endian = "<"
    for number in range(2000):
        exif[0xA000 + number] = number
    exif[0x927C] = bytes(40_000)
    data = bytearray(small("AVIF", exif=exif))
    start = data.index(b"II*\0\x08\0\0\0") + 8
    for number in range(struct.unpack_from("<H", data, start)[0]):
        struct.pack_into("<HII", data, start + 2 + 12 * number + 2, 7, 60_000, 8)
    return bytes(data)


def tiff_of_nested_exif() -> bytes:
    """The directory of GPS data, to which that of EXIF points, holds the shared entries."""
    tags = [*shorts(), (273, 4, 1, b"\x08\0\0\0"), (279, 4, 1, b"\0\1\0\0")]
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    exif = struct.pack("<HHHII", 1, 34853, 4, 1, start + 18) + bytes(4)
    image = tiff_of(*tags, (34665, 4, 1, struct.pack("<I", start)), data=exif)
    return image + shared_entries(4000, 60_000)[8:]


def icon_of_many_chunks(count: int = 256) -> bytes:
    """Entries for different images, which share their chunks: all but the last have one that holds the next."""
    chunk = struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    begin = png(8, 8)[:33]
    chain = b"".join(begin + struct.pack(">I4s", 41 * (count - number) - 12, b"IDAT") for number in range(count))
    body = chain + begin + chunk * 99_000
    places = (6 + 16 * count + 41 * number for number in range(count))
    entries = b"".join(struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, 99, place) for place in places)
    return b"\0\0\1\0" + struct.pack("<H", count) + entries + body


def jpeg_of_passes(scans: int, *, frame: int = 0xCA, side: int = 9400) -> bytes:
    """A progressive JPEG without data, by default one of arithmetic coding and 88 megapixels."""
    data = jpeg_of_empty_scans(frame, 0, side=side)
    first = b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\0\x0d\0\0"
    others = b"".join(
        b"\xff\xda\0\x08\1" + bytes([1 + number % 3, 0]) + b"\1\x3f\x0d\0\0" for number in range(scans - 1)
    )
    return data[:-2] + first + others + b"\xff\xd9"


def webp_of_long_exif() -> bytes:
    entry = struct.pack("<HHII", 40_000, 4, 1, 0)
    return small("WEBP", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65_535) + entry * 900_000)


def tiff_of_a_large_tile() -> bytes:
    side = 16_384
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(3 * side)) for _ in range(side)) + packer.flush()
    return tiff((16, 16), (side, side), data)


def icon(inside: bytes, *, side: int = 0, count: int = 1) -> bytes:
    """An icon of ``count`` entries for the same image; side 0 means 256."""
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inside), 6 + 16 * count)
    return b"\0\0\1\0" + struct.pack("<H", count) + entry * count + inside


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of many pixels": lambda: png(12_000, 12_000),  # 144 megapixels in 18 kB
    "png whose size overflows 64 bits": lambda: patch(png(8, 8), b"IHDR", 4, b"\x7f\xff\xff\xff" * 2),
    "png long and thin": lambda: png(20_000_000, 1),  # few pixels, but a side that resizing pays for
    "png of sixty compressed megabytes of text": png_of_texts,
    "png of a million empty chunks": png_of_many_chunks,
    "gif with a frame larger than its screen": lambda: patch(small("GIF", "P"), b",", 5, b"\xff" * 4),
    "webp whose canvas is allocated on opening": webp_canvas,
    "avif with another size than the coded image": lambda: patch(
        small("AVIF", side=64), b"ispe", 8, struct.pack(">II", 12_000, 12_000)
    ),
    "jpeg of many pixels": lambda: patch(small("JPEG", "L"), b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)),
    "jpeg refined 400 times": jpeg_of_many_scans,  # half a minute of work in 160 kB
    # After fill bytes and a marker without a length, which decoders skip.
    "jpeg of hidden scans": lambda: jpeg_of_many_scans().replace(b"\xff\xda", b"\xff\x01\xff\xff\xff\xda"),
    "jpeg of 10 MB of fill bytes": lambda: small("JPEG").replace(b"\xff\xd8", b"\xff\xd8" + b"\xff" * 10_000_000, 1),
    "jpeg of two million comments": jpeg_of_many_segments,  # reading their headers alone takes seconds
    "jpeg 2000 of precincts behind an unknown marker": lambda: jpeg2000_with(b"\xff\x70\x7f\xfe"),
    "jpeg 2000 of precincts behind its end": lambda: jpeg2000_with(b"\xff\xd9"),
    "jpeg 2000 of precincts behind data in its header": lambda: jpeg2000_with(b"\xff\x93"),
    "jpeg 2000 of precincts behind a marker without length": lambda: jpeg2000_with(b"\xff\x64\0\0"),
    "jpeg 2000 of a short tile-part": jpeg2000_of_a_short_tile_part,
    "jpeg 2000 of a shorter tile-part": lambda: jpeg2000_of_a_short_tile_part(b"\xff\x64\0\6\0\1ab"),
    "ppm of comments that begins as HEIF": lambda: b"P3 #ftypx\n" + b"#\n" * 200_000 + b"9 9 9\n" + b"1 " * 243,
    "icon whose first entry is damaged": lambda: (
        b"\0\0\1\0\2\0"
        + struct.pack("<BBBBHHII", 1, 1, 0, 0, 1, 32, 9, 1 << 31)
        + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 99, 38)
        + png(12_000, 12_000)
    ),
    "gif of many blocks behind a byte that decoders skip": lambda: gif_of_many_blocks(b"\1\0").replace(
        b"!\xfe", b"\0!\xfe", 1
    ),
    "jpeg of 10 MB between its end and its first scan": lambda: small("JPEG").replace(
        b"\xff\xd8", b"\xff\xd8\xff\xd9" + b"a" * 10_000_000, 1
    ),
    "jpeg of metadata behind its end": lambda: jpeg_of_metadata(b"\xed", b"x").replace(
        b"\xff\xd8", b"\xff\xd8\xff\xd9", 1
    ),
    "jpeg of metadata behind another beginning": lambda: jpeg_of_metadata(b"\xed", b"x").replace(
        b"\xff\xd8", b"\xff\xd8\xff\xd8", 1
    ),
    "icon that begins as HEIF": lambda: b"\0\0\1\0ftyp" + bytes(100),
    "jpeg 2000 of 65,025 tiles": lambda: jpeg2000(1, 255, boxed=False),  # 750 MB in 172 bytes
    "jp2 whose box hides the size": lambda: jpeg2000(30_000, 30_000, boxed=True),
    "tiff header of a gigapixel": lambda: tiff((32_000, 32_000), (32_000, 32_000), b""),
    "tiff of a large tile, which is decoded whole": tiff_of_a_large_tile,
    "tiff of a large tile of signed sizes": tiff_of_a_signed_large_tile,
    "tiff of 4,095 tiles of 4 megapixels each": lambda: tiff_of(
        *shorts(ImageWidth=65_520, ImageLength=1, TileWidth=16, TileLength=249_984), (324, 4, 1, b"\10\0\0\0")
    ),  # which may all be the same data
    "tiff of three million strips": tiff_of_many_strips,
    "tiff of three million strips as floats": lambda: tiff_of_many_strips(11),
    "tiff of 20,000 entries": tiff_of_many_entries,
    "bigtiff of 900,000 entries": bigtiff_of_many_entries,
    "tiff of 36 million tiles": lambda: tiff_of(
        *shorts(ImageWidth=6000, ImageLength=6000, TileWidth=1, TileLength=1), (324, 4, 1, b"\10\0\0\0")
    ),
    "jpeg of 300 empty scans, baseline": lambda: jpeg_of_empty_scans(0xC0),
    "jpeg of 300 empty scans, extended": lambda: jpeg_of_empty_scans(0xC1),
    "jpeg of 300 empty scans, arithmetic": lambda: jpeg_of_empty_scans(0xC9),
    "jpeg of 300 empty scans, progressive arithmetic": lambda: jpeg_of_empty_scans(0xCA),
    "jpeg of 300 segments of exif": lambda: jpeg_of_metadata(b"\xe1", b"Exif\0\0II*\0" + bytes(65_000)),
    "jpeg of 300 segments of photoshop data": lambda: jpeg_of_metadata(
        b"\xed", b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5000
    ),
    "webp of 10 MB of exif": webp_of_long_exif,
    "jpeg of exif in several segments": jpeg_of_joined_exif,
    "jpeg of exif behind two names": lambda: jpeg_without_density(
        segment(b"\xe1", b"Exif\0\0" * 2 + shared_entries(4000, 60_000))
    ),
    "jpeg of exif in a reserved segment, which Pillow does not skip": lambda: jpeg_without_density(
        segment(b"\xf0", segment(b"\xe1", b"Exif\0\0" + shared_entries(4000, 60_000)))
    ),
    "jpeg of an index of images": lambda: jpeg_without_density(
        segment(b"\xe2", b"MPF\0" + shared_entries(4000, 60_000))
    ),
    "jpeg of exif that is big-endian": lambda: jpeg_without_density(
        segment(b"\xe1", b"Exif\0\0" + shared_entries(4000, 60_000, order=">"))
    ),
    "png of exif in a text": png_of_exif_in_a_text,
    "webp of exif": lambda: small("WEBP", exif=b"Exif\0\0" + shared_entries(4000, 60_000)),
    "avif of exif": avif_of_exif,
    "tiff of nested exif": tiff_of_nested_exif,
    "jpeg of 21 passes over the largest image": lambda: jpeg_of_passes(21),
    "icon of many chunks": icon_of_many_chunks,
    "jpeg 2000 of 555,000 precincts": lambda: jpeg2000_style(precincts=b"\x11" * 3),  # 12 GB in 158 bytes
    "jpeg 2000 of precincts in a tile-part": lambda: jpeg2000_style(precincts=b"\x11" * 3, in_tile=True),
    "jpeg 2000 of 105,000 code-blocks": lambda: jpeg2000_style(block=(0, 0)),
    "jpeg 2000 of 65,535 layers": lambda: jpeg2000_style(precincts=b"\x66" * 3, layers=65_535),
    "jpeg 2000 far from its tiles": jpeg2000_far_from_its_tiles,
    "jp2 of 400 components behind a free box": jp2_of_components,  # 4.4 GB
    "psd of a million resources": psd_of_many_resources,
    "gif of three million blocks of a comment": lambda: gif_of_many_blocks(b"\1x"),
    "gif of a million empty extensions": lambda: gif_of_many_blocks(b"\0!\xfe"),
    "plain ppm of comments": lambda: b"P3 1000 1000 255\n" + b"#\n" * 2_000_000,  # each copies a megabyte
    "plain pbm of comments": lambda: b"P1 1000 1000\n" + b"#\n" * 2_000_000,
    "ppm of a long comment in its header": lambda: b"P6 #" + b"x" * 10_000_000 + b"\n8 8 255\n" + bytes(192),
    "ppm of spaces": lambda: b"P6" + b" " * 10_000_000 + b"8 8 255\n" + bytes(192),
    "icon around a large png": lambda: icon(png(11_000, 11_000)),  # decoded on opening
    "icon around a large bitmap": lambda: icon(struct.pack("<IiiHHIIiiII", 40, 40_000, 80_000, 1, 32, *[0] * 6)),
    "icon around a png of sixty compressed megabytes of text": lambda: icon(png_of_texts()),
    "icon of many entries": lambda: icon(png(8, 8), side=8, count=65_535),
    "psd of many rows": lambda: (  # counting them on opening takes seconds
        b"8BPS" + struct.pack(">HxxxxxxHIIHH", 1, 3, 5_000_000, 1, 8, 3) + bytes(12) + b"\0\1" + bytes(30_000_000)
    ),
    "bmp of run-length coded rows without data": lambda: patch(
        patch(small("BMP", "P"), b"BM", 18, struct.pack("<ii", 40_000, 40_000)), b"BM", 30, struct.pack("<I", 1)
    ),
    "ppm header alone": lambda: b"P6 60000 60000 255\n",
    "qoi of runs": lambda: b"qoif" + struct.pack(">II", 30_000, 30_000) + b"\4\0" + b"\xfd" * 1000,
    "tga of runs": lambda: b"\0\0\x0a" + bytes(9) + b"\xff" * 4 + b"\x18\0" + b"\xff\0\0\0" * 100,
}
