"""Markers and shared fixtures: images, real files where they are available, small random checkpoints and bundles.

The fixtures of checkpoints need PyTorch and the exporter; tests that use none of them run without both.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import make_image
from support.shapes import SHAPES

# A test module that imports one of these is skipped where it is not installed.
OPTIONAL = {
    "fastapi", "h11", "httpx2", "ml_dtypes", "onnx", "onnx_ir", "playwright", "safetensors", "sentencepiece",
    "starlette", "torch", "transformers", "trustme", "uvicorn",
}  # fmt: skip
MARKED_FOLDERS = {"export": "export", "verify": "export", "web": "web"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full`` runs the stress tests at the promised length, ``--fuzz`` decodes more mutated images."""
    parser.addoption("--full", action="store_true", help="stress tests at full length (many minutes)")
    parser.addoption("--fuzz", type=int, default=int(os.environ.get("SIGLIP_ONNX_FUZZ", "10000")),
                     metavar="IMAGES", help="how many mutated images to decode; also SIGLIP_ONNX_FUZZ")  # fmt: skip


class OptionalModule(pytest.Module):
    """A test module that is skipped, with the reason, where an optional library that it imports is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = getattr(error.__cause__, "name", None) or ""
            if missing.split(".")[0] in OPTIONAL:
                pytest.skip(f"{missing} is not installed", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Make every test module an :class:`OptionalModule`."""
    return OptionalModule.from_parent(parent, path=module_path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of the exporter where it or PyTorch is not installed."""
    missing = [name for name in ("torch", "onnx_ir") if find_spec(name) is None]
    if missing and item.get_closest_marker("export"):
        pytest.skip(f"{' and '.join(missing)} not installed")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and those that use a checkpoint as ``export``."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(MARKED_FOLDERS[folder])
        if {"checkpoint", "small_checkpoint"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("export")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, neither depend on the user's settings nor write to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SIGLIP_ONNX_MODEL", "HF_HUB_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """A server that a test starts in this process silences messages; the next test needs them again."""
    yield
    for name in ("siglip_onnx.text", "siglip_onnx.image.decode"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def make_checkpoint(folder: Path, shape: str) -> Path:
    import torch
    from support import checkpoints

    torch.set_num_threads(1)  # the models here are tiny; more threads would only wait for each other
    return checkpoints.make_checkpoint(folder, shape)


def export(checkpoint: Path, out: Path) -> Path:
    from siglip_onnx.export.pipeline import export_bundle

    export_bundle(checkpoint, out)
    return out


@pytest.fixture(scope="session", params=sorted(SHAPES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / request.param, request.param)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("bundle") / checkpoint.name)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small random checkpoint, for tests in which its shape does not matter."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", "square")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_checkpoint, tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``small_bundle`` that a test may change."""
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


@pytest.fixture
def image() -> Image.Image:
    """An image with structure, wider than high."""
    return make_image(np.random.default_rng(7))


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(11)
    return [make_image(rng, size) for size in ((50, 70), (300, 41), (96, 96), (33, 257))]


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real tokenizers, images and texts that ``SIGLIP_ONNX_MATERIAL`` names."""
    path = os.environ.get("SIGLIP_ONNX_MATERIAL")
    if not path:
        pytest.skip("SIGLIP_ONNX_MATERIAL is not set")
    return Path(path)
