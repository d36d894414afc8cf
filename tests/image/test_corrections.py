"""What Pillow reads wrongly: transparent colors of other depths, planes of 16 bits, alpha without bits, odd EXIF."""

import contextlib
import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from support.images import encode, make_image

from siglip_onnx.errors import ImageError, ImageFileError
from siglip_onnx.image import ImageReader, load_image, open_image
from siglip_onnx.image.jpeg2000 import correct_jpeg2000

GRAY, RGB = 0, 2  # color types of PNG


def png(levels: np.ndarray[Any, Any], depth: int, color: int, transparent: tuple[int, ...]) -> bytes:
    """Write levels ``(H, W)`` or ``(H, W, 3)`` of a number of bits as a PNG that names one as transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = levels.shape[:2]
    bits = levels.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    key = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", key), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_gray_of_any_depth(depth: int) -> None:
    largest = (1 << depth) - 1
    levels = np.arange(largest + 1, dtype=np.uint8)[np.newaxis].repeat(3, axis=0)
    for key in range(0, largest + 1, max(1, largest // 15)):
        expected = np.where(levels == key, 0, levels * (255 // largest))
        read = load_image(png(levels, depth, GRAY, (key,)), background="black")
        np.testing.assert_array_equal(np.asarray(read), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_color_of_any_depth(depth: int) -> None:
    step = 257 if depth == 16 else 1
    levels = np.array([[[10, 20, 30], [10, 20, 31], [0, 0, 0], [255, 255, 255]]], np.uint16)
    for key in ((10, 20, 30), (255, 255, 255)):
        expected = np.where((levels == key).all(axis=-1, keepdims=True), (0, 128, 0), levels)
        data = png(levels * step, depth, RGB, tuple(level * step for level in key))
        np.testing.assert_array_equal(np.asarray(load_image(data, background="green")), expected)


def test_the_callers_image_keeps_its_transparent_color() -> None:
    image = Image.open(io.BytesIO(png(np.full((2, 2), 3, np.uint8), 4, GRAY, (3,))))
    load_image(image)
    assert image.info["transparency"] == 3


def tiff_of_planes(planes: np.ndarray[Any, Any], order: str = "<") -> bytes:
    """Write ``(C, H, W)`` without compression, with a plane for each channel."""
    count, height, width = planes.shape
    depth = planes.dtype.itemsize * 8
    tags = {256: [width], 257: [height], 258: [depth] * count, 259: [1], 262: [2 if count > 2 else 1], 277: [count],
            278: [height], 284: [2]}  # fmt: skip
    plane_bytes = height * width * depth // 8
    later = 8 + 2 + 12 * (len(tags) + 2) + 4  # where values lie that do not fit into the directory
    tail = b""
    start = later + 2 * count + 2 * 4 * count
    tags |= {273: [start + plane_bytes * number for number in range(count)], 279: [plane_bytes] * count}
    directory = b""
    for tag, values in sorted(tags.items()):
        code = "I" if tag in (273, 279) else "H"
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, tail = struct.pack(f"{order}I", later + len(tail)), tail + packed
        directory += struct.pack(f"{order}HHI", tag, 4 if code == "I" else 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
    return (head + directory + bytes(4) + tail).ljust(start, b"\0") + data


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_a_tiff_are_read_right_or_refused(order: str) -> None:
    pixels = np.asarray(make_image(np.random.default_rng(0), (12, 9)))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(np.asarray(load_image(tiff_of_planes(planes, order))), pixels)
    deep = tiff_of_planes(planes.astype(np.uint16) * 257, order)
    with pytest.raises(ImageError, match="a plane for each of 3 channels of 16 bits") as raised:
        load_image(deep)
    assert raised.value.status == "unsupported"


def tiff_of_one_strip(levels: np.ndarray[Any, Any], order: str, compression: int, sample_format: int) -> bytes:
    """Write gray levels ``(H, W)`` in a byte order, with deflate (8) or without compression (1)."""
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(data) if compression == 8 else data
    height, width = levels.shape
    tags = {256: width, 257: height, 258: 8 * levels.itemsize, 259: compression, 262: 1, 273: 8, 277: 1, 278: height,
            279: len(strip), 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(strip))
    return head + strip + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("kind", "sample_format"), [("u1", 1), ("u2", 1), ("i2", 2), ("i4", 2), ("f4", 3)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
def test_levels_of_a_tiff_in_either_byte_order(kind: str, sample_format: int, order: str, compression: int) -> None:
    """Of compressed ones, libtiff gives the levels in the order of the machine."""
    largest = 1 if kind == "f4" else np.iinfo(kind).max
    levels = np.tile(np.linspace(0, 1, 16), (4, 1))
    data = tiff_of_one_strip((levels * largest).astype(kind), order, compression, sample_format)
    np.testing.assert_allclose(np.asarray(load_image(data))[..., 0], 255 * levels, atol=1.01)


@pytest.mark.parametrize("scale", [257, 256, 1])
def test_colors_of_a_palette_tiff_may_be_of_8_bits(scale: int) -> None:
    expected = (230, 120, 0)
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *expected])
    colors = [
        level * scale for channel in zip((0, 0, 0), expected, *[(0, 0, 0)] * 254, strict=True) for level in channel
    ]
    data = encode(image, "TIFF")
    place = data.index(struct.pack("<HHI", 320, 3, 768)) + 8
    start = struct.unpack_from("<I", data, place)[0]
    assert struct.unpack_from("<768H", data, start) != (0,) * 768
    data = data[:start] + struct.pack("<768H", *colors) + data[start + 2 * 768 :]
    for source in (data, Image.open(io.BytesIO(data))):
        assert load_image(source).getpixel((2, 1)) == expected


@pytest.mark.parametrize(("subsampling", "read"), [((1, 1), True), ((2, 1), False), ((2, 2), False), (None, False)])
def test_an_uncompressed_tiff_of_subsampled_colors_is_refused(subsampling: tuple[int, int] | None, read: bool) -> None:
    tags = {530: subsampling or (1, 1)}
    image = make_image(np.random.default_rng(0), (8, 6)).convert("YCbCr")
    data = encode(image, "TIFF", tiffinfo=tags) + bytes(1000)
    if subsampling is None:  # a tag of another number in its place
        data = data.replace(struct.pack("<HHI", 530, 3, 2), struct.pack("<HHI", 65_000, 3, 2))
    if read:
        np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(image.convert("RGB")))
    else:
        with pytest.raises(ImageError, match="subsampled colors") as raised:
            load_image(data)
        assert raised.value.status == "unsupported"


@pytest.mark.parametrize(("alpha", "attribute_bits", "used"), [(0, 0, False), (0, 8, True), (90, 0, True)])
def test_alpha_of_a_tga_without_bits_for_it(alpha: int, attribute_bits: int, used: bool) -> None:
    image = Image.new("RGBA", (8, 6), (200, 30, 40, alpha))
    data = bytearray(encode(image, "TGA"))
    data[17] = data[17] & 0xF0 | attribute_bits
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image) if used else image
    assert load_image(bytes(data)).getpixel((3, 3)) == expected.convert("RGB").getpixel((3, 3))


def tga_of_16_bits(bits: np.ndarray[Any, Any], attribute_bits: int, *, has_palette: bool) -> bytes:
    """Write levels of 5 bits for each color, with a further bit, as pixels ``(H, W)`` or as the palette of them."""
    height, width = bits.shape
    kind, count = (1, bits.size) if has_palette else (2, 0)
    head = struct.pack("<BBBHHBHHHHBB", 0, has_palette, kind, 0, count, 16 if has_palette else 0, 0, 0, width, height,
                       8 if has_palette else 16, 32 | attribute_bits)  # fmt: skip
    indices = np.arange(bits.size, dtype=np.uint8).tobytes() if has_palette else b""
    return head + bits.astype("<u2").tobytes() + indices


@pytest.mark.parametrize("has_palette", [False, True])
@pytest.mark.parametrize(
    ("high", "attribute_bits", "opaque"),
    [((0, 0), 0, (True, True)), ((0, 0), 1, (True, True)), ((1, 1), 0, (True, True)), ((1, 1), 1, (True, True)),
     ((1, 0), 0, (True, True)), ((1, 0), 1, (True, False))],
)  # fmt: skip
def test_a_set_bit_of_a_short_tga_is_opaque(
    high: tuple[int, int], attribute_bits: int, opaque: tuple[bool, bool], *, has_palette: bool
) -> None:
    levels = np.random.default_rng(0).integers(0, 32768, (2, 8))
    expected = np.stack([(levels >> shift & 31) * 255 // 31 for shift in (10, 5, 0)], axis=-1)
    expected = np.where(np.array(opaque)[:, np.newaxis, np.newaxis], expected, 0)
    data = tga_of_16_bits(levels | np.array(high)[:, np.newaxis] << 15, attribute_bits, has_palette=has_palette)
    shown = np.asarray(load_image(data, background="black")).astype(int)
    assert abs(shown - expected).max() <= 8


@pytest.mark.parametrize("has_alpha", [False, True])
def test_around_the_first_frame_of_a_webp_animation_is_the_background(*, has_alpha: bool) -> None:
    """Where the frames are opaque, Pillow says that the animation is, and gives black around the first one."""
    frames = [Image.new("RGBA", (64, 48)) for _ in range(2)]
    for number, frame in enumerate(frames):
        frame.paste((200, 30, 40, 255), (10 + 24 * number, 20, 30 + 24 * number, 40))
    key = {"kmin": 1, "kmax": 1} if has_alpha else {}
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, **key)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == ("RGBA" if has_alpha else "RGB")
    shown = load_image(data, background="#00ff00")
    expected = Image.new("RGBA", (64, 48), "#00ff00")
    expected.alpha_composite(frames[0])
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected.convert("RGB")))


def psd(
    channels: np.ndarray[Any, Any],
    layers: int | None = None,
    blocks: bytes = b"",
    *,
    mode: int = 3,
    packed: bool = False,
) -> bytes:
    """Write channels u8 ``(C, H, W)`` as a PSD, by default in RGB, with a count of layers or no section.

    Levels of mode 0 are 0 and 255, of one bit each. ``packed`` ones are of rows in PackBits, as Photoshop writes them.
    """
    count, height, width = channels.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, count, height, width, 8 if mode else 1, mode)
    if mode == 0:
        channels = np.packbits(channels == 0, axis=-1)
    section = b""
    if layers is not None:
        section = (struct.pack(">Ihxx", 4, layers) if layers else bytes(4)) + bytes(4) + blocks
    head += bytes(8) + struct.pack(">I", len(section)) + section
    if not packed:
        return head + bytes(2) + channels.tobytes()
    rows = [bytes([channels.shape[-1] - 1]) + row.tobytes() for channel in channels for row in channel]
    return head + b"\0\1" + b"".join(struct.pack(">H", len(row)) for row in rows) + b"".join(rows)


@pytest.mark.parametrize(
    ("layers", "blocks", "is_transparent"),
    [(None, b"", False), (0, b"", False), (2, b"", False), (-1, b"", True), (-3, b"", True),
     (0, b"8BIMMtrn\0\0\0\0", True)],
)  # fmt: skip
def test_only_transparency_of_a_psd_is_transparent(layers: int | None, blocks: bytes, is_transparent: bool) -> None:
    """A saved selection and a spot color are channels too."""
    pixels = np.asarray(make_image(np.random.default_rng(0), (12, 9)))
    selection = np.where(np.arange(12) < 5, 0, 255).astype(np.uint8) * np.ones((9, 1), np.uint8)
    channels = np.concatenate([pixels.transpose(2, 0, 1), selection[np.newaxis]])
    expected = np.where(selection[..., np.newaxis] == 0, 255, pixels) if is_transparent else pixels
    read = load_image(psd(channels, layers, blocks))
    np.testing.assert_array_equal(np.asarray(read), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("mode", "used"), [(0, 1), (1, 1), (3, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize("unused", [0, 1, 2])
def test_channels_of_a_psd_beyond_those_of_its_mode_move_no_pixel(
    mode: int, used: int, unused: int, packed: bool
) -> None:
    """They are transparency, saved selections and spot colors."""
    if (mode, unused) == (3, 1):  # Pillow reads this one as transparency
        return
    rng = np.random.default_rng(0)
    channels = rng.integers(0, 256, (used + unused, 9, 12)).astype(np.uint8)
    if mode == 0:
        channels = np.where(channels > 127, 255, 0).astype(np.uint8)
    colors = channels[:used].transpose(1, 2, 0)
    kinds = {1: "L", 3: "RGB", 4: "CMYK"}
    expected = Image.fromarray(255 - colors if mode == 4 else colors[..., 0] if used == 1 else colors, kinds[used])
    read = load_image(psd(channels, -1, mode=mode, packed=packed))
    np.testing.assert_array_equal(np.asarray(read), np.asarray(expected.convert("RGB")))


def test_a_psd_of_inks_is_refused() -> None:
    channels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ImageError, match="a PSD of 3 inks without colors") as raised:
        load_image(psd(channels, mode=7))
    assert raised.value.status == "unsupported"
    assert load_image(psd(channels[:1], mode=7)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_an_alpha_channel_of_zeros_does_not_count_in_a_bitmap(alpha: int) -> None:
    """Windows leaves that byte 0, and programs name it in the header nevertheless."""
    width, height = 5, 3
    pixels = bytes([40, 30, 200, alpha]) * width * height
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    body = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks + bytes(52)
    data = b"BM" + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body)) + body + pixels
    color = (200, 30, 40)
    expected = tuple(round((level * alpha + 255 * (255 - alpha)) / 255) for level in color) if alpha else color
    np.testing.assert_allclose(load_image(data).getpixel((2, 1)), expected, atol=1)


def gray_bitmap(bits: int, colors: list[int]) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return a BMP with a palette of gray colors, without its first 14 bytes; and its levels."""
    indices = np.random.default_rng(0).integers(0, len(colors), (5, 8))
    digits = (indices[::-1, :, np.newaxis] >> np.arange(bits)[::-1] & 1).reshape(5, -1)
    packed = np.packbits(digits.astype(np.uint8), axis=1)
    rows = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    head = struct.pack("<IiiHHIIiiII", 40, 8, 5, 1, bits, 0, rows.size, 0, 0, len(colors), 0)
    return head + b"".join(bytes([each] * 3 + [0]) for each in colors) + rows.tobytes(), np.array(colors)[indices]


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("colors", [[0, 255], [255, 0], [*range(16)], [*range(0, 256, 17)]])
def test_gray_palettes_of_a_bitmap(bits: int, colors: list[int]) -> None:
    if len(colors) > 2**bits:
        return
    body, levels = gray_bitmap(bits, colors)
    start = 14 + 40 + 4 * len(colors)
    data = b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, start) + body
    np.testing.assert_array_equal(np.asarray(load_image(data))[..., 0], levels)


