"""Streams of many images: in order, bounded, each vector independent of its neighbors; and the fast decode."""

import io
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageSequence
from support.commands import run
from support.images import encode, make_image, save_all

import siglip_onnx
from siglip_onnx import SiglipOnnxError, session, text_tower
from siglip_onnx.bundle import open_bundle
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import ImageError, TextError
from siglip_onnx.image.decode import load_image
from siglip_onnx.system.workers import map_in_order
from siglip_onnx.vision_tower import VisionTower


def test_map_in_order_keeps_the_order_of_slow_items() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.02 if number % 2 == 0 else 0)
        return number

    assert list(map_in_order(slow_if_even, range(30), 4)) == list(range(30))


def test_map_in_order_reads_items_only_as_needed() -> None:
    taken = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = map_in_order(lambda number: -number, endless(), 3)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(taken) <= 5 + 2 * 3
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("siglip_onnx")]


def test_map_in_order_raises_an_exception_at_its_turn() -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = map_in_order(fail_at_three, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


@pytest.mark.parametrize("variant", [pytest.param("fp32", marks=pytest.mark.export), "int8"])
def test_vectors_are_bit_equal_for_any_workers(small_bundle: Path, images: list[Image.Image], variant: str) -> None:
    texts = ["a cat", "赤い丸", "", "word " * 30]
    latency = siglip_onnx.load(small_bundle, variant=variant, threads=2)
    expected, expected_texts = latency.encode_images(images), latency.encode_texts(texts)
    alone = np.concatenate([latency.encode_images(image) for image in images])
    assert_array_equal(alone, expected)
    assert_array_equal(np.concatenate([latency.encode_texts([text]) for text in texts]), expected_texts)
    for workers in (2, 5):
        model = siglip_onnx.load(small_bundle, variant=variant, workers=workers)
        assert_array_equal(model.encode_images(images[::-1])[::-1], expected)
        assert_array_equal(model.encode_images(iter(images)), expected)
        assert_array_equal(model.encode_texts(texts), expected_texts)


@pytest.mark.parametrize("workers", [1, 3])
def test_errors_of_images_keep_their_positions(small_bundle: Path, images: list[Image.Image], workers: int) -> None:
    model = siglip_onnx.load(small_bundle, workers=workers)
    results = list(model.stream_images([images[0], "nowhere.png", images[1]]))
    assert [isinstance(result, ImageError) for result in results] == [False, True, False]
    assert_array_equal(results[2], model.encode_images(images[1])[0])
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        model.encode_images([images[0], "nowhere.png"])


@pytest.mark.export
def test_other_providers_run_batches(
    small_bundle: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = siglip_onnx.load(small_bundle, variant="fp32", workers=2)
    many: list[Image.Image | str] = [*images, "nowhere.png", *images * 6]
    expected = list(model.stream_images(many))
    sizes = []
    tower = model.vision.session
    run = tower.run

    def run_and_count(name: str, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        sizes.append(len(inputs["pixel_values"]))
        return run(name, inputs)

    monkeypatch.setattr(VisionTower, "batch_size", 16)
    monkeypatch.setattr(tower, "run", run_and_count)
    for result, reference in zip(model.stream_images(many), expected, strict=True):
        if isinstance(reference, ImageError):
            assert isinstance(result, ImageError)
        else:
            assert_allclose(result, reference, atol=1e-6)
    assert sizes == [15, 13]


@pytest.mark.parametrize(
    ("workers", "threads", "message"),
    [(0, None, "workers is 0, expected a number from 1"), (2, 4, "2 workers of 4 threads each were requested")],
)
def test_wrong_workers_are_refused(small_bundle: Path, workers: int, threads: int | None, message: str) -> None:
    with pytest.raises(SiglipOnnxError, match=message):
        siglip_onnx.load(small_bundle, workers=workers, threads=threads)


def jpeg(size: tuple[int, int]) -> bytes:
    return encode(make_image(np.random.default_rng(3), size), "JPEG", quality=92)


def test_fast_decode_reads_fewer_pixels_and_stays_near(small_bundle: Path) -> None:
    image = jpeg((1600, 1200))
    assert load_image(image).size == (1600, 1200)
    assert load_image(image, draft_size=(128, 128)).size == (200, 150)
    exact, fast = (siglip_onnx.load(small_bundle, fast_decode=choice) for choice in (False, True))
    (exact_inputs,), (fast_inputs,) = exact.preprocess(image), fast.preprocess(image)
    levels = np.abs(exact_inputs["pixel_values"] - fast_inputs["pixel_values"]) * 127.5
    assert 0 < levels.max() < 6
    assert float(exact.encode_images(image)[0] @ fast.encode_images(image)[0]) > 0.999
    small = jpeg((100, 60))
    assert_array_equal(exact.preprocess(small)[0]["pixel_values"], fast.preprocess(small)[0]["pixel_values"])


def test_commands_take_workers_and_fast_decode(small_bundle: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    paths = save_all(images, tmp_path)
    expected = siglip_onnx.load(small_bundle).encode_images(paths)
    for options in ([], ["--workers", "1"], ["--workers", "3"], ["--fast-decode"]):
        out = tmp_path / "out.npy"
        result = run("embed", *paths, "--out", out, "--model", small_bundle, *options)
        assert result.exit_code == 0, result.stderr
        if options != ["--fast-decode"]:
            assert_array_equal(np.load(out), expected)


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_many_texts_run_side_by_side_with_the_same_bits(
    small_bundle: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variant not in open_bundle(small_bundle).manifest.variants:
        pytest.skip("the demo model has no fp32")
    texts = [f"text {number}" for number in range(40)]
    one_by_one = siglip_onnx.load(small_bundle, variant=variant, threads=2)
    expected = np.concatenate([one_by_one.encode_texts([text]) for text in texts])
    monkeypatch.setattr(text_tower, "MANY_TEXTS", len(texts))
    make_options = session._options
    threads: list[int] = []
    workers: list[int] = []

    def record_options(count: int, kernels: str) -> Any:
        threads.append(count)
        return make_options(count, kernels)

    def record_workers(function: Any, items: Any, count: int) -> Any:
        workers.append(count)
        return map_in_order(function, items, count)

    monkeypatch.setattr(session, "_options", record_options)
    monkeypatch.setattr(text_tower, "map_in_order", record_workers)
    model = siglip_onnx.load(small_bundle, variant=variant, threads=2)
    assert_array_equal(model.encode_texts(texts[:3]), expected[:3])
    assert_array_equal(model.encode_texts(texts), expected)
    assert workers == [1, 2]
    assert threads[-1] == 1
    assert not model.text.session.is_loaded
    with pytest.raises(TextError, match="cannot be a int"):
        model.encode_texts([*texts, 1])  # type: ignore[list-item]
    rows: list[Any] = []
    users = [threading.Thread(target=lambda: rows.append(model.encode_texts(texts))) for _ in range(3)]
    for user in users:
        user.start()
    assert_array_equal(model.encode_texts(texts[:1]), expected[:1])  # meanwhile
    for user in users:
        user.join(60)
    assert len(rows) == 3
    for each in rows:
        assert_array_equal(each, expected)
    assert_array_equal(model.encode_texts(texts[:1]), expected[:1])
    assert threads[-1] == 2
    model.close()
    with pytest.raises(SiglipOnnxError, match="is closed"):
        model.encode_texts(texts)


@pytest.mark.parametrize("kind", ["array", "bytearray", "memoryview", "BytesIO", "PIL"])
def test_generator_may_fill_one_buffer_again_and_again(kind: str) -> None:
    """A camera does so; the workers are still busy with images that the generator gave before."""
    frames = [make_image(np.random.default_rng(seed)) for seed in range(8)]
    files = [encode(frame, "BMP") for frame in frames]  # all of the same size
    array, buffer, file, image = np.asarray(frames[0]).copy(), bytearray(files[0]), io.BytesIO(), frames[0].copy()

    def again() -> Iterator[Any]:
        for frame, content in zip(frames, files, strict=True):
            array[:] = np.asarray(frame)
            buffer[:] = content
            file.seek(0)
            file.write(content)
            image.paste(frame)
            yield {"array": array, "bytearray": buffer, "memoryview": memoryview(buffer), "BytesIO": file,
                   "PIL": image}[kind]  # fmt: skip

    model = siglip_onnx.load("demo", workers=3)
    assert_array_equal(model.encode_images(again()), model.encode_images(frames))


class Camera(Sequence[Any]):
    """Frames by their numbers, all in one array."""

    def __init__(self, frames: Sequence[Image.Image]) -> None:
        self.frames, self.array = frames, np.asarray(frames[0]).copy()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: Any) -> Any:
        self.array[:] = np.asarray(self.frames[number])
        return self.array


def test_sequence_may_fill_one_buffer_again_and_again() -> None:
    frames = [make_image(np.random.default_rng(seed)) for seed in range(8)]
    model = siglip_onnx.load("demo", workers=3)
    assert_array_equal(model.encode_images(Camera(frames)), model.encode_images(frames))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("item", [("x.png", 1), ImageError("x"), ({}, None)])
def test_items_that_are_no_images_take_their_place(item: Any, workers: int) -> None:
    """Data sets of images with labels yield tuples."""
    star = IMAGES_PATH / "red_star.png"
    model = siglip_onnx.load("demo", workers=workers)
    for images in ([item, star], iter([item, star])):
        error, result = model.stream_images(images)
        assert isinstance(error, ImageError)
        assert str(error).startswith(f"An image cannot be a {type(item).__name__}; give a path")
        assert not isinstance(result, ImageError)


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "PNG", "WEBP"])
def test_generator_may_go_on_to_the_next_frame(format_: str, tmp_path: Path) -> None:
    """Pillow gives every frame of a file as the same object."""
    frames = [make_image(np.random.default_rng(seed)) for seed in range(6)]
    path = tmp_path / "frames"
    frames[0].save(path, format_, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        read = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        expected = siglip_onnx.load("demo").encode_images(read)
        model = siglip_onnx.load("demo", workers=3)
        assert_array_equal(model.encode_images(ImageSequence.Iterator(image)), expected)


@pytest.mark.parametrize("kind", ["PIL", "file"])
def test_generator_may_close_its_files(kind: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(paths):
        make_image(np.random.default_rng(seed)).save(path)

    def closed() -> Iterator[Any]:
        for path in paths:
            with Image.open(path) if kind == "PIL" else path.open("rb") as image:
                yield image

    model = siglip_onnx.load("demo", workers=3)
    assert_array_equal(model.encode_images(closed()), model.encode_images(paths))


def test_one_open_file_may_be_given_twice() -> None:
    content = io.BytesIO(encode(make_image(np.random.default_rng(0)), "PNG"))
    model = siglip_onnx.load("demo", workers=3)
    expected = model.encode_images(content)
    for image in (Image.open(content), content):
        assert_array_equal(model.encode_images([image] * 6), np.repeat(expected, 6, axis=0))
