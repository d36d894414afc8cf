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
    "png of sixty compressed megabytes of text": lambda: png(
        8, 8, *[(b"zTXt", b"key%d\0\0" % number + zlib.compress(bytes(1_000_000), 9)) for number in range(60)]
    ),
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
    "jpeg of two million comments": jpeg_of_many_segments,  # reading their headers alone takes seconds
    "jpeg 2000 of 65,025 tiles": lambda: jpeg2000(1, 255, boxed=False),  # 750 MB in 172 bytes
    "jp2 whose box hides the size": lambda: jpeg2000(30_000, 30_000, boxed=True),
    "tiff header of a gigapixel": lambda: tiff((32_000, 32_000), (32_000, 32_000), b""),
    "tiff of a large tile, which is decoded whole": tiff_of_a_large_tile,
    "icon around a large png": lambda: icon(png(11_000, 11_000)),  # decoded on opening
    "icon around a large bitmap": lambda: icon(struct.pack("<IiiHHIIiiII", 40, 40_000, 80_000, 1, 32, *[0] * 6)),
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