def test_an_icon_in_black_and_white_of_several_bits_is_refused() -> None:
    for bits, colors in ((8, [0, 255]), (8, [255, 0]), (1, [0, 255])):
        body, levels = gray_bitmap(bits, colors)
        content = body[:8] + struct.pack("<i", 10) + body[12:] + bytes(4 * 5)  # of twice the height, with a mask
        data = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 8, 5, 2, 0, 1, bits, len(content), 22) + content
        if (bits, colors) == (8, [0, 255]):
            with pytest.raises(ImageError, match="an icon in black and white") as raised:
                load_image(data)
            assert raised.value.status == "unsupported"
        else:
            np.testing.assert_array_equal(np.asarray(load_image(data))[..., 0], levels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_color_of_a_png_in_an_icon_counts(mode: str) -> None:
    image = make_image(np.random.default_rng(0), (16, 12)).convert(mode)
    key = image.getpixel((3, 4))
    data = encode(image, transparency=bool(key) if mode == "1" else key)
    expected = load_image(data)
    assert expected.getpixel((3, 4)) == (255, 255, 255)
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 12, 0, 0, 1, 32, len(data), 22)
    np.testing.assert_array_equal(np.asarray(load_image(head + data)), np.asarray(expected))


@pytest.mark.parametrize("stated_bits", [0, 24, 32])
def test_alpha_of_an_icon_counts_whatever_its_directory_says(stated_bits: int) -> None:
    pixels = np.full((6, 8, 4), (200, 30, 40, 90), np.uint8)
    data = bytearray(icon(pixels, np.zeros((6, 8), bool)))
    data[12:14] = struct.pack("<H", stated_bits)
    expected = load_image(Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(load_image(bytes(data))), np.asarray(expected))


