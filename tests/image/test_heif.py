"""HEIC and AVIF files by their boxes: grids of tiles as phones write them, lost tiles, previews, and bombs."""

import io
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from support.counting import count_calls
from support.heif import GAIN_MAP, Part, box, coded, crop, full_box, grid, heif_file, size_of
from support.images import encode, make_image

from siglip_onnx import ImageLimits
from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageReader
from siglip_onnx.image.guard import check_header
from siglip_onnx.image.guard_heif import _Bits
from siglip_onnx.image.heif import Item, read_container, read_extents

pytestmark = pytest.mark.usefixtures("_decoder")
TILE = 64


@pytest.fixture
def _decoder() -> None:
    pytest.importorskip("pillow_heif")


def photo(columns: int = 4, rows: int = 3) -> tuple[bytes, Image.Image, list[Part]]:
    """Return a grid of tiles, cut at its right and lower edges as photos are, its pixels, and the tiles."""
    image = make_image(np.random.default_rng(3), (columns * TILE, rows * TILE))
    boxes = [(x * TILE, y * TILE, (x + 1) * TILE, (y + 1) * TILE) for y in range(rows) for x in range(columns)]
    tiles = [coded(image.crop(place)) for place in boxes]
    size = (columns * TILE - 10, rows * TILE - 6)
    shown = grid(columns, rows, size, range(2, 2 + len(tiles)))
    return heif_file(shown, *tiles), image.crop((0, 0, *size)), tiles


