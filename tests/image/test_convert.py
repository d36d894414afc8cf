"""Transparency is composited, levels beyond 8 bits are scaled, and all other images keep their pixels."""

import io
import itertools
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.commands import assert_error, run
from support.images import encode

import siglip_onnx
from siglip_onnx import RuntimeOptions, SiglipOnnxError
from siglip_onnx.errors import ImageError
from siglip_onnx.image import load_image

TOP, SIDE = 65535, 16
OPAQUE_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
RGBA_FORMATS = {
    "PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}, "ICO": {"sizes": [(SIDE, SIDE)]}, "QOI": {},
    "JPEG2000": {"irreversible": False}, "TGA": {}, "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}  # fmt: skip


def pixels_of(source: Any, background: str = "white") -> Any:
    return np.asarray(load_image(source, background=background))


def random_pixels(channels: int) -> Any:
    return np.random.default_rng(channels).integers(0, 256, (SIDE, SIDE, channels), np.uint8)


def on_white(image: Image.Image) -> Any:
    """Composite as convert_to_rgb of transformers 5.24 does."""
    return np.asarray(
        Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image.convert("RGBA")).convert("RGB")
    )


def test_transparency_is_blended() -> None:
    rgba = random_pixels(4)
    alpha = rgba[..., 3:] / 255
    for background, color in (("white", 255), ("#000000", 0), ("gray", 128), ("rgb(1,2,3)", [1, 2, 3])):
        blended = rgba[..., :3] * alpha + np.array(color) * (1 - alpha)
        assert_allclose(pixels_of(rgba, background), blended, atol=1, err_msg=background)
    assert_array_equal(pixels_of(rgba), on_white(Image.fromarray(rgba)))
    assert_array_equal(pixels_of(rgba, "drop"), rgba[..., :3])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_every_mode_with_alpha(mode: str) -> None:
    image = Image.fromarray(random_pixels(3)).convert(mode.removesuffix("A")).convert(mode)
    image.putalpha(Image.fromarray(random_pixels(4)[..., 3]))
    assert image.mode == mode
    assert_array_equal(pixels_of(image), on_white(image))
    assert (pixels_of(image) != pixels_of(image, "drop")).any()


def test_alpha_in_the_palette() -> None:
    image = Image.fromarray(random_pixels(4)).quantize(16)
    assert image.palette is not None
    assert (image.mode, image.palette.mode, image.info.get("transparency")) == ("P", "RGBA", None)
    assert_array_equal(pixels_of(image), on_white(image))
    data = encode(image, "TGA")
    with Image.open(io.BytesIO(data)) as stored:
        assert_array_equal(pixels_of(data), on_white(stored))


@pytest.mark.parametrize(("mode", "straight"), [("RGBa", "RGBA"), ("La", "LA")])
def test_premultiplied_alpha(mode: str, straight: str) -> None:
    image = Image.fromarray(random_pixels(4)).convert(straight).convert(mode)
    assert_array_equal(pixels_of(image), on_white(image.convert(straight)))
    assert pixels_of(image, "drop").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("format_", RGBA_FORMATS)
def test_every_format_with_alpha(format_: str) -> None:
    rgba = random_pixels(4)
    rgba[:4] = [90, 60, 30, 0]
    data = encode(Image.fromarray(rgba), format_, **RGBA_FORMATS[format_])
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "RGBA"
        expected = on_white(stored)
    assert_array_equal(pixels_of(data), expected)
    assert (pixels_of(data)[:4] == 255).all()
    assert (pixels_of(data, "drop")[:4] != 255).any()


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG2000", "TGA", "WEBP", "AVIF"])
def test_every_format_with_gray_and_alpha(format_: str) -> None:
    la = random_pixels(2)
    la[:4, :, 1] = 0
    image = Image.merge("LA", [Image.fromarray(la[..., band]) for band in range(2)])
    data = encode(image, format_, **RGBA_FORMATS[format_])
    with Image.open(io.BytesIO(data)) as stored:
        assert_array_equal(pixels_of(data), on_white(stored))
    assert (pixels_of(data)[:4] == 255).all()


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_transparent_palette_entries(format_: str, transparency: Any) -> None:
    palette = Image.frombytes("P", (24, 8), bytes([0, 1, 2] * 8 * 8))
    palette.putpalette([10, 10, 10, 90, 90, 90, 200, 200, 200])
    if format_ == "GIF" and isinstance(transparency, bytes):
        transparency = 0  # all that the format has
    options = {"transparency": transparency} if format_ in ("GIF", "PNG") else RGBA_FORMATS[format_]
    palette.info["transparency"] = transparency
    shown = pixels_of(encode(palette, format_, **options))[0, :3, 0]
    half = isinstance(transparency, bytes)
    assert_allclose(shown, [255, 172 if half else 90, 200], atol=4 if format_ == "AVIF" else 1)
    assert pixels_of(encode(palette, format_, **options), "black")[0, 0, 0] <= (4 if format_ == "AVIF" else 0)


