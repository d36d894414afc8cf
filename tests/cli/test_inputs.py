"""Files of texts and folders of images, as commands take them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import make_image

from siglip_onnx.cli import inputs
from siglip_onnx.cli.inputs import find_images, read_texts
from siglip_onnx.errors import ImageError, SiglipOnnxError, TextError


def test_errors_of_a_file_are_not_errors_of_a_text(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.txt", "does not exist"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(SiglipOnnxError, match=message) as raised:
            read_texts([], path)
        assert not isinstance(raised.value, TextError)


def test_unreadable_images_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "b.png", "deep/c.webp", "cut.jpg", "cut.png"):
        make_image(rng, (500, 400)).save(tmp_path / name)
    for name in ("cut.jpg", "cut.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "notes.txt").write_text("not an image")
    assert [path.name for path in find_images(tmp_path, "--images")] == ["a.jpg", "b.png", "c.webp"]
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(" is ")[0]).name for line in lines] == ["cut.jpg", "cut.png", "notes.txt"]
    assert all(line.startswith("siglip-onnx: skipped: ") for line in lines)


def test_jpegs_are_checked_at_an_eighth_of_their_size(tmp_path: Path) -> None:
    make_image(np.random.default_rng(4), (1600, 800)).save(tmp_path / "a.jpg")
    assert inputs._CHECK.read(tmp_path / "a.jpg").rgb.size == (200, 100)


def test_a_sample_is_spaced_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    assert [path.stem for path in find_images(tmp_path, "--images", at_most=3)] == ["0", "3", "6"]
    assert "using 3 of the 10 files" in capsys.readouterr().err


def test_a_folder_without_images(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "contains no readable image")):
        with pytest.raises(SiglipOnnxError, match=f"{message}; --images expects a folder of images") as raised:
            find_images(folder, "--images")
        assert not isinstance(raised.value, ImageError)
