"""Shared fixtures: images, real files where they are at hand, and small random checkpoints with their bundles.

The fixtures of checkpoints need PyTorch and the exporter; tests that use none of them run without both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import make_image
from support.material import MATERIAL
from support.shapes import SHAPES


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full`` runs the stress tests at the promised length, ``--fuzz`` decodes more mutated images."""
    parser.addoption("--full", action="store_true", help="stress tests at full length (many minutes)")
    parser.addoption("--fuzz", type=int, default=int(os.environ.get("SIGLIP_ONNX_FUZZ", "10000")),
                     metavar="IMAGES", help="how many mutated images to decode; also SIGLIP_ONNX_FUZZ")  # fmt: skip


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the stress tests run at full length."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, keep nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make_checkpoint(folder: Path, shape: str) -> Path:
    """Write a random checkpoint; the test is skipped without PyTorch."""
    torch = pytest.importorskip("torch")
    from support import checkpoints

    torch.set_num_threads(1)  # the models here are tiny; more threads would only wait for each other
    return checkpoints.make_checkpoint(folder, shape)


def export(checkpoint: Path, out: Path) -> Path:
    """Export a checkpoint to fp32 and int8; the test is skipped without the exporter."""
    pytest.importorskip("onnx_ir")
    from siglip_onnx.export.pipeline import export_bundle

    export_bundle(checkpoint, out)
    return out


@pytest.fixture(scope="session", params=sorted(SHAPES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of each shape."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / request.param, request.param)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint``, exported to fp32 and int8."""
    return export(checkpoint, tmp_path_factory.mktemp("bundle") / checkpoint.name)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small random checkpoint, for tests in which its shape does not matter."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", "square")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_checkpoint``, exported to fp32 and int8."""
    return export(small_checkpoint, tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def image() -> Image.Image:
    """An image with structure, wider than high."""
    return make_image(np.random.default_rng(7))


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Some different images."""
    rng = np.random.default_rng(11)
    return [make_image(rng, size) for size in ((50, 70), (300, 41), (96, 96), (33, 257))]


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real tokenizers, images and texts that ``SIGLIP_ONNX_MATERIAL`` names."""
    path = os.environ.get(MATERIAL)
    if not path:
        pytest.skip(f"{MATERIAL} is not set")
    return Path(path)
