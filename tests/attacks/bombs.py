"""Small files whose decoding would cost far more than their bytes, by name: each is a known kind of attack."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    """Return a file of that format."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 1, color: int = 0) -> bytes:
    """A PNG of zeros, which deflates to nearly nothing."""
    row = 1 + (width * depth * {0: 1, 2: 3, 6: 4}[color] + 7) // 8
    packer = zlib.compressobj(9)
    data = b"".join([packer.compress(bytes(row)) for _ in range(height)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = (struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x)) for k, x in all_chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def png_of_many_pixels() -> bytes:
    """144 megapixels in 18 kB."""
    return png(12_000, 12_000)


def png_whose_size_overflows() -> bytes:
    """Sides whose product is beyond 64 bits."""
    small = bytearray(png(8, 8))
    small[16:24] = struct.pack(">II", 0x7FFFFFFF, 0x7FFFFFFF)
    return bytes(small)


def png_long_and_thin() -> bytes:
    """One pixel high: few pixels, but a side that resizing pays for."""
    return png(20_000_000, 1)


def png_of_texts() -> bytes:
    """Sixty compressed texts of a megabyte each."""
    texts = [(b"zTXt", b"key%d\0\0" % number + zlib.compress(bytes(1_000_000), 9)) for number in range(60)]
    return png(8, 8, *texts)


def png_of_many_chunks() -> bytes:
    """A million empty chunks."""
    small = png(8, 8)
    empty = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    return small[:33] + empty * 1_000_000 + small[33:]


def gif_of_many_pixels() -> bytes:
    """A frame larger than the screen that it is drawn on."""
    data = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    position = data.index(b",", 13)
    data[position + 5 : position + 9] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def webp_of_many_pixels() -> bytes:
    """An animation's canvas, which is allocated on opening."""
    frames = [Image.new("RGBA", (64, 64), (n, 0, 0, 9)) for n in (1, 2)]
    data = bytearray(encode(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]))
    position = data.index(b"VP8X")
    data[position + 12 : position + 18] = (16_000).to_bytes(3, "little") * 2
    return bytes(data)


def avif_of_many_pixels() -> bytes:
    """A header of another size than the coded image's."""
    data = bytearray(encode(Image.new("RGB", (64, 64)), "AVIF"))
    position = data.index(b"ispe")
    data[position + 8 : position + 16] = struct.pack(">II", 12_000, 12_000)
    return bytes(data)


def jpeg_of_many_pixels() -> bytes:
    """65,500x65,500 pixels."""
    data = bytearray(encode(Image.new("L", (8, 8)), "JPEG"))
    position = data.index(b"\xff\xc0")
    data[position + 5 : position + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def jpeg_of_many_scans() -> bytes:
    """A progressive image refined 400 times over: half a minute of work in 160 kB."""
    data = encode(Image.new("L", (6000, 6000), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 400 + b"\xff\xd9"


def jpeg_of_hidden_scans() -> bytes:
    """The same after fill bytes and a marker without a length, which decoders skip."""
    return jpeg_of_many_scans().replace(b"\xff\xda", b"\xff\x01\xff\xff\xff\xda")


def jpeg_of_many_segments() -> bytes:
    """Two million comments: reading their headers alone takes seconds."""
    data = encode(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * 2_000_000 + data[2:]


def jpeg2000(tile: int, size: int, *, boxed: bool) -> bytes:
    """A JPEG 2000 whose codestream has another size and other tiles than its pixels."""
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000", tile_size=(64, 64), no_jp2=not boxed))
    position = data.index(b"\xff\x4f\xff\x51") + 2
    data[position + 6 : position + 14] = struct.pack(">II", size, size)
    data[position + 22 : position + 30] = struct.pack(">II", tile, tile)
    return bytes(data)


def jpeg2000_of_many_tiles() -> bytes:
    """65,025 tiles of one pixel: 750 MB in 172 bytes."""
    return jpeg2000(1, 255, boxed=False)


def jp2_that_hides_its_size() -> bytes:
    """A box that says 64x64 around a codestream of 30,000x30,000 pixels."""
    return jpeg2000(30_000, 30_000, boxed=True)


def tiff(size: tuple[int, int], tile: tuple[int, int], data: bytes) -> bytes:
    """A deflated RGB TIFF of one tile."""
    tags = [(256, size[0]), (257, size[1]), (258, 8), (259, 8), (262, 2), (277, 3), (322, tile[0]), (323, tile[1])]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (324, start), (325, len(data))])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + struct.pack("<I", 0) + data


def tiff_of_many_pixels() -> bytes:
    """A header of a gigapixel, without data."""
    return tiff((32_000, 32_000), (32_000, 32_000), b"")


def tiff_of_a_large_tile() -> bytes:
    """16x16 pixels out of a tile of 16,384x16,384, which is decoded whole."""
    side = 16_384
    packer = zlib.compressobj(9)
    return tiff(
        (16, 16), (side, side), b"".join(packer.compress(bytes(3 * side)) for _ in range(side)) + packer.flush()
    )


def icon_of_many_pixels() -> bytes:
    """An icon whose directory says 256x256 and whose image has 121 megapixels; it is decoded on opening."""
    inside = png(11_000, 11_000)
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def icon_of_a_large_bitmap() -> bytes:
    """The same with a bitmap inside."""
    inside = struct.pack("<IiiHHIIiiII", 40, 40_000, 80_000, 1, 32, 0, 0, 0, 0, 0, 0)
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def icon_of_many_images() -> bytes:
    """65,535 entries for the same image."""
    inside = png(8, 8)
    entry = struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, len(inside), 6 + 16 * 65_535)
    return b"\0\0\1\0\xff\xff" + entry * 65_535 + inside


def psd_of_many_rows() -> bytes:
    """So many rows that counting them on opening takes seconds."""
    rows = 5_000_000
    header = b"8BPS" + struct.pack(">HxxxxxxHIIHH", 1, 3, rows, 1, 8, 3)
    return header + bytes(12) + struct.pack(">H", 1) + bytes(3 * rows * 2)


def bmp_of_many_pixels() -> bytes:
    """Run-length coded rows without data."""
    data = bytearray(encode(Image.new("P", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 40_000, 40_000)
    data[30:34] = struct.pack("<I", 1)
    return bytes(data)


def ppm_of_many_pixels() -> bytes:
    """A header alone."""
    return b"P6 60000 60000 255\n"


def qoi_of_many_pixels() -> bytes:
    """Runs of the same pixel, decoded one by one."""
    return b"qoif" + struct.pack(">II", 30_000, 30_000) + b"\4\0" + b"\xfd" * 1000


def tga_of_many_pixels() -> bytes:
    """Runs as well."""
    return bytes([0, 0, 10]) + bytes(9) + struct.pack("<HH", 65_535, 65_535) + bytes([24, 0]) + b"\xff\0\0\0" * 100


BOMBS: tuple[Callable[[], bytes], ...] = (
    png_of_many_pixels, png_whose_size_overflows, png_long_and_thin, png_of_texts, gif_of_many_pixels,
    webp_of_many_pixels, avif_of_many_pixels, jpeg_of_many_pixels, jpeg_of_many_scans, jpeg_of_hidden_scans,
    jpeg_of_many_segments, png_of_many_chunks, icon_of_many_images, jpeg2000_of_many_tiles,
    jp2_that_hides_its_size, tiff_of_many_pixels, tiff_of_a_large_tile, icon_of_many_pixels, icon_of_a_large_bitmap,
    psd_of_many_rows, bmp_of_many_pixels, ppm_of_many_pixels, qoi_of_many_pixels, tga_of_many_pixels,
)  # fmt: skip
