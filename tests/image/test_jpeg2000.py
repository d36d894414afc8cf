"""JPEG 2000 files whose levels, palettes and channels Pillow reads wrongly are read right, or refused."""

import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.images import encode, make_image

from siglip_onnx.errors import ImageError
from siglip_onnx.image import load_image

SRGB, GRAY, SYCC = 16, 17, 18
COLOR, ALPHA, PREMULTIPLIED, UNSPECIFIED = 0, 1, 2, 65535
# 32x32 pixels, written by OpenJPEG 2.5.4: white left of black; the levels 0 to 3 from left to right; the color
# (200, 30, 40), which is transparent in the right half.
ONE_BIT = base64.b85decode(
    "0000CYEU2`4GM<}0000KW^{RQYH%_j00000YH%_j0000jYH%`W0000MX=r3}0000W0000W009680000001sntY;pkr000005dZ)HrD||8WB*V8Q2;"
    "3b00000AOHXWAOHXW0000000000AOHXWAOHXW00000000310RjI~01N;C009661Oxy9|6BkQKnM^J7!VK`5D*v;5Eu{;82@AdB>(|Ka%Ew3Wn>^?c"
    "_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000003-kb|C4~-1P91~0)NPW7uU#uA{og5Hl9I$|Je"
)
TWO_BITS = base64.b85decode(
    "|4;u>04V?f0000W0000W00000000000000W0000W0000000000009930sm3}3;+NC0RROA1ONg5TmTb55EvLB7#JWJ7$6uJAQ%`R|6~9q00BdCWnp"
    "w>WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*000008vp_SlgK~^&Vm2~#2^fSfPnwm"
)
ONE_BIT_OF_ALPHA = base64.b85decode(
    "0000CYEU2`4GM<}0000KW^{RQYH%_j00000YH%_j00016YH%`W0000MX=r3}0000W0000W00jRB0000001RSqV`B#g2LJ#701sntY;pkr000005C8x"
    "GB4cD_W&i{L000000RRC2000620ssI20{{a60RR910081@a57{6PybN>G5`Po001BW001BW0000000000001BW001BW00000000001P1{D2LS;G0Ra"
    "F30sm3}3;+NC0RROA1ONg5TmTb5KuAbXNJvmfNKi;fP)JBn|6KqS13(B65Eu{;7!VK`5D*v;5E%bt03`qcLvm$dbY)~9VtF7>aAj^vP(?=|c4cyNX>"
    "V>IGA=bPH2;tQ3IG5A002S&0soWFv<L)G&$I{#pU<=i1<8PbfPmcu2Y`Tp$bbTWfPjF=fEU+*fPlz=A{l^yfXM(ho<V>A*#"
)


def pixels_of(data: bytes, background: str = "white") -> Any:
    return np.asarray(load_image(data, background=background))


def of_bits(data: bytes, *depths: int) -> bytes:
    """Return a file whose header states other numbers of bits for its components."""
    start = data.index(b"\xff\x4f\xff\x51") + 42
    patched = bytearray(data)
    for number, depth in enumerate(depths):
        patched[start + 3 * number] = depth - 1
    return bytes(patched)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def channels(*fields: tuple[int, int, int]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(fields)) + b"".join(struct.pack(">3H", *field) for field in fields))


def jp2(pixels: np.ndarray, *boxes: bytes, color: int = SRGB) -> bytes:
    """Write u8 ``(H, W)`` or ``(H, W, C)`` as a JP2 with further boxes in its header."""
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    count = 1 if pixels.ndim == 2 else pixels.shape[2]
    image = (
        Image.fromarray(pixels) if count != 2 else Image.merge("LA", [*map(Image.fromarray, pixels.transpose(2, 0, 1))])
    )
    assert image.mode == modes[count]
    codestream = encode(image, "JPEG2000", no_jp2=True, irreversible=False, mct=0)
    size = box(b"ihdr", struct.pack(">IIHBBBB", *pixels.shape[:2], count, 7, 7, 0, 0))
    header = size + box(b"colr", struct.pack(">3BI", 1, 0, 0, color)) + b"".join(boxes)
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + box(b"jp2c", codestream)


@pytest.mark.parametrize("format_", ["JP2", "codestream"])
def test_levels_of_fewer_than_8_bits_are_scaled(format_: str) -> None:
    """Pillow shifts them, so that white is gray."""
    data = ONE_BIT if format_ == "JP2" else ONE_BIT[ONE_BIT.index(b"\xff\x4f\xff\x51") :]
    expected = np.where(np.arange(32) < 16, 255, 0)[np.newaxis, :, np.newaxis].repeat(32, 0).repeat(3, 2)
    assert_array_equal(pixels_of(data), expected)
    assert pixels_of(TWO_BITS)[0, ::8].tolist() == [[0] * 3, [85] * 3, [170] * 3, [255] * 3]


def test_alpha_of_one_bit_is_opaque_or_transparent() -> None:
    shown = pixels_of(ONE_BIT_OF_ALPHA, "#0000ff")
    assert (shown[:, :16] == [200, 30, 40]).all()
    assert (shown[:, 16:] == [0, 0, 255]).all()


