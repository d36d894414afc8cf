"""Preprocessed pixels of real images, normal and odd: bit-equal to the reference's slow processors."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from transformers import Siglip2ImageProcessor, SiglipImageProcessor
from transformers.image_utils import load_image as reference_load_image

from siglip_onnx.config import NaflexPreprocessorConfig, PreprocessorConfig
from siglip_onnx.errors import ImageError
from siglip_onnx.image.decode import load_image
from siglip_onnx.image.preprocess import NaflexPreprocessor, SquashPreprocessor

pytestmark = pytest.mark.export
BICUBIC, BILINEAR = 3, 2
PATCHES = (64, 128, 256, 576, 1024)
NO_POSITIONS = np.zeros((4, 8), np.float32)


@pytest.fixture(scope="module")
def real_images(material: Path) -> list[tuple[str, Image.Image]]:
    """All that can be decoded; the loader's tests prove that the others are refused."""
    decoded = list(decode_all(material / "images"))
    assert len(decoded) > 80
    return decoded


def decode_all(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    for kind in ("normal", "odd"):
        for path in sorted((folder / kind).rglob("*")):
            if path.is_file() and path.suffix not in (".md", ".json", ".LICENSE"):
                try:
                    yield path.name, load_image(path, background="drop")
                except ImageError:
                    continue


def test_decoded_pixels(material: Path) -> None:
    """With ``"drop"``, of transparent and deep images too."""
    for path in sorted((material / "images" / "odd").rglob("*.*")):
        try:
            decoded = load_image(path, background="drop")
        except ImageError:
            continue
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            assert_array_equal(np.asarray(decoded), np.asarray(reference_load_image(image)), err_msg=str(path))


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", [224, 384])
def test_squashed_pixels(real_images: list[tuple[str, Image.Image]], size: int, resample: int) -> None:
    ours = SquashPreprocessor(PreprocessorConfig(size, size, resample))
    reference: Any = SiglipImageProcessor(size={"height": size, "width": size}, resample=resample)
    for name, image in real_images:
        expected = reference(image, input_data_format="channels_last", return_tensors="np")["pixel_values"]
        assert_array_equal(ours(image)["pixel_values"], expected, err_msg=name)


@pytest.mark.parametrize("patches", PATCHES)
def test_naflex_patches(real_images: list[tuple[str, Image.Image]], patches: int) -> None:
    ours = NaflexPreprocessor(NaflexPreprocessorConfig(max_num_patches=patches), NO_POSITIONS)
    reference: Any = Siglip2ImageProcessor(max_num_patches=patches)
    for name, image in real_images:
        expected = reference([image], input_data_format="channels_last", return_tensors="np")
        inputs = ours(image)
        count = inputs["pixel_values"].shape[1]
        assert_array_equal(inputs["pixel_values"], expected["pixel_values"][:, :count], err_msg=name)
        assert expected["pixel_attention_mask"].sum() == count == inputs["pixel_attention_mask"].sum()
        assert expected["spatial_shapes"].prod() == count