def refusal(content: bytes, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        ImageReader(**options).read(content)  # type: ignore[arg-type]
    return caught.value


def test_a_grid_that_is_cut_is_never_taken_for_a_whole_one() -> None:
    data, image, _ = photo()
    read = ImageReader().read(data)
    assert not read.truncated
    assert np.abs(np.asarray(read.rgb, int) - np.asarray(image, int)).mean() < 8
    for share in (0.3, 0.5, 0.9, 0.99):
        cut = data[: int(len(data) * share)]
        assert refusal(cut).status == "truncated", share
    assert refusal(data[:-1]).status == "truncated"
    part = ImageReader(allow_truncated=True).read(data[: int(len(data) * 0.7)])
    assert part.truncated
    upper = (slice(0, TILE), slice(0, TILE))
    assert np.array_equal(np.asarray(part.rgb)[upper], np.asarray(read.rgb)[upper])


@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_a_grid_with_a_hole_is_truncated(kind: str) -> None:
    data, _, tiles = photo()
    lost = tiles[5].data
    hole = bytes(len(lost)) if kind == "zeros" else np.random.default_rng(0).bytes(len(lost))
    assert refusal(data.replace(lost, hole)).status == "truncated"
    assert ImageReader(allow_truncated=True).read(data.replace(lost, hole)).truncated


def test_padding_behind_the_data_of_a_tile_is_not_a_hole() -> None:
    tile = coded(Image.new("RGB", (TILE, TILE), "red"))
    padded = Part(tile.kind, tile.data + bytes(16), tile.properties)
    assert not ImageReader().read(heif_file(padded)).truncated


def test_cut_avif_is_truncated() -> None:
    data = encode(make_image(np.random.default_rng(1)), "AVIF")
    assert refusal(data[:-1]).status == "truncated"


def test_photos_of_phones_with_many_tiles_and_a_gain_map_pass() -> None:
    """The structure of photos of 48 megapixels, whose tiles have 512 pixels."""
    tile, gray = coded(Image.new("RGB", (TILE, TILE), "red")), coded(Image.new("L", (TILE, TILE), 128))
    columns, rows, part = 16, 12, list(range(2, 194))
    shown = grid(columns, rows, (columns * TILE, rows * TILE), part)
    gain = grid(8, 6, (8 * TILE, 6 * TILE), range(195, 243), auxiliary_of=[1])
    gain = Part(gain.kind, gain.data, (*gain.properties, full_box(b"auxC", GAIN_MAP)), gain.sources, [1])
    data = heif_file(shown, *[tile] * 192, gain, *[gray] * 48)
    exact = ImageLimits(max_pixels=columns * rows * TILE * TILE)
    assert ImageReader(exact).read(data).rgb.size == (1024, 768)
    panorama = heif_file(grid(60, 10, (60 * TILE, 10 * TILE), range(2, 602)), *[tile] * 600)
    assert ImageReader(SERVER_LIMITS).read(panorama).rgb.getpixel((3000, 500))[0] > 200


def frame_of_avif(side: int) -> bytes:
    """Return the coded data of a plain image."""
    file = io.BytesIO(encode(Image.new("RGB", (side, side), "red"), "AVIF"))
    container = read_container(file, "x")
    assert container.primary is not None
    return read_extents(file, container.items[container.primary].extents, 0, 1_000_000)


def bombs() -> dict[str, bytes]:
    large = coded(Image.new("RGB", (1024, 1024), "red"), None, crop(TILE, TILE))
    liar = coded(Image.new("RGB", (1024, 1024), "red"), (TILE, TILE))
    size = (14 * TILE, 14 * TILE)
    same = grid(14, 14, size, [2] * 196)
    overlay = Part(b"iovl", bytes(200), (size_of(TILE, TILE),), [3] * 196)
    return {
        "a tile that is cropped from a large frame": heif_file(same, large),
        "a tile whose frame is larger than it says": heif_file(same, liar),
        "a tile that is made of a large one": heif_file(same, Part(b"iden", b"", (size_of(TILE, TILE),), [3]), large),
        "nested overlays": heif_file(
            Part(b"iovl", bytes(50), (size_of(TILE, TILE),), [2] * 14), Part(b"iovl", bytes(50), (), [3] * 14), large
        ),
        "an overlay of many": heif_file(overlay, large, large),
        "a tile of AVIF": heif_file(same, Part(b"av01", frame_of_avif(1024), (size_of(TILE, TILE),))),
        "a circle": heif_file(Part(b"iovl", b"", (), [2]), Part(b"iovl", b"", (), [1])),
        "many alpha planes": heif_file(
            coded(Image.new("RGB", (TILE, TILE))), *[Part(large.kind, large.data, large.properties, (), [1])] * 100
        ),
    }


def test_frames_count_as_often_as_they_are_decoded() -> None:
    limits = ImageLimits(max_pixels=10_000_000)
    for kind, data in bombs().items():
        with pytest.raises(ImageError, match=r"pixels together|more than 10 deep") as raised:
            check_header(io.BytesIO(data), limits, "x.heic")
        assert raised.value.status == "too_large", kind


def slices(part: Part, first: int, others: int) -> Part:
    """Return a coded image with more slices, of which ``first`` begin another frame, as hidden ones do."""
    start = struct.pack(">IBB", 10, 0x26, 1)
    more = (start + b"\x80" * 8) * first + (start + bytes(8)) * others
    return Part(part.kind, part.data + more, part.properties)


def test_frames_that_are_not_shown_count() -> None:
    red = coded(Image.new("RGB", (TILE, TILE), "red"))
    frame = b"\x32\2ab"  # an OBU
    hidden = Part(b"av01", frame_of_avif(TILE) + frame * 4, (size_of(TILE, TILE),))
    limits = ImageLimits(max_pixels=TILE * TILE)
    for part in (hidden, slices(red, 3, 0), slices(red, 0, 24)):
        check_header(io.BytesIO(heif_file(part)), ImageLimits(), "x.heic")
        with pytest.raises(ImageError, match="pixels together") as raised:
            check_header(io.BytesIO(heif_file(part)), limits, "x.heic")
        assert raised.value.status == "too_large"
    check_header(io.BytesIO(heif_file(slices(red, 1, 8))), limits, "x.heic")


def associations(count: int, *, config: bytes = b"") -> bytes:
    """A file whose images name the same properties again and again."""
    properties = (size_of(TILE, TILE), *([box(b"hvcC", config)] if config else []))
    data = heif_file(*[Part(b"hvc1", b"", properties)] * (600 if config else 1))
    again = struct.pack(">HB", 1, 255) + bytes([1]) * 255
    table = full_box(b"ipma", struct.pack(">I", 380), again * 380)
    return with_more(data, b"iprp", table * count)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: associations(50), "tables of"),
        (lambda: associations(0, config=bytes(22) + b"\1\0\x80\0" + b"\0\1\x40" * 30_000), "parts of coded images"),
        (lambda: heif_file(Part(b"av01", b"", (size_of(8, 8),)), *[Part(b"Exif", bytes(9_000))] * 200), "of EXIF data"),
    ],
)
def test_what_images_share_is_read_once(data: Callable[[], bytes], message: str) -> None:
    """Each property is read once, and all tables and parameters together have a bound."""
    file = io.BytesIO(data())

    def check() -> None:
        with pytest.raises(ImageError, match=message) as raised:
            check_header(file, ImageLimits(), "x.heic")
        assert raised.value.status == "too_large"

    assert count_calls(check) < 3_000_000  # counted: 1.8 million, before 44 and 72 million