def test_a_tiff_with_planes_of_lab_is_refused() -> None:
    data = tiff_of_planes(np.zeros((3, 4, 5), np.uint8))
    place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    with pytest.raises(ImageError, match=r"each channel of L\*a\*b\*") as raised:
        load_image(data[:place] + struct.pack("<H", 8) + data[place + 2 :])
    assert raised.value.status == "unsupported"


def icon(pixels: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None) -> bytes:
    """Write u8 ``(H, W, 4)`` as an icon of 32 bits, with a mask ``(H, W)`` that is True where it is transparent."""
    height, width = pixels.shape[:2]
    rows = b""
    if mask is not None:
        packed = np.packbits(mask, axis=1)
        rows = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))[::-1].tobytes()
    bitmap = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0)
    bitmap += pixels[::-1, :, [2, 1, 0, 3]].tobytes() + rows
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, 32, len(bitmap), 22) + bitmap


@pytest.mark.parametrize("width", [32, 40])
@pytest.mark.parametrize("alpha", [0, 200])
@pytest.mark.parametrize("has_mask", [True, False])
def test_icon_without_alpha_has_the_transparency_of_its_mask(width: int, alpha: int, has_mask: bool) -> None:
    pixels = np.asarray(make_image(np.random.default_rng(0), (width, 9)).convert("RGBA")).copy()
    pixels[..., 3] = alpha
    mask = np.zeros((9, width), bool)
    mask[:3, :20] = True
    read = np.asarray(load_image(icon(pixels, mask if has_mask else None)))
    if alpha:
        blended = Image.alpha_composite(Image.new("RGBA", (width, 9), "white"), Image.fromarray(pixels))
        expected = np.asarray(blended.convert("RGB"))
    else:
        expected = np.where(mask[..., np.newaxis] & has_mask, 255, pixels[..., :3])
    np.testing.assert_array_equal(read, expected)


