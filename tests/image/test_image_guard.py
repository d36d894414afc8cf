"""Images of every kind; hostile and broken ones are refused from their header, cheaply; no global state changes."""

import ast
import contextlib
import io
import pickle
import re
import struct
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.bombs import icon
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile, ImageOps
from support.commands import assert_error, run
from support.counting import count_calls
from support.images import encode, make_image
from support.source import libraries_of, nodes_of_package

from siglip_onnx import ImageLimits, SiglipOnnxError
from siglip_onnx.bulk.listing import read_file
from siglip_onnx.errors import ImageError
from siglip_onnx.image import FORMATS, SERVER_LIMITS, ImageReader, load_image, open_image
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.image.guard import check_header

SMALL = ImageLimits(max_pixels=1000, max_side=100, max_bytes=2000)


def refusal_of(source: object, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("as_", ["path", "bytes", "pil", "array"])
@pytest.mark.parametrize(("size", "message"), [((40, 30), "40x30 pixels, more than the 1,000"), ((101, 2), "a side")])
def test_limits_hold_for_every_kind_of_source(tmp_path: Path, as_: str, size: tuple[int, int], message: str) -> None:
    image = Image.new("RGB", size)
    path = tmp_path / "large.png"
    path.write_bytes(encode(image))
    source = {"path": path, "bytes": path.read_bytes(), "pil": image, "array": np.asarray(image)}[as_]
    error = refusal_of(source, limits=SMALL)
    assert message in str(error)
    assert error.status == "too_large"
    if as_ == "path":
        assert str(path) in str(error)
    assert load_image(source).size == size


def test_byte_limit_is_known_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    error = refusal_of(path)
    assert error.status == "too_large"
    assert "2,000,000,000 bytes, more than the 512,000,000" in str(error)


def test_the_servers_limits_are_stricter() -> None:
    assert ImageLimits(max_pixels=52_000_000, max_side=16_384, max_bytes=20_000_000) == SERVER_LIMITS
    assert ImageLimits().max_pixels == 89_478_485


@pytest.mark.parametrize("limits", [{"max_pixels": None}, {"max_side": 0}, {"max_bytes": -1}, {"max_pixels": 1 << 40}])
def test_limits_cannot_be_switched_off(limits: dict[str, object]) -> None:
    with pytest.raises(SiglipOnnxError, match="expected"):
        ImageLimits(**limits)  # type: ignore[arg-type]


def test_status_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("too large", status="too_large")))  # noqa: S301
    assert (str(error), error.status) == ("too large", "too_large")
    assert ImageError("x").status == "decode_error"


def test_formats_that_run_programs_are_not_opened() -> None:
    assert refusal_of(encode(Image.new("RGB", (8, 8)), "EPS")).status == "unsupported"
    assert not {"EPS", "WMF", "PDF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG"} & set(FORMATS)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "QOI", "TGA", "AVIF"])