@pytest.mark.parametrize(
    ("mode", "transparent", "value"),
    [("L", 7, 7), ("RGB", (7, 8, 9), (7, 8, 9)), ("1", 0, 0), ("I;16", 7000, 7000)],
)
def test_the_transparent_color_of_a_png(mode: str, transparent: Any, value: Any) -> None:
    image = Image.new(mode, (4, 4), value)
    image.putpixel((0, 0), {"RGB": (200, 0, 0), "I;16": TOP, "1": 1}.get(mode, 200))
    data = encode(image, "PNG", transparency=transparent)
    shown = pixels_of(data, "#00ff00")
    assert (shown[1:] == [0, 255, 0]).all()
    assert_array_equal(shown[0, 0], {"RGB": [200, 0, 0], "L": [200] * 3}.get(mode, [255] * 3))


def keyed(format_: str) -> bytes:
    """Return a black square within white, and a corner whose transparent palette entry or color is black as well."""
    if format_ == "GIF":
        image = Image.new("P", (SIDE, SIDE), 1)
        image.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0])
        image.paste(2, (4, 4, 12, 12))
        image.paste(0, (0, 0, 2, 2))
        return encode(image, "GIF", transparency=0)
    image = Image.new(format_, (SIDE, SIDE), "white")
    image.paste("black", (4, 4, 12, 12))
    return encode(image, "PNG", transparency={"RGB": (0, 0, 0)}.get(format_, 0))


CONVERSIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{mode: partial(Image.Image.convert, mode=mode) for mode in ("RGB", "L", "1", "I", "F")},
    "thumbnail": lambda image: image.convert("RGB").resize((SIDE, SIDE)),
    "part": lambda image: image.convert("RGB").crop((0, 0, SIDE, SIDE)),
    "few colors": lambda image: image.convert("RGB").quantize(8),
}