def test_icon_of_a_transparent_png_stays_transparent() -> None:
    image = Image.new("RGBA", (32, 32), (200, 30, 40, 0))
    assert load_image(encode(image, "ICO")).getpixel((3, 3)) == (255, 255, 255)


TURNED = (0x112, 3, 1, b"\6\0")


def exif_of(*fields: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF data of these fields: tag, type, count, value of up to four bytes."""
    entries = sorted(fields)
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize(
    "field",
    [
        (0x11A, 2, 4, b"300\0"),  # the resolution as text
        (0x128, 1, 1, b"\2"),  # its unit as a byte
        (0x2BC, 2, 4, b"<x/>"),  # XMP as text
        (0x8825, 4, 1, b"\xff\xff\0\0"),  # a directory behind the end
        (0x10F, 2, 50, b"\xff\xff\0\0"),  # a text behind the end, before the orientation
        (0x10F, 2, 1 << 31, b"\x10\0\0\0"),  # a text that is longer than the data
    ],
)
def test_an_odd_field_of_exif_data_does_not_keep_a_photo_from_being_turned(field: tuple[int, int, int, bytes]) -> None:
    image = make_image(np.random.default_rng(0), (40, 24))
    data = encode(image, "JPEG", exif=exif_of(TURNED, field), quality=95)
    turned = ImageReader().read(data).rgb
    expected = ImageReader().read(encode(image, "JPEG", quality=95)).rgb.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(expected))


def test_exif_data_that_cannot_be_read_turn_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Image.Image) -> None:
        raise struct.error("cut")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    image = make_image(np.random.default_rng(0), (40, 24))
    opened = Image.open(io.BytesIO(encode(image, exif=exif_of(TURNED))))
    np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(image))
    assert "has EXIF data that cannot be read, so it is not turned: cut" in caplog.text


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF"])
def test_entries_that_share_their_bytes_without_end_are_refused(format_: str) -> None:
    """Older versions of Pillow copy the bytes of each: 4,000 times 60 kB."""
    entries = exif_of(*((0x9000 + number, 7, 30_000, b"\x10\0\0\0") for number in range(2000))) + bytes(34_000)
    data = entries[6:] if format_ == "TIFF" else encode(Image.new("RGB", (8, 8)), format_, exif=entries)
    with pytest.raises(ImageError, match=r"entries of [\d,]+ bytes in 58,"):
        load_image(data)


def test_an_rgb_image_is_not_copied_unless_it_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(np.random.default_rng(0), (40, 24))
    data, expected = encode(image, "JPEG", exif=exif_of((0x112, 3, 1, b"\1\0"))), np.asarray(image)
    own = load_image(image)
    assert own is not image
    np.testing.assert_array_equal(np.asarray(own), expected)

    def fail(*_: object) -> None:
        raise AssertionError("a copy")

    for name in ("copy", "convert"):
        monkeypatch.setattr(Image.Image, name, fail)
    assert load_image(data).size == (40, 24)


@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_the_caller_may_change_the_orientation_of_an_image(orientation: int | None) -> None:
    image = make_image(np.random.default_rng(0), (40, 24))
    opened = Image.open(io.BytesIO(encode(image, exif=exif_of(TURNED))))
    if orientation is None:
        del opened.getexif()[0x112]
    else:
        opened.getexif()[0x112] = orientation
    expected = image.transpose(Image.Transpose.ROTATE_180) if orientation == 3 else image
    np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(expected))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png_of_text(image: Image.Image, key: str, text: str) -> bytes:
    texts = PngInfo()
    texts.add_text(key, text, zip=True)
    return encode(image, "PNG", pnginfo=texts)


@pytest.mark.parametrize("kind", ["raw profile", "XMP text", "JPEG with XMP", "WebP with XMP", "damaged raw profile"])
def test_all_places_of_an_orientation_are_read_without_pillows_parser(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Image.Image) -> None:
        raise AssertionError("Pillow's parser of EXIF data")

    image = make_image(np.random.default_rng(0), (40, 24))
    exif = exif_of(TURNED)
    raw = f"\nexif\n{len(exif):8}\n{exif.hex()}\n"
    data = {
        "raw profile": lambda: png_of_text(image, "Raw profile type exif", raw),
        "damaged raw profile": lambda: png_of_text(image, "Raw profile type exif", raw + "x"),
        "XMP text": lambda: png_of_text(image, "XML:com.adobe.xmp", XMP.decode()),
        "JPEG with XMP": lambda: encode(image, "JPEG", xmp=XMP),
        "WebP with XMP": lambda: encode(image, "WEBP", lossless=True, xmp=XMP),
    }[kind]()
    monkeypatch.setattr(Image.Image, "getexif", fail)
    if kind == "damaged raw profile":
        assert load_image(data).size == (40, 24)
        assert "has EXIF data that cannot be read" in caplog.text
    else:
        assert load_image(data).size == (24, 40)


def test_a_tiff_is_turned_once() -> None:
    """By its tag, which counts more than its XMP; Pillow turns it."""
    image = make_image(np.random.default_rng(0), (40, 24))
    for orientation, size in ((1, (40, 24)), (6, (24, 40))):
        tags = {0x112: orientation, 700: XMP.replace(b"6", b"5")}
        assert load_image(encode(image, "TIFF", tiffinfo=tags)).size == size


def test_the_callers_flat_images_stay_as_they_are() -> None:
    """Pillow keeps the transparent color when it converts a palette, where other entries may have the same color."""
    image = Image.new("P", (20, 10))
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 0, 20, 10))
    opened = Image.open(io.BytesIO(encode(image, "GIF", transparency=0)))
    for mode in ("RGB", "L", "1"):
        converted = opened.convert(mode)
        np.testing.assert_array_equal(np.asarray(load_image(converted)), np.asarray(converted.convert("RGB")))
    for kept in (opened, opened.copy()):
        assert [load_image(kept).getpixel((x, 5)) for x in (5, 15)] == [(255, 255, 255), (0, 0, 0)]


def jp2(colors: bytes, image: Image.Image) -> bytes:
    """A JP2 with a palette of RGB."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    header = box(b"ihdr", struct.pack(">IIHBBBB", image.height, image.width, 1, 7, 7, 0, 0))
    header += box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    header += box(b"pclr", struct.pack(">HB", len(colors) // 3, 3) + b"\7\7\7" + colors)
    header += box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, channel) for channel in range(3)))
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header)
    return start + box(b"jp2c", encode(image, "JPEG2000", no_jp2=True))