def test_numbers_of_endless_zeros_are_cut() -> None:
    """Decoders read at most 32 of them."""
    bits = _Bits(bytes(4) + b"\xff")
    assert bits.read_golomb() == (1 << 32) - 1
    assert bits.read(8) == 255


@pytest.mark.parametrize("frames", [1, 2])
def test_exif_data_of_avif_are_found(frames: int) -> None:
    """Also those of an animation, whose track has them."""
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    exif = Image.Exif()
    exif[0x10F] = "camera"
    options = {"save_all": frames > 1, "append_images": images[1:frames]}
    data = io.BytesIO(encode(images[0], "AVIF", exif=exif, **options))
    found = [read_extents(data, extents, 4, 100) for extents in read_container(data, "x").exif]
    assert found
    assert all(b"camera" in each for each in found)


def test_a_frame_counts_by_its_own_size() -> None:
    for stated, found in (((TILE, TILE), "600x504"), ((5000, 5000), "5000x5000")):
        data = heif_file(coded(Image.new("RGB", (600, 504), "red"), stated))
        with pytest.raises(ImageError, match=f"{found} pixels, more than the 250,000"):
            check_header(io.BytesIO(data), ImageLimits(max_pixels=250_000), "x")
    assert refusal(heif_file(coded(Image.new("RGB", (600, 504)), (300, 200)))).status == "decode_error"
    enlarged = heif_file(Part(b"av01", frame_of_avif(64), (size_of(5000, 5000),)))
    with pytest.raises(ImageError, match="a frame of 4,096 pixels for an image of 5000x5000"):
        check_header(io.BytesIO(enlarged), ImageLimits(), "x")


def test_the_preview_is_not_taken_for_the_photo() -> None:
    """A preview may show anything, such as the photo before it was edited."""
    photo, preview = coded(Image.new("RGB", (512, 512), "red")), coded(Image.new("RGB", (128, 128), "blue"))
    data = heif_file(photo, Part(preview.kind, preview.data, preview.properties, preview_of=[1]))
    for reader in (ImageReader(), ImageReader(draft_size=(128, 128))):
        read = reader.read(data)
        assert read.size == (512, 512)
        red, _, blue = read.rgb.getpixel((64, 64))
        assert (red > 200, blue < 50) == (True, True)