@pytest.mark.parametrize("format_", ["GIF", "RGB", "L"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_an_image_that_the_caller_converted_has_no_transparent_color(format_: str, conversion: str) -> None:
    """Pillow keeps the color of the entry that was transparent, which opaque pixels have too."""
    with Image.open(io.BytesIO(keyed(format_))) as image:
        converted = CONVERSIONS[conversion](image)
    assert converted.info.get("transparency") is not None
    assert_array_equal(pixels_of(converted, "#00ff00"), pixels_of(converted, "drop"))
    assert pixels_of(converted).min() == 0


@pytest.mark.parametrize("format_", ["GIF", "RGB", "L"])
def test_an_image_as_it_was_opened_keeps_its_transparent_color(format_: str, small_bundle: Path) -> None:
    data = keyed(format_)
    expected = pixels_of(data, "#00ff00")
    assert_array_equal(expected[5, 5], [0, 0, 0] if format_ == "GIF" else [0, 255, 0])
    with Image.open(io.BytesIO(data)) as image:
        pickled = pickle.loads(pickle.dumps(image))  # noqa: S301 - made here
        for source in (image, pickled, image.convert("RGBA"), image.convert("LA")):
            assert_array_equal(pixels_of(source, "#00ff00"), expected)
        if format_ == "GIF":
            assert_array_equal(pixels_of(image.crop((0, 0, SIDE, SIDE)), "#00ff00"), expected)
        model = siglip_onnx.load(small_bundle, workers=2)
        assert_array_equal(model.encode_images(iter([image])), model.encode_images([data]))


@pytest.mark.parametrize("mode", OPAQUE_MODES)
def test_images_without_transparency_keep_their_pixels(mode: str) -> None:
    image = Image.fromarray(random_pixels(3)).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    for background in ("white", "#102030", "drop"):
        assert_array_equal(pixels_of(image, background), expected)


def test_opaque_alpha_changes_no_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([levels, levels[::-1], levels.T, np.full_like(levels, 255)])
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("RGBa"), Image.fromarray(rgba).convert("LA")):
        assert_array_equal(pixels_of(image, "#123456"), pixels_of(image, "drop"))


@pytest.mark.parametrize("wrong", ["", "no such color", "#12", "#10203040", "Drop", None, 3])
def test_wrong_background_is_refused(wrong: Any, small_bundle: Path) -> None:
    with pytest.raises(SiglipOnnxError, match="expected the name of a color, #rrggbb, or 'drop'"):
        siglip_onnx.load(small_bundle, background=wrong)


DEEP = np.array([[0, 128, 129, 257, 32896, 65406, 65407, TOP]], np.uint16)
EIGHT = [0, 0, 1, 1, 128, 254, 255, 255]  # levels / 257, rounded


@pytest.mark.parametrize("source", ["I;16", "I;16B", "I;16L", "I;16N", "I", "F",
                                    "PNG", "TIFF", "TIFF I;16B", "JPEG2000", "PPM", "ICO"])  # fmt: skip
def test_16_bits_are_scaled_in_every_mode_and_format(source: str, caplog: pytest.LogCaptureFixture) -> None:
    deep = Image.fromarray(np.repeat(DEEP, 8, axis=0))
    image: Any = deep
    if source in ("I", "F"):
        image = deep.convert(source)
    elif source.startswith("I;16") and source != "I;16":
        image = Image.frombytes(source, deep.size, np.asarray(deep).astype(">u2" if source[-1] == "B" else "<u2"))
    elif source == "TIFF I;16B":
        image = encode(Image.frombytes("I;16B", deep.size, np.asarray(deep).astype(">u2")), "TIFF")
    elif source == "ICO":
        image = encode(deep, "ICO", sizes=[deep.size])
    elif not source.startswith("I;16"):
        image = encode(deep, source)
    assert pixels_of(image)[0, :, 1].tolist() == EIGHT
    assert "levels beyond 8 bits, which were scaled from 0-65535 to 0-255" in caplog.text


@pytest.mark.parametrize(
    ("mode", "levels", "expected", "white"),
    [
        ("F", [0, 0.25, 1], [0, 64, 255], 1),
        ("F", [0, 1.5, 255], [0, 2, 255], 255),
        ("F", [0, 1000, 65535], [0, 4, 255], 65535),
        ("F", [-5, 1e9, 32896], [0, 255, 128], 65535),
        ("F", [np.nan, np.inf, 0.5], [0, 255, 128], 1),
        ("F", [-0.1, 1.2, 0.5], [0, 255, 128], 1),  # as sharpening makes them
        ("F", [np.nan, -np.inf, np.nan], [0, 0, 0], 1),
        ("I", [0, 200, 255], [0, 200, 255], 255),
        ("I", [-9, 256, 65535], [0, 1, 255], 65535),
        ("I", [0, 2**30, 2**31 - 1], [0, 128, 255], 2**31 - 1),
    ],
)
def test_the_largest_level_chooses_the_range(
    mode: str, levels: list[float], expected: list[int], white: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.fromarray(np.array([levels], np.float32 if mode == "F" else np.int32))
    assert image.mode == mode
    for source in (image, encode(image, "TIFF")):
        caplog.clear()
        assert pixels_of(source)[0, :, 0].tolist() == expected
        assert (f"scaled from 0-{white} to 0-255" in caplog.text) is (white != 255)


def test_the_bit_depth_of_a_tiff_is_its_range() -> None:
    """The range is that of the format even if the image is dark."""
    dark = Image.fromarray(np.array([[0, 100, 255]], np.uint16))
    for data in (encode(dark), encode(dark, "TIFF"), encode(dark, "PPM"), encode(dark, "JPEG2000")):
        assert pixels_of(data)[0, :, 0].tolist() == [0, 0, 1]


RAMP = np.tile(np.linspace(0, 1, 16), (4, 1))
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
UNSIGNED, SIGNED, FLOATS = 1, 2, 3


def tiff(levels: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """Return a TIFF of one strip, with tags that Pillow does not write."""
    height, width = levels.shape
    tags = {256: width, 257: height, 258: 8 * levels.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height,
            279: levels.nbytes, 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + levels.nbytes)
    return head + levels.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("dtype", "largest", "sample_format", "photometric"),
    [("<u1", 255, UNSIGNED, WHITE_IS_ZERO), ("<u2", 2**16 - 1, UNSIGNED, WHITE_IS_ZERO),
     ("<f4", 1, FLOATS, WHITE_IS_ZERO), ("<u2", 2**16 - 1, UNSIGNED, BLACK_IS_ZERO),
     ("<i2", 2**15 - 1, SIGNED, BLACK_IS_ZERO), ("<u4", 2**32 - 1, UNSIGNED, BLACK_IS_ZERO),
     ("<i4", 2**31 - 1, SIGNED, BLACK_IS_ZERO)],
)  # fmt: skip
def test_scans_are_neither_negatives_nor_wrapped(
    dtype: str, largest: int, sample_format: int, photometric: int
) -> None:
    ramp = RAMP if photometric == BLACK_IS_ZERO else 1 - RAMP
    pixels = np.asarray(load_image(tiff((ramp * largest).astype(dtype), photometric, sample_format)))
    assert_allclose(pixels[..., 0], 255 * RAMP, atol=1.01)


def test_large_images_are_converted_in_blocks() -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (1500, 1400, 4), np.uint8)
    palette = Image.fromarray(rgba).quantize(16)
    for image in (Image.fromarray(rgba), palette):
        assert_array_equal(pixels_of(image), on_white(image))
    levels = np.random.default_rng(0).integers(0, 65536, (1500, 1400), np.uint16)
    expected = np.rint(levels / 257).astype(np.uint8)
    assert_array_equal(pixels_of(Image.fromarray(levels))[..., 2], expected)


def test_drop_cuts_levels_as_the_reference_does(caplog: pytest.LogCaptureFixture) -> None:
    deep = Image.fromarray(np.array([[0, 200, 300, TOP]], np.uint16))
    assert pixels_of(deep, "drop")[0, :, 0].tolist() == [0, 200, 255, 255]
    assert "levels beyond 8 bits, which are cut at 255" in caplog.text


def test_only_transparent_and_deep_images_differ_from_the_reference(material: Path) -> None:
    """Of all real and odd images, these kinds and no others have other pixels than with ``"drop"``."""
    transparent = deep = other = 0
    for path in sorted((material / "images").rglob("*")):
        if not path.is_file() or path.suffix in (".md", ".json", ".LICENSE"):
            continue
        try:
            reference = pixels_of(path, "drop")
        except ImageError:
            continue
        with Image.open(path) as image:
            image.load()
            has_alpha = image.mode in ("LA", "PA", "RGBA") or image.info.get("transparency") is not None
            is_deep = image.mode.startswith(("I", "F"))
        if (pixels_of(path) == reference).all():
            other += 1
        else:
            assert has_alpha or is_deep, path
            transparent, deep = transparent + (not is_deep), deep + is_deep
    assert transparent > 10
    assert deep >= 3
    assert other > 80


def test_background_of_commands_and_models(tmp_path: Path, small_bundle: Path) -> None:
    path = tmp_path / "clear.png"
    image = Image.fromarray(random_pixels(4))
    image.save(path)
    vectors = {}
    for background in ("white", "#ff0000", "drop"):
        model = siglip_onnx.load(small_bundle, background=background)
        vectors[background] = model.encode_images(path)
        flat = siglip_onnx.load(small_bundle).encode_images(load_image(path, background=background))
        assert_array_equal(vectors[background], flat)
        out = tmp_path / "out.npy"
        options = ("--model", small_bundle, "--background", background)
        assert run("embed", path, "--out", out, *options).exit_code == 0
        assert_array_equal(np.load(out), vectors[background])
        (match,) = model.classify(path, ["a"])
        csv = run("classify", path, "--text", "a", "--csv", *options).stdout
        assert csv.splitlines()[1].split(",")[2] == str(match.logit)
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(vectors.values(), 2))
    assert_array_equal(siglip_onnx.load(small_bundle).encode_images(path), vectors["white"])
    assert RuntimeOptions().background == "white"
    result = run("classify", path, "--text", "a", "--background", "no color", "--model", small_bundle)
    assert_error(result, 2, "expected the name of a color")


def test_search_uses_the_background_of_the_stored_vectors(tmp_path: Path, small_bundle: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(random_pixels(4)).save(folder / "clear.png")
    model = ("--model", small_bundle)
    assert run("embed", folder, "--out", out, "--background", "drop", *model).exit_code == 0
    query = ("search", out, "--image", folder / "clear.png", *model)
    assert "1.000" in run(*query).stdout
    assert "1.000" not in run(*query, "--background", "white").stdout