def test_a_palette_of_jpeg_2000_may_have_equal_colors() -> None:
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (20, 3), dtype=np.uint8)
    colors[5] = colors[2]
    indices = rng.integers(0, 20, (30, 40), dtype=np.uint8)
    read = load_image(jp2(colors.tobytes(), Image.fromarray(indices)))
    np.testing.assert_array_equal(np.asarray(read), colors[indices])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize("no_jp2", [True, False])
def test_color_of_jpeg_2000_of_more_than_8_bits_is_refused(mode: str, no_jp2: bool) -> None:
    data = encode(Image.new(mode, (20, 10)), "JPEG2000", no_jp2=no_jp2)
    place = data.index(b"\xff\x4f\xff\x51") + 42 + 3 * (len(mode) - 1)  # the depth of the last channel
    with pytest.raises(ImageError, match="levels of 16 bits") as raised:
        load_image(data[:place] + b"\x0f" + data[place + 1 :])
    assert raised.value.status == "unsupported"


def test_channels_of_jpeg_2000_of_few_bits_are_scaled() -> None:
    data = encode(Image.new("LA", (4, 1)), "JPEG2000", no_jp2=True)
    depths = data[:42] + b"\3\1\1\0\1\1" + data[48:]  # 4 bits of gray, and one of alpha
    shifted = Image.fromarray(np.array([[[0, 0], [16, 0], [128, 128], [240, 128]]], np.uint8))
    scaled = correct_jpeg2000(shifted, io.BytesIO(depths))
    assert np.asarray(scaled).tolist() == [[[0, 0], [17, 0], [136, 255], [255, 255]]]