@pytest.mark.parametrize(
    ("mode", "depths"),
    [("RGB", (10, 10, 10)), ("RGB", (16, 16, 16)), ("RGB", (8, 8, 12)), ("RGBA", (16,) * 4), ("RGBA", (8, 8, 8, 16)),
     ("LA", (8, 16)), ("LA", (16, 16)), ("L", (9,)), ("I;16", (17,))],
)  # fmt: skip
def test_levels_that_overflow_are_refused(mode: str, depths: tuple[int, ...]) -> None:
    """Pillow makes black of white, and transparent of opaque."""
    data = encode(Image.new(mode, (32, 32)), "JPEG2000")
    assert pixels_of(data).shape == (32, 32, 3)
    with pytest.raises(
        ImageError, match=f"is a JPEG 2000 with levels of {max(depths)} bits, .*; save it as PNG"
    ) as raised:
        load_image(of_bits(data, *depths))
    assert raised.value.status == "unsupported"


def palette(colors: np.ndarray, *, depth: int = 8, first: int = 0) -> tuple[bytes, bytes]:
    count, columns = colors.shape
    content = struct.pack(">HB", count, columns) + bytes([depth - 1] * columns) + colors.astype(np.uint8).tobytes()
    mapping = b"".join(struct.pack(">HBB", 0, 1, (first + column) % columns) for column in range(columns))
    return box(b"pclr", content), box(b"cmap", mapping)


@pytest.mark.parametrize("columns", [3, 4])
def test_a_color_may_occur_twice_in_a_palette(columns: int) -> None:
    rng = np.random.default_rng(columns)
    colors = rng.integers(0, 256, (20, columns), np.uint8)
    colors[5] = colors[2]
    indices = rng.integers(0, 20, (30, 40), np.uint8)
    expected = colors[indices]
    if columns == 4:
        flat = Image.alpha_composite(Image.new("RGBA", (40, 30), "white"), Image.fromarray(expected))
        expected = np.asarray(flat.convert("RGB"))
    assert_array_equal(pixels_of(jp2(indices, *palette(colors))), expected)


def test_indices_of_fewer_than_8_bits() -> None:
    colors = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]])
    whole = jp2(np.zeros((32, 32), np.uint8), *palette(colors))
    data = whole[: whole.index(b"\xff\x4f\xff\x51")] + TWO_BITS
    assert_array_equal(pixels_of(data)[0, ::8], colors)


@pytest.mark.parametrize(
    "unusual", [{"color": GRAY}, {"color": SYCC}, {"first": 1}, {"depth": 7}, {"depth": 9}, {"columns": 1}]
)
def test_unusual_palettes_are_refused(unusual: dict[str, int]) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (20, unusual.pop("columns", 3)), np.uint8)
    color = unusual.pop("color", SRGB)
    data = jp2(np.zeros((30, 40), np.uint8), *palette(colors, **unusual), color=color)
    with pytest.raises(ImageError, match="a palette of an unusual form"):
        load_image(data)


RGB = [(0, COLOR, 1), (1, COLOR, 2), (2, COLOR, 3)]


@pytest.mark.parametrize("kind", [ALPHA, PREMULTIPLIED, UNSPECIFIED])
@pytest.mark.parametrize("count", [2, 4])
def test_a_further_channel_is_what_the_file_says(kind: int, count: int) -> None:
    pixels = np.asarray(make_image(np.random.default_rng(0), (40, 32)).convert("RGBA")).copy()
    pixels[..., 3] = np.linspace(0, 255, 40)
    pixels = pixels[..., 4 - count :]
    pixels[..., :-1] = np.minimum(pixels[..., :-1], pixels[..., -1:])  # as premultiplied levels are
    fields = [*(RGB if count == 4 else RGB[:1]), (count - 1, kind, 0)]
    colors, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    colors = colors.repeat(3, -1) if count == 2 else colors
    expected = {ALPHA: colors * alpha, PREMULTIPLIED: colors, UNSPECIFIED: colors}[kind]
    shown = pixels_of(jp2(pixels, channels(*fields), color=SRGB if count == 4 else GRAY), "black")
    assert abs(shown - expected).max() <= 2


@pytest.mark.parametrize("fields", [[(0, COLOR, 3), (1, COLOR, 2), (2, COLOR, 1)], [(0, ALPHA, 0), *RGB[1:]]])
def test_channels_in_another_order_are_refused(fields: list[tuple[int, int, int]]) -> None:
    pixels = np.asarray(make_image(np.random.default_rng(0), (40, 32)))
    assert_array_equal(pixels_of(jp2(pixels, channels(*RGB))), pixels)
    with pytest.raises(ImageError, match="channels in an unusual order"):
        load_image(jp2(pixels, channels(*fields)))


@pytest.mark.parametrize("boxes", [box(b"pclr", b""), box(b"pclr", b"\0\0\3") + box(b"cmap", b""), b"\0\0\0\2pclr"])
def test_damaged_boxes_are_refused(boxes: bytes) -> None:
    with pytest.raises(ImageError):
        load_image(jp2(np.zeros((32, 32), np.uint8), boxes))


def test_a_header_that_is_cut_is_left_to_the_decoder() -> None:
    data = jp2(np.zeros((32, 32), np.uint8))
    for length in range(12, len(data) - 1, 7):
        with pytest.raises(ImageError):
            load_image(io.BytesIO(data[:length]))
