import contextlib
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.images import encode

from siglip_onnx.errors import ImageError
from siglip_onnx.image.decode import FORMATS, load_image


def test_gray_and_alpha_arrays(image: Image.Image) -> None:
    gray = np.asarray(image.convert("L"))
    expected = np.repeat(gray[..., np.newaxis], 3, axis=2)
    assert_array_equal(np.asarray(load_image(gray)), expected)
    assert_array_equal(np.asarray(load_image(gray[..., np.newaxis])), expected)
    rgba = np.dstack([np.asarray(image), np.zeros(gray.shape, np.uint8)])
    assert_array_equal(np.asarray(load_image(rgba)), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F", "HSV"])
def test_every_mode_becomes_rgb(image: Image.Image, mode: str) -> None:
    source = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    assert loaded.size == image.size


def test_levels_beyond_eight_bits_are_cut_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers; the image loses its gray levels, which must not happen silently."""
    deep = Image.fromarray(np.array([[0, 200, 300, 65535]], np.uint16))
    assert np.asarray(load_image(deep))[0, :, 0].tolist() == [0, 200, 255, 255]
    assert "levels beyond 8 bits" in caplog.text


def test_exif_orientation_is_applied(image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = load_image(encode(image, exif=exif))
    assert turned.size == (image.height, image.width)
    assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), k=-1))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (254, 0, 0) or load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("source", "message", "status"),
    [
        (b"", "empty", "decode_error"),
        (b"not an image", "not a readable image", "unsupported"),
        (np.zeros((4, 4, 3), np.float32), "float32", "unsupported"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)", "unsupported"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels", "decode_error"),
        (Image.new("RGB", (0, 5)), "0x5 pixels", "decode_error"),
        (None, "NoneType", "unsupported"),
        (3, "int", "unsupported"),
        ("no_such_file.png", "does not exist", "io_error"),
        (".", "is a folder", "io_error"),
        ("a\0b.png", "cannot be opened", "io_error"),
        ("x" * 5000, "cannot be opened", "io_error"),
    ],
)
def test_unreadable_sources_have_a_message_and_a_status(source: object, message: str, status: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert caught.value.status == status
    assert status in ImageError.STATUSES


def test_pillow_opens_every_named_format() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


def test_every_odd_file_loads_or_raises_an_image_error(material: Path) -> None:
    """No other exception, whatever is wrong with a file; most are readable."""
    files = [path for path in sorted((material / "images" / "odd").rglob("*")) if path.is_file()]
    loaded = 0
    for path in files:
        with contextlib.suppress(ImageError):
            assert load_image(path.read_bytes()).mode == "RGB"
            loaded += 1
    assert loaded > len(files) / 2