def compressed_tiff(levels: np.ndarray[Any, Any], order: str) -> bytes:
    """A deflated gray TIFF of floats or signed integers."""
    height, width = levels.shape
    content = zlib.compress(levels.astype(levels.dtype.newbyteorder(order)).tobytes())
    sample_format = 3 if levels.dtype.kind == "f" else 2
    tags = [(256, width), (257, height), (258, 8 * levels.itemsize), (259, 8), (262, 1), (273, 0), (277, 1)]
    tags += [(278, height), (279, len(content)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    header = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    return header + entries + bytes(4) + content


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
def test_the_byte_order_of_a_compressed_tiff_changes_no_level(dtype: type) -> None:
    """libtiff gives levels in the order of the machine, which Pillow would swap."""
    levels = (np.arange(48).reshape(6, 8) / 47 * (1 if dtype is np.float32 else 32767)).astype(dtype)
    little, big = (load_image(compressed_tiff(levels, order)) for order in "<>")
    np.testing.assert_array_equal(np.asarray(big), np.asarray(little))
    assert np.ptp(np.asarray(big)) > 100


def test_a_fax_without_the_length_of_its_data_is_refused() -> None:
    data = encode(Image.new("1", (40, 30)), "TIFF", compression="group4")
    load_image(data)
    entry = struct.pack("<HH", 279, 4)
    with pytest.raises(ImageError, match="without the length of its data") as raised:
        load_image(data.replace(entry, struct.pack("<HH", 280, 4)))
    assert raised.value.status == "unsupported"


@pytest.mark.parametrize("alpha_bits", [0, 1])
@pytest.mark.parametrize("in_palette", [False, True])
def test_the_last_of_16_bits_of_a_tga_is_opaque_where_it_is_set(alpha_bits: int, in_palette: bool) -> None:
    colors = np.array([0x8000 | 31 << 10, 0x7FFF & 31 << 5], "<u2")  # red, set; green, clear
    kind = (0, 1, 1, 0, 2, 16, 0, 0, 2, 1, 8) if in_palette else (0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 16)
    data = struct.pack("<BBBHHBHHHHBB", *kind, 0x20 | alpha_bits) + colors.tobytes() + b"\0\1" * in_palette
    read = load_image(data)
    clear = (255, 255, 255) if alpha_bits else (0, 255, 0)
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), clear]


