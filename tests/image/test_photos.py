"""Photos of cameras and phones: HEIC with its extra, and images of 48 to 200 megapixels."""

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.commands import assert_error, run, run_without
from support.images import encode, make_image

import siglip_onnx
from siglip_onnx import ImageLimits
from siglip_onnx.cli.inputs import _CHECK
from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageReader, load_image
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.options import MOST_PIXELS

SMALL = ImageLimits(max_pixels=10_000)
HEIC_HEADER = struct.pack(">I4s4sI8s", 24, b"ftyp", b"heic", 0, b"mif1heic") + bytes(40)


def refusal(source: Any, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        ImageReader(**options).read(source)
    return caught.value


@pytest.fixture
def heic() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone that is held upright
    image = make_image(np.random.default_rng(2), (120, 80))
    pillow_heif.from_pillow(image).save(buffer, quality=95, exif=exif.tobytes())
    return buffer.getvalue()


def test_heic_is_read_upright_and_registers_nothing(heic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(heic)
    image = load_image(path)
    upright = make_image(np.random.default_rng(2), (120, 80)).transpose(Image.Transpose.ROTATE_270)
    assert (image.mode, image.size) == ("RGB", (80, 120))
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(upright, np.int16))
    assert difference.mean() < 8  # lossy; a turned image differs by 60
    assert "HEIF" not in Image.OPEN
    assert refusal(path, limits=ImageLimits(max_pixels=1000)).status == "too_large"
    for length in (*range(12, 400, 37), len(heic) // 2):
        assert refusal(heic[:length]).status in ("decode_error", "truncated")


def test_registered_opener_is_honored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opener(Image.Image):
        format = "HEIF"

        def __init__(self, _file: Any, _name: str) -> None:
            super().__init__()
            self.im, self._mode, self._size = (image := Image.new("RGB", (7, 5), "red")).im, "RGB", image.size

    assert "HEIF" not in Image.OPEN
    monkeypatch.setitem(Image.OPEN, "HEIF", (Opener, lambda prefix: prefix[4:12] == b"ftypheic"))
    assert load_image(HEIC_HEADER).size == (7, 5)


def test_heic_without_the_extra_names_it(tmp_path: Path, small_bundle: Path) -> None:
    folder = folder_with_heic(tmp_path)
    arguments = ("--model", small_bundle, "--text", "a", "--no-isolate-decoding")  # a process would find it
    result = run_without("pillow_heif", "classify", folder / "phone.HEIC", folder / "camera.jpg", *arguments)
    assert_error(result, 3, "phone.HEIC is a HEIC image. HEIC needs pillow_heif, which is not installed. Run: pip inst")
    assert '[heic]"' in result.stderr


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="the workers of a job find pillow_heif")
def test_job_without_the_extra_names_it_and_ends_with_3(tmp_path: Path, small_bundle: Path) -> None:
    result = run("embed", folder_with_heic(tmp_path), "--out", tmp_path / "out", "--model", small_bundle)
    assert_error(result, 3, "1 HEIC image could not be read. Run: pip install")
    assert "then run this command again with --retry-errors." in result.stderr
    assert "(ok 1, unsupported 1)" in result.stdout


def folder_with_heic(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "phone.HEIC").write_bytes(HEIC_HEADER)
    make_image(np.random.default_rng(1)).save(folder / "camera.jpg")
    return folder


def test_heic_of_a_folder_is_embedded(heic: bytes, tmp_path: Path, small_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    for suffix in ("heic", "HEIF", "hif"):
        (tmp_path / "in" / f"photo.{suffix}").write_bytes(heic)
    Image.new("RGB", (9, 9)).save(
        tmp_path / "in" / "a.mpo", "MPO", save_all=True, append_images=[Image.new("L", (9, 9))]
    )
    result = run("embed", tmp_path / "in", "--out", tmp_path / "out", "--model", small_bundle)
    assert result.stdout.endswith("4 vectors of 64 from 4 inputs (ok 4)\n")
    assert result.stderr == ""


@pytest.mark.parametrize("megapixels", [(8064, 6048), (8000, 6000), (8160, 6144), (8192, 6144)])
def test_photos_of_48_and_50_megapixels_pass_everywhere(megapixels: tuple[int, int]) -> None:
    for limits in (ImageLimits(), SERVER_LIMITS):
        limits.check_size(*megapixels, "a photo")


@pytest.mark.parametrize(("size", "option"), [((12_000, 9_000), "108"), ((16_320, 12_240), "200")])
def test_larger_photos_need_an_option_which_the_message_names(size: tuple[int, int], option: str) -> None:
    with pytest.raises(ImageError, match=rf"raise the limit with --max-megapixels {option}, or .* --fast-decode\."):
        ImageLimits().check_size(*size, "a photo")
    ImageLimits(max_pixels=int(option) * 1_000_000).check_size(*size, "a photo")
    ImageLimits().check_reduced(*size, "a photo")
    SERVER_LIMITS.check_reduced(*size, "a photo")
    with pytest.raises(ImageError, match=r"allowed; resize it\.$"):
        ImageLimits().check_size(MOST_PIXELS, 2, "a map")


def test_bound_counts_what_a_fast_decode_decodes() -> None:
    image = make_image(np.random.default_rng(1), (180, 180))  # 32,400 pixels; at an eighth 529
    small, large = encode(image, "JPEG"), encode(image.resize((210, 210)), "JPEG")
    progressive = encode(image, "JPEG", progressive=True)
    assert refusal(small, limits=SMALL).status == "too_large"
    assert ImageReader(SMALL, draft_size=(20, 20)).read(small).rgb.size == (23, 23)
    assert refusal(large, limits=SMALL, draft_size=(20, 20)).status == "too_large"  # more than four times the bound
    # Its decoder keeps the coefficients of the whole image, whatever the scale.
    assert refusal(progressive, limits=SMALL, draft_size=(20, 20)).status == "too_large"
    assert ImageReader(draft_size=(20, 20)).read(progressive).rgb.size == (23, 23)
    assert refusal(encode(image, "PNG"), limits=SMALL, draft_size=(20, 20)).status == "too_large"


def test_jpeg_with_a_scan_for_each_color_counts_whole() -> None:
    content = bytearray(encode(make_image(np.random.default_rng(1), (180, 180)), "JPEG"))
    scan = content.index(b"\xff\xda\x00\x0c\x03")
    content[scan : scan + 14] = b"\xff\xda\x00\x08\x01" + bytes(content[scan + 5 : scan + 7]) + b"\x00\x3f\x00"
    assert refusal(bytes(content), limits=SMALL, draft_size=(20, 20)).status == "too_large"


def test_limit_of_pillow_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo of 200 megapixels exceeds it; here the limit is smaller instead."""
    image = make_image(np.random.default_rng(1), (180, 180))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    for format_ in ("JPEG", "PNG", "BMP"):
        assert load_image(encode(image, format_)).size == (180, 180)


@pytest.mark.slow
def test_photo_of_200_megapixels_is_classified(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("L", (16_320, 12_240), 200).save(path, quality=50)
    call = ("classify", path, "--text", "a red star")
    assert_error(run(*call), 1, "16320x12240 pixels, more than the 89,478,485 allowed; resize it, or raise the limit")
    assert run(*call, "--fast-decode").exit_code == 0
    assert run(*call, "--max-megapixels", "200").exit_code == 0


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_long_animations_are_read() -> None:
    """Their later frames are in chunks of some kilobytes, as those of the first one."""
    image = make_image(np.random.default_rng(1), (24, 16))
    data = encode(image, "PNG", save_all=True, append_images=[image.rotate(180)])
    start = data.index(b"fdAT") - 4
    (size,) = struct.unpack_from(">I", data, start)
    (number,) = struct.unpack_from(">I", data, start + 8)
    frame = data[start + 12 : start + 8 + size]
    parts = [frame, *[b""] * 20_000]
    chunks = [png_chunk(b"fdAT", struct.pack(">I", number + place) + part) for place, part in enumerate(parts)]
    animation = data[:start] + b"".join(chunks) + data[start + 12 + size :]
    np.testing.assert_array_equal(np.asarray(load_image(animation)), np.asarray(image))


@pytest.mark.parametrize(("before", "kind"), [(b"IDAT", b"iCCP"), (b"IDAT", b"zTXt"), (b"IEND", b"zTXt")])
def test_error_of_a_png_with_a_long_text_says_what_to_do(before: bytes, kind: bytes) -> None:
    data = encode(make_image(np.random.default_rng(1), (24, 16)))
    place = data.index(before) - 4
    text = png_chunk(kind, b"x\0\0" + zlib.compress(bytes(2_000_000)))
    with pytest.raises(ImageError, match="unpacks to more than 1 MB; save it without metadata"):
        load_image(data[:place] + text + data[place:])


def test_upright_images_keep_their_pixels() -> None:
    """Opening without ``Image.open`` changes nothing."""
    image = make_image(np.random.default_rng(1), (60, 40))
    for format_ in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "QOI", "JPEG2000", "TGA"):
        content = encode(image, format_)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        assert load_image(content).tobytes() == expected.tobytes(), format_


def test_demo_model_reads_heic_like_png(heic: bytes) -> None:
    model = siglip_onnx.load("demo")
    assert np.dot(*model.encode_images([heic, load_image(heic)])) > 0.9999


def test_a_check_at_a_reduced_scale_refuses_what_cannot_be_read_whole() -> None:
    data = encode(make_image(np.random.default_rng(1), (160, 120)), "JPEG")
    assert ImageReader(SMALL, draft_size=(1, 1)).read(data).size == (20, 15)
    for pool in (False, True):
        reader = ImageReader(SMALL, draft_size=(1, 1), counts_file=True)
        with pytest.raises(ImageError, match="160x120 pixels, more than the 10,000"):
            (DecoderPool(reader) if pool else reader).read(data)
    assert _CHECK.counts_file