def test_truncated_images_are_refused_unless_allowed(image: Image.Image, format_: str) -> None:
    data = encode(image, format_)
    cut = data[: len(data) * 2 // 3]
    error = refusal_of(cut)
    if format_ not in ("WEBP", "AVIF"):  # decoded whole or not at all: truncated ones look damaged
        assert error.status == "truncated"
        assert "allow truncated" in str(error)
        partial = open_image(cut, allow_truncated=True)
        assert partial.truncated
        same = (np.asarray(partial.rgb) == np.asarray(load_image(data))).all(axis=2).mean()
        assert 0.3 < same < 1
    assert not open_image(data, allow_truncated=True).truncated


def test_pillows_own_switch_neither_changes_nor_is_changed(
    image: Image.Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = encode(image, "JPEG")
    cut = data[: len(data) // 2]
    expected = np.asarray(load_image(cut, allow_truncated=True))
    assert "truncated" in caplog.text
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert refusal_of(cut).status == "truncated"
    assert_array_equal(np.asarray(load_image(cut, allow_truncated=True)), expected)
    for format_ in set(FORMATS) - {"PSD"}:  # which Pillow cannot write
        assert open_image(encode(image, format_)).truncated is False, format_


def test_allowing_truncated_images_does_not_affect_other_threads(image: Image.Image) -> None:
    data = encode(image, "JPEG")
    cut = data[: len(data) // 2]

    def decode(number: int) -> str:
        try:
            return str(open_image(cut, allow_truncated=number % 2 == 0).truncated)
        except ImageError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, range(200))) == ["True", "truncated"] * 100


def test_a_pil_image_stays_as_it_was(image: Image.Image) -> None:
    data = encode(image, "PNG")
    theirs = Image.open(io.BytesIO(data[: len(data) // 2]))
    assert open_image(theirs, allow_truncated=True).truncated
    with pytest.raises(OSError, match="truncated"):
        theirs.load()


def images_with_warnings() -> list[bytes]:
    palette = Image.new("P", (8, 8))
    transparent = encode(palette, "PNG", transparency=b"\x00\x80")
    broken_apng = bytearray(
        encode(Image.new("RGB", (8, 8)), save_all=True, append_images=[Image.new("RGB", (8, 8), 9)])
    )
    position = broken_apng.index(b"acTL")
    broken_apng[position + 4 : position + 8] = bytes(4)
    tiff = bytearray(encode(Image.new("RGB", (8, 8)), "TIFF", dpi=(72, 72)))
    return [transparent, bytes(broken_apng), bytes(tiff[: len(tiff) - 4])]


def test_warning_filters_are_not_changed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        for data in images_with_warnings():
            with contextlib.suppress(ImageError):
                load_image(data, allow_truncated=True)
        assert list(warnings.filters) == before


def test_decoded_pixels_are_pillows(material: Path) -> None:
    """With "drop", accepted images have plain Pillow's pixels, and none that Pillow opens whole is refused."""
    accepted = 0
    for path in sorted((material / "images").rglob("*")):
        if not path.is_file() or path.suffix in (".md", ".json", ".LICENSE"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(path, formats=FORMATS) as image:
                    expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except Exception:
                refusal_of(path)
                continue
            assert_array_equal(np.asarray(load_image(path, background="drop")), expected, err_msg=str(path))
        accepted += 1
    assert accepted > 80


def test_no_other_module_opens_images() -> None:
    """Only image/decode.py and image/openers.py open images, or import more of Pillow than its classes."""
    openers = {"open", "frombytes", "frombuffer", "init", "preinit"}
    for path, node in nodes_of_package():
        if path in ("image/decode.py", "image/openers.py"):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "PIL":
            names = {alias.name for alias in node.names}
            only_writes = (node.module, names) == ("PIL.PngImagePlugin", {"PngInfo"})
            assert node.module == "PIL" or only_writes, path
            assert names <= {
                "Image", "ImageColor", "ImageDraw", "ImageFilter", "ImageFont", "ImagePalette", "PngInfo",
            }, path  # fmt: skip
        if isinstance(node, ast.Import):
            assert not {"PIL", "cv2", "imageio", "skimage"} & libraries_of(node), path
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "Image":
            assert called.attr not in openers, path


def test_command_options(tmp_path: Path, image: Image.Image, small_bundle: Path) -> None:
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    whole.write_bytes(encode(image, "JPEG"))
    cut.write_bytes(whole.read_bytes()[:700])
    call = ["classify", whole, cut, "--text", "a", "--model", small_bundle, "--json"]
    refused = run(*call)
    assert_error(refused, 3, "cut.jpg is truncated")
    assert '"status": "truncated"' in refused.stdout
    allowed = run(*call, "--allow-truncated")
    assert allowed.exit_code == 0
    assert allowed.stdout.count('"truncated": true') == 1
    assert_error(run(*call, "--max-megapixels", "0.001"), 1, "more than the 1,000 allowed")


def test_gray_and_alpha_arrays(image: Image.Image) -> None:
    gray = np.asarray(image.convert("L"))
    expected = np.repeat(gray[..., np.newaxis], 3, axis=2)
    assert_array_equal(np.asarray(load_image(gray)), expected)
    assert_array_equal(np.asarray(load_image(gray[..., np.newaxis])), expected)
    rgba = np.dstack([np.asarray(image), np.zeros(gray.shape, np.uint8)])
    assert (np.asarray(load_image(rgba)) == 255).all()
    assert_array_equal(np.asarray(load_image(rgba, background="drop")), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F", "HSV"])
def test_every_mode_becomes_rgb(image: Image.Image, mode: str) -> None:
    source = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    assert loaded.size == image.size


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("frames", [1, 3])
def test_coded_frame_of_avif_is_what_counts(mode: str, frames: int) -> None:
    """The container says 64 x 64; the decoder would read 600 x 500 and scale it down."""
    image = Image.new(mode, (600, 500), "red")
    others = [Image.new(mode, (600, 500), color) for color in ("lime", "blue")][: frames - 1]
    data = encode(image, "AVIF", save_all=frames > 1, append_images=others)
    limits = ImageLimits(max_pixels=250_000)
    size = struct.pack(">II", 600, 500)
    for position in (match.end() for match in re.finditer(rb"ispe\0\0\0\0", data)):
        assert data[position : position + 8] == size
    small = data.replace(b"ispe\0\0\0\0" + size, b"ispe\0\0\0\0" + struct.pack(">II", 64, 64))
    for content in (data, small):
        with pytest.raises(ImageError, match="600x500 pixels, more than the 250,000") as raised:
            load_image(content, limits=limits)
        assert raised.value.status == "too_large"
    assert load_image(data).size == (600, 500)


def test_cut_entry_does_not_hide_the_frames_of_avif() -> None:
    """The decoder reads only the entries that are counted."""
    data = encode(Image.new("RGB", (600, 500), "red"), "AVIF")
    start = data.index(b"iinf") - 4
    (size,) = struct.unpack_from(">I", data, start)
    meta = data.index(b"meta") - 4
    (meta_size,) = struct.unpack_from(">I", data, meta)
    cut = bytearray(data[: start + size] + struct.pack(">I4s", 8, b"infe") + data[start + size :])
    struct.pack_into(">I", cut, start, size + 8)
    struct.pack_into(">I", cut, meta, meta_size + 8)
    frame = data.index(b"mdat") + 4
    cut = cut.replace(struct.pack(">I", frame), struct.pack(">I", frame + 8))
    assert load_image(bytes(cut)).size == (600, 500)
    for content in (data, bytes(cut)):
        with pytest.raises(ImageError, match="600x500 pixels, more than the 250,000"):
            check_header(io.BytesIO(content), ImageLimits(max_pixels=250_000), "x")


@pytest.mark.parametrize("kind", ["job", "decoder process"])
def test_a_large_file_is_refused_by_its_header_before_it_is_read(kind: str, tmp_path: Path) -> None:
    """A sparse file of half a gigabyte takes nothing on the disk, but would in memory."""
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.write(encode(Image.new("1", (30_000, 30_000)))[:1000])
        file.truncate(60_000_000)
    tracemalloc.start()
    with pytest.raises(ImageError, match="30000x30000 pixels, more than the"):
        read_file(str(path), ImageLimits()) if kind == "job" else DecoderPool(ImageReader()).read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("content", "accepted"), [(b"\0\4\0\1", True), (b"\0\6\0\1\xff\x52", False), (b"\0\5abc", False)]
)
def test_a_marker_that_the_decoder_of_jpeg_2000_skips(content: bytes, accepted: bool) -> None:
    """Such as the profile of a newer edition: what follows is found where its length says, or the file is refused."""
    data = encode(Image.new("RGB", (30, 20), "red"), "JPEG2000", no_jp2=True)
    place = data.index(b"\xff\x52")
    marked = data[:place] + b"\xff\x56" + content + data[place:]
    if accepted:
        assert_array_equal(np.asarray(load_image(marked)), np.asarray(load_image(data)))
    else:
        assert "an unexpected marker ff56" in str(refusal_of(marked))


def test_a_bigtiff_that_pillow_takes_for_another_tiff_is_refused() -> None:
    error = refusal_of(b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(100))
    assert error.status == "unsupported"
    assert "big-endian byte order" in str(error)


def test_a_pointer_to_a_lost_directory_of_a_tiff_is_ignored() -> None:
    image = Image.new("RGB", (40, 30), "red")
    data = encode(image, "TIFF", tiffinfo={34665: 8}) + b"\xee" * 900_000  # the place seems to have many entries
    for place in (len(data) - 890_000, len(data) + 9):
        entry = struct.pack("<HHI", 34665, 4, 1)
        lost = data.replace(entry + data[data.index(entry) + 8 :][:4], entry + struct.pack("<I", place))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_array_equal(np.asarray(load_image(lost)), np.asarray(image))


@pytest.mark.parametrize("format_", ["JPEG2000", "ICO"])
def test_a_host_that_passes_truncated_images_gets_none(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(np.random.default_rng(0), (128, 128))
    options = {"sizes": [(128, 128)]} if format_ == "ICO" else {}
    data = encode(image, format_, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert not open_image(data).truncated
    for share in (0.5, 0.9, 0.99):
        assert refusal_of(data[: int(len(data) * share)]).status == "truncated"


def test_an_icon_of_a_png_whose_header_is_not_first_is_refused() -> None:
    """Pillow takes the last header, wherever it stands, and decodes an icon while it opens it."""
    data = encode(Image.new("L", (64, 64)))
    signature, header, rest = data[:8], data[8:33], data[33:]
    text = struct.pack(">I4s", 8, b"tEXt") + struct.pack(">II", 64, 64) + bytes(4)
    for content in (signature + text + header + rest, signature + header + header + rest):
        for each in (content, icon(content, side=64)):
            assert "one chunk IHDR" in str(refusal_of(each))
    assert load_image(icon(data, side=64)).size == (64, 64)


def test_long_markers_that_the_decoder_of_jpeg_2000_skips_take_no_time() -> None:
    data = encode(Image.new("RGB", (30, 20), "red"), "JPEG2000", no_jp2=True)
    place = data.index(b"\xff\x52")
    marked = data[:place] + (b"\xff\x70\xff\xfc" + bytes(65_530) + b"\xff\x64\0\4ab") * 600 + data[place:]

    def seconds() -> float:
        began = time.process_time()
        check_header(io.BytesIO(marked), ImageLimits(), "x")
        return time.process_time() - began

    assert min(seconds() for _ in range(3)) < 0.3  # measured: 0.02 s; 1.3 s if each byte is looked at in Python


def tiff_of_jpeg(jpeg: bytes, side: int) -> bytes:
    """Write a TIFF whose only strip is a JPEG of three channels."""
    depths = 8 + 2 + 12 * 11 + 4
    tags = [(256, 3, 1, side), (257, 3, 1, side), (258, 3, 3, depths), (259, 3, 1, 7), (262, 3, 1, 6),
            (273, 4, 1, depths + 6), (277, 3, 1, 3), (278, 3, 1, side), (279, 4, 1, len(jpeg)), (284, 3, 1, 1),
            (530, 3, 2, 1 | 1 << 16)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, 11) + entries + bytes(4) + struct.pack("<3H", 8, 8, 8) + jpeg


def test_scans_of_a_jpeg_in_a_tiff_are_counted() -> None:
    """libtiff passes over all pixels for each of up to 100, in each tile that has the same data."""
    image = make_image(np.random.default_rng(0), (64, 64))
    baseline = encode(image, "JPEG", subsampling=0)
    assert load_image(tiff_of_jpeg(baseline, 64)).size == (64, 64)
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"  # of one channel
    for jpeg, problem in (
        (encode(image, "JPEG", subsampling=0, progressive=True), "a progressive or arithmetic-coded JPEG in it"),
        (baseline.replace(b"\xff\xc0", b"\xff\xc9"), "a progressive or arithmetic-coded JPEG in it"),
        (baseline[: baseline.index(b"\xff\xda")] + 9 * scan + b"\xff\xd9", "a JPEG of more than 8 scans"),
    ):
        for data in (tiff_of_jpeg(jpeg, 64), tiff_of_jpeg(jpeg, 64) + bytes(3_000_000)):
            error = refusal_of(data)
            assert problem in str(error)
            assert error.status == "too_large"
    progressive = encode(image, "JPEG", progressive=True)
    place = progressive.index(b"\xff\xc2")
    comment = b"\xff\xfe\0\x08ab\xff\xda\0\x08"  # which looks as if a scan began at its end
    hidden = tiff_of_jpeg(progressive[:place] + comment + progressive[place:], 64)
    assert "a progressive" in str(refusal_of(hidden))
    compression = struct.pack("<HHII", 259, 3, 1, 7)
    twice = hidden.replace(compression, compression + struct.pack("<HHII", 259, 3, 1, 8)).replace(
        struct.pack("<HHII", 284, 3, 1, 1), b""
    )
    assert "a progressive" in str(refusal_of(twice))


def test_other_jpegs_in_a_tiff_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of further pages, and of metadata, are not decoded; lossless ones are decoded in one pass."""
    image = make_image(np.random.default_rng(0), (64, 64))
    baseline = encode(image, "JPEG", subsampling=0)
    other = encode(image, "JPEG", progressive=True)
    assert load_image(tiff_of_jpeg(baseline + other, 64)).size == (64, 64)
    lossless = tiff_of_jpeg(baseline.replace(b"\xff\xc0", b"\xff\xc3"), 64)
    assert refusal_of(lossless).status == "decode_error"  # not too_large: libjpeg says that it is none
    monkeypatch.setattr("siglip_onnx.image.guard_jpeg.MAX_PART_SEGMENTS", 3)
    assert "more than 3 segments" in str(refusal_of(tiff_of_jpeg(baseline, 64)))


def test_jpegs_in_a_tiff_that_overlap_take_no_time() -> None:
    """Each tile may begin elsewhere in the same data, which is read to its end if not all channels are in one scan."""
    jpeg = bytearray(encode(make_image(np.random.default_rng(0), (64, 64)), "JPEG", subsampling=0))
    place = jpeg.index(b"\xff\xda")
    count = 2000
    starts = b"".join(b"\xff\xd8\xff\xfe" + struct.pack(">H", 2 + 6 * left) for left in range(count - 1, -1, -1))
    data = starts + bytes(jpeg[2:place]) + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(2_000_000)
    entries = [(256, 3, 1, 640), (257, 3, 1, 800), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1),
               (322, 3, 1, 16), (323, 3, 1, 16), (324, 4, count, 134), (325, 4, count, 134 + 4 * count)]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries) + bytes(4)
    offsets = struct.pack(f"<{count}I", *(134 + 8 * count + 6 * number for number in range(count)))
    file = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(134, b"\0") + offsets + bytes(4 * count) + data
    calls = count_calls(lambda: refusal_of(file))
    assert "JPEGs in it that overlap" in str(refusal_of(file))
    assert calls < 50_000


@pytest.mark.parametrize("name", ["a\n.png", "a\x1b[2J.png", "a\udc80.png"])
def test_names_of_open_files_are_printable_in_processes_too(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Named(io.BytesIO):
        pass

    deep = Image.fromarray(np.full((4, 5), 1000, np.uint16))
    with contextlib.closing(DecoderPool(ImageReader())) as pool:
        for reader in (pool, ImageReader()):
            for content, expected in ((b"xx", "unsupported"), (encode(deep), None)):
                file = Named(content)
                monkeypatch.setattr(file, "name", name, raising=False)
                if expected is None:
                    reader.read(file)
                    continue
                with pytest.raises(ImageError) as caught:
                    reader.read(file)
                assert caught.value.status == expected
                assert str(caught.value).isprintable()
    assert len(caplog.messages) == 2
    assert all(message.isprintable() and "levels beyond 8 bits" in message for message in caplog.messages)


def test_a_png_for_ios_apps_is_unsupported() -> None:
    data = encode(Image.new("RGB", (4, 4)))
    chunk = struct.pack(">I4s", 4, b"CgBI") + bytes(8)
    error = refusal_of(data[:8] + chunk + data[8:])
    assert (error.status, "for iOS apps" in str(error)) == ("unsupported", True)


def test_boxes_in_the_header_of_a_jp2_are_bounded() -> None:
    data = encode(Image.new("RGB", (4, 4)), "JPEG2000")
    place = data.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", data, place)
    boxes = struct.pack(">I4s", 8, b"free") * 600_000
    long = data[:place] + struct.pack(">I", length + len(boxes)) + data[place + 4 : place + length] + boxes
    error = refusal_of(long + data[place + length :])
    assert (error.status, "a JP2 header of" in str(error)) == ("too_large", True)


def test_an_image_that_is_not_loaded_yet_may_be_shared_by_threads(tmp_path: Path) -> None:
    """Pillow reads the file of the caller's image at its first use, and not for several threads."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((2000, 1500)).save(tmp_path / "a.jpg")
    expected = np.asarray(load_image(tmp_path / "a.jpg"))
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            image = Image.open(tmp_path / "a.jpg")
            for read in threads.map(load_image, [image] * 4):
                assert_array_equal(np.asarray(read), expected)


JPEGS = [{"quality": 100, "subsampling": 0}, {"quality": 30}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 1},
         {"optimize": True}, {"keep_rgb": True}]  # fmt: skip


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_that_ends_early_is_truncated_although_it_has_an_end_marker(mode: str, options: dict[str, Any]) -> None:
    """libjpeg fills up what is missing before the marker without a word; cameras and proxies write it after a cut."""
    image = make_image(np.random.default_rng(0), (203, 151)).convert(mode)
    whole = encode(image, "JPEG", **options)
    pixels = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    for tail in (b"", bytes(100), b"\xff\xd9" + bytes(70_000)):
        assert_array_equal(np.asarray(load_image(whole + tail)), pixels)
        assert all(refusal_of(whole[:-missing]).status == "truncated" for missing in range(3, 40))
        for share in (0.5, 0.9):
            cut = whole[: int(len(whole) * share)].rstrip(b"\xff") + b"\xff\xd9" + tail
            assert refusal_of(cut).status == "truncated"
            partial = open_image(cut, allow_truncated=True)
            assert (partial.truncated, partial.size) == (True, image.size)
    assert open_image(whole, draft_size=(20, 20)).rgb.size == (51, 38)


def test_the_end_of_a_jpeg_is_found_wherever_blocks_of_its_file_end() -> None:
    whole = encode(make_image(np.random.default_rng(0), (64, 48)), "JPEG")
    cut = whole[: len(whole) * 3 // 4].rstrip(b"\xff") + b"\xff\xd9"
    place = whole.index(b"\xff\xdb")  # further segments move the end across that of the first block, of 64 kB
    for missing in range(-3, 4):
        length = 65_536 - len(cut) + missing
        comment = b"\xff\xfe" + struct.pack(">H", length - 2) + bytes(length - 4)
        assert refusal_of(cut[:place] + comment + cut[place:]).status == "truncated"
        complete = whole[:place] + comment + whole[place:]
        assert_array_equal(np.asarray(load_image(complete)), np.asarray(load_image(whole)))


def test_a_photo_whose_decoder_gets_no_thread_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit of processes, of which jobs would record it as damaged."""
    damaged = bytearray(encode(make_image(np.random.default_rng(0), (64, 48)), "AVIF"))
    place = damaged.index(b"mdat") + 4
    damaged[place : place + 20] = b"\xff" * 20
    assert refusal_of(bytes(damaged)).status == "decode_error"

    def refuse(_thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    error = refusal_of(bytes(damaged))
    assert (error.status, "no thread can be started" in str(error)) == ("io_error", True)


def test_fill_bytes_before_the_end_marker_take_no_time() -> None:
    whole = encode(make_image(np.random.default_rng(0), (64, 48)), "JPEG")
    filled = whole[:-2] + b"\xff" * 3_000_000 + whole[-2:]
    assert count_calls(lambda: load_image(filled)) < 20_000
    assert_array_equal(np.asarray(load_image(filled)), np.asarray(load_image(whole)))