def test_damaged_members_of_archives_are_image_errors() -> None:
    content = gzip.compress(encode(Image.new("RGB", (40, 30))))
    for data in (content[:-20], content[:30] + b"\xff\xff" + content[32:]):
        with gzip.open(io.BytesIO(data)) as file, pytest.raises(ImageFileError, match="cannot be read"):
            load_image(file)


def test_a_sparse_tiff_is_refused() -> None:
    """Pillow would read the header of the file as pixels."""
    data = encode(Image.new("L", (16, 40)), "TIFF", tiffinfo={278: 10})
    (place,) = struct.unpack_from("<I", data, data.index(struct.pack("<HHI", 273, 4, 4)) + 8)
    load_image(data)
    with pytest.raises(ImageError, match="missing parts") as raised:
        load_image(data[: place + 4] + bytes(4) + data[place + 8 :])
    assert raised.value.status == "unsupported"


@pytest.mark.parametrize("is_merged", [False, True])
def test_a_psd_without_a_merged_image_is_refused(is_merged: bool) -> None:
    version = struct.pack(">IBIII", 1, is_merged, 0, 0, 1) + b"\0"
    resource = b"8BIM" + struct.pack(">HHI", 1057, 0, 17) + version
    header = b"8BPS" + struct.pack(">HxxxxxxHIIHH", 1, 3, 4, 5, 8, 3) + bytes(4) + struct.pack(">I", len(resource))
    data = header + resource + bytes(4) + b"\0\0" + b"\x80" * 60
    if is_merged:
        assert load_image(data).getpixel((2, 2)) == (128, 128, 128)
    else:
        with pytest.raises(ImageError, match="without a merged image"):
            load_image(data)


@pytest.mark.parametrize("size", [(8, 6), (20, 10)])
def test_around_the_first_frame_of_an_animated_webp_is_the_background(size: tuple[int, int]) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def numbers(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    frame = encode(Image.new("RGB", size, "red"), "WEBP", lossless=True)[12:]
    place = (2, 1) if size == (8, 6) else (0, 0)  # half of it is stored
    body = chunk(b"VP8X", b"\2\0\0\0" + numbers(19, 9)) + chunk(b"ANIM", bytes(6))
    body += chunk(b"ANMF", numbers(*place, size[0] - 1, size[1] - 1, 100) + b"\0" + frame)
    read = load_image(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
    red, white = (255, 0, 0), (255, 255, 255)
    expected = [white, red, red, white] if size == (8, 6) else [red] * 4
    assert [read.getpixel(point) for point in ((0, 0), (4, 2), (11, 7), (12, 8))] == expected


def test_an_icon_is_that_of_most_colors() -> None:
    """Pillow takes the one of fewest."""
    frames = [icon(np.full((6, 8, 4), (level, 0, 0, 255), np.uint8), np.zeros((6, 8), bool)) for level in (10, 20, 30)]
    entries, contents = b"", b""
    for bits, frame in zip((4, 32, 8), frames, strict=True):
        content = frame[22:]
        entries += frame[6:12] + struct.pack("<HII", bits, len(content), 6 + 16 * 3 + len(contents))
        contents += content
    read = load_image(struct.pack("<HHH", 0, 1, 3) + entries + contents)
    assert read.size == (8, 6)
    assert read.getpixel((2, 2)) == (20, 0, 0)


def test_an_old_jpeg_in_a_tiff_that_is_cut_is_truncated(material: Path) -> None:
    """libtiff fills up what is missing."""
    data = (material / "images" / "odd" / "pillow" / "old-style-jpeg-compression.tif").read_bytes()
    whole = open_image(data)
    assert not whole.truncated
    for share in (0.3, 0.7, 0.95):  # it ends at 97 %
        cut = data[: int(len(data) * share)]
        with pytest.raises(ImageError) as raised:
            load_image(cut)
        assert raised.value.status == "truncated"
        assert open_image(cut, allow_truncated=True).size == whole.size
    length = struct.pack("<HHII", 279, 4, 1, 212_992)
    for stated in (212_993, 2**32 - 1):  # programs state wrong lengths
        assert not open_image(data.replace(length, struct.pack("<HHII", 279, 4, 1, stated))).truncated


@pytest.mark.parametrize("kind", [1, 2, 6, 7, 8, 9, 5, 10, 11, 12])
def test_tags_of_a_tiff_of_unusual_types_are_no_other_error(kind: int) -> None:
    """Pillow gives bytes, floats and fractions for them."""
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 230, 120, 0])
    data = encode(image, "TIFF")
    with contextlib.suppress(ImageError):
        load_image(data.replace(struct.pack("<HHI", 320, 3, 768), struct.pack("<HHI", 320, kind, 768)))
    jpeg = tiff_of_one_strip(np.zeros((4, 5), np.uint8), "<", 6, 1)
    for tag in (273, 279):
        place = jpeg.index(struct.pack("<HH", tag, 4)) + 2
        with contextlib.suppress(ImageError):
            load_image(jpeg[:place] + struct.pack("<H", kind) + jpeg[place + 2 :])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_a_compressed_tiff_that_is_cut_is_truncated(compression: str) -> None:
    """Its directory is behind the pixels."""
    data = encode(make_image(np.random.default_rng(0), (64, 48)), "TIFF", compression=compression)
    for share in (0.1, 0.5, 0.85):
        with pytest.raises(ImageError) as raised:
            load_image(data[: int(len(data) * share)])
        assert raised.value.status == "truncated"