def test_no_other_image_is_taken_for_a_primary_one_that_cannot_be_opened() -> None:
    red, blue = coded(Image.new("RGB", (TILE, TILE), "red")), coded(Image.new("RGB", (TILE, TILE), "blue"))
    assert ImageReader().read(heif_file(red, blue, shown=2)).rgb.getpixel((9, 9))[2] > 200
    size = (size_of(TILE, TILE),)
    for broken in (Part(b"hvc1", blue.data, size), Part(b"jpeg", b"\xff\xd8\xff\xd9", size)):
        for options in ({}, {"allow_truncated": True}):
            error = refusal(heif_file(red, broken, shown=2), **options)
            assert error.status == "decode_error"
            assert "primary image that cannot be opened" in str(error)


def with_more(data: bytes, kind: bytes, more: bytes, place: int | None = None) -> bytes:
    """Return a file with bytes more at the end, or at a place, of the first box of a kind, which all boxes count."""
    start = data.index(kind) - 4
    (size,) = struct.unpack_from(">I", data, start)
    place = start + size if place is None else place
    changed = bytearray(data[:place] + more + data[place:])
    for position, each in ((start, size), *((data.index(b"meta") - 4, 0),) * (kind != b"meta")):
        old = each or struct.unpack_from(">I", data, position)[0]
        struct.pack_into(">I", changed, position, old + len(more))
    return bytes(changed)


@pytest.mark.parametrize("kind", [b"pitm", b"iref", b"iinf", b"iprp", b"iloc", b"meta"])
def test_boxes_that_occur_twice_are_refused(kind: bytes) -> None:
    """Decoders take the first of them."""
    data = heif_file(grid(2, 1, (128, 64), [2, 2]), coded(Image.new("RGB", (TILE, TILE))))
    start = data.index(kind) - 4
    again = data[start : start + struct.unpack_from(">I", data, start)[0]]
    twice = data + again if kind == b"meta" else with_more(data, b"meta", again)
    with pytest.raises(ImageError, match="cannot be read, or occur twice"):
        check_header(io.BytesIO(twice), ImageLimits(), "x.heic")
    check_header(io.BytesIO(data), ImageLimits(), "x.heic")


def test_a_reference_fills_its_box() -> None:
    """Decoders read the next one behind its content, where another reference may stand."""
    hidden = struct.pack(">I4sHHH", 14, b"cdsc", 2, 1, 1)
    data = heif_file(grid(2, 1, (128, 64), [2, 2]), coded(Image.new("RGB", (TILE, TILE))))
    changed = with_more(data, b"dimg", hidden)
    start = changed.index(b"iref") - 4
    struct.pack_into(">I", changed := bytearray(changed), start, struct.unpack_from(">I", changed, start)[0] + 14)
    with pytest.raises(ImageError, match="cannot be read, or occur twice"):
        check_header(io.BytesIO(changed), ImageLimits(), "x.heic")


def test_containers_are_read_as_they_were_written() -> None:
    tile = coded(Image.new("RGB", (TILE, TILE)))
    container = read_container(io.BytesIO(heif_file(grid(2, 1, (128, 64), [2, 2], auxiliary_of=[2]), tile)), "x")
    assert container.primary == 1
    assert vars(container.items[1]) | {"extents": []} == vars(
        Item(b"grid", [], (128, 64), b"", sources=[2, 2], auxiliary_of=[2])
    )
    assert (container.items[2].kind, container.items[2].size) == (b"hvc1", (TILE, TILE))
    assert container.decoded("x") == {2: 2}


@pytest.mark.parametrize("format_", ["HEIC", "AVIF"])
def test_damaged_boxes_are_left_to_the_decoder(format_: str) -> None:
    data = photo(2, 2)[0] if format_ == "HEIC" else encode(Image.new("RGB", (40, 30), "red"), "AVIF")
    rng = np.random.default_rng(5)
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(8, min(len(data), 1500), 3):
            damaged[position] = rng.integers(256)
        with suppress(ImageError):
            ImageReader().read(bytes(damaged[: rng.integers(20, len(data))]))
        with suppress(ImageError):
            ImageReader(allow_truncated=True).read(bytes(damaged))
