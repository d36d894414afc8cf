"""A folder of images and a model for the tests of bulk jobs."""

from pathlib import Path

import numpy as np
import pytest
from support.images import make_image

from siglip_onnx.bulk.spec import ModelSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 37 small images in two levels, and a text file."""
    path = tmp_path / "images"
    (path / "sub").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for number in range(37):
        make_image(rng, (24, 17)).save((path / "sub" if number % 3 else path) / f"{number:02}.png")
    (path / "notes.txt").write_text("not an image")
    return path


@pytest.fixture
def spec(small_bundle: Path) -> ModelSpec:
    return ModelSpec(str(small_bundle))