@pytest.mark.parametrize("host_passes_truncated", [False, True])
def test_an_icon_whose_best_image_is_cut_is_truncated(
    host_passes_truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = icon(np.full((6, 8, 4), (10, 0, 0, 255), np.uint8), np.zeros((6, 8), bool))
    entries, content = b"", frame[22:]
    for number, bits in enumerate((4, 32)):
        entries += frame[6:12] + struct.pack("<HII", bits, len(content), 6 + 16 * 2 + len(content) * number)
    data = struct.pack("<HHH", 0, 1, 2) + entries + content * 2
    assert load_image(data).getpixel((2, 2)) == (10, 0, 0)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host_passes_truncated)
    with pytest.raises(ImageError) as raised:
        load_image(data[:-50])
    assert raised.value.status == "truncated"
    assert open_image(data[:-50], allow_truncated=True).truncated


@pytest.mark.parametrize("number", [1, 3, 4, 9, 11, 13, 14, 19, 22, 23])
def test_color_spaces_of_a_jpx_that_pillow_takes_for_rgb_are_refused(number: int) -> None:
    data = encode(Image.new("RGB", (8, 6), "red"), "JPEG2000")
    place = data.index(b"colr") + 7
    assert struct.unpack_from(">I", data, place) == (16,)
    with pytest.raises(ImageError, match=f"the color space {number}") as raised:
        load_image(data[:place] + struct.pack(">I", number) + data[place + 4 :])
    assert raised.value.status == "unsupported"


def test_a_tiff_without_the_meaning_of_its_levels_is_refused() -> None:
    """Pillow takes 0 for white."""
    data = tiff_of_one_strip(np.zeros((4, 5), np.uint8), "<", 1, 1)
    place = data.index(struct.pack("<HHII", 262, 4, 1, 1))
    with pytest.raises(ImageError, match="whether its zeros are black or white") as raised:
        load_image(data[:place] + struct.pack("<H", 261) + data[place + 2 :])
    assert raised.value.status == "unsupported"


def test_a_tiff_of_an_unknown_kind_is_named_as_one() -> None:
    data = tiff_of_one_strip(np.zeros((4, 5), np.uint8), "<", 1, 1)
    place = data.index(struct.pack("<HHII", 258, 4, 1, 8)) + 8
    with pytest.raises(ImageError, match="a TIFF of a kind that Pillow does not read") as raised:
        load_image(data[:place] + struct.pack("<I", 3) + data[place + 4 :])
    assert raised.value.status == "unsupported"


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("allow_truncated", [True, False])
def test_a_webp_that_is_cut_is_truncated(lossless: bool, allow_truncated: bool) -> None:
    data = encode(make_image(np.random.default_rng(0), (64, 48)), "WEBP", lossless=lossless)
    with pytest.raises(ImageError) as raised:
        load_image(data[:-50], allow_truncated=allow_truncated)
    assert raised.value.status == "truncated"


def test_a_cut_tga_with_a_palette_that_it_does_not_use_is_an_image_error() -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 3, 0, 300, 16, 0, 0, 40, 40, 8, 0x20)  # of 300 colors
    with pytest.raises(ImageError) as raised:
        load_image(header + bytes(2 * 300 + 100), allow_truncated=True)
    assert raised.value.status == "truncated"


def test_a_pil_image_for_which_a_program_would_run_is_refused() -> None:
    content = io.BytesIO(encode(Image.new("RGB", (8, 6), "red"), "EPS"))
    with pytest.raises(ImageError, match="The PIL image is EPS, for which Pillow runs a program"):
        load_image(Image.open(content))
    metafile = struct.pack("<I2x4hH6x", 0x9AC6CDD7, 0, 0, 100, 100, 72) + b"\1\0\t\0" + bytes(200)
    with pytest.raises(ImageError, match="The PIL image is WMF"):  # on Windows, Pillow hands it to the system
        load_image(Image.open(io.BytesIO(metafile)))
