"""What the tests share: small random checkpoints made here, their bundles, and real files where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SHAPES, make_checkpoint
from PIL import Image

from siglip_onnx.export.pipeline import export_bundle

MATERIAL = "SIGLIP_ONNX_MATERIAL"
torch.set_num_threads(1)  # the models here are tiny; threads would only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full`` runs the stress tests at the length that is promised, ``--fuzz`` the fuzzing of pictures longer."""
    parser.addoption("--full", action="store_true", help="stress tests at full length (many minutes)")
    parser.addoption("--fuzz", type=int, default=int(os.environ.get("SIGLIP_ONNX_FUZZ", "10000")),
                     metavar="PICTURES", help="how many mutated pictures to decode; also SIGLIP_ONNX_FUZZ")  # fmt: skip


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


@pytest.fixture(scope="session", params=sorted(SHAPES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of each shape."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / request.param, request.param)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint``, exported to fp32 and int8."""
    out = tmp_path_factory.mktemp("bundle") / checkpoint.name
    export_bundle(checkpoint, out)
    return out


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small random checkpoint, for tests in which its shape does not matter."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", "square")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_checkpoint``, exported to fp32 and int8."""
    out = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(small_checkpoint, out)
    return out


@pytest.fixture
def picture() -> Image.Image:
    """A picture with structure, wider than high."""
    return make_picture(np.random.default_rng(7))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Some different ones."""
    rng = np.random.default_rng(11)
    return [make_picture(rng, size) for size in ((50, 70), (300, 41), (96, 96), (33, 257))]


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real tokenizers, pictures and texts that ``SIGLIP_ONNX_MATERIAL`` names."""
    path = os.environ.get(MATERIAL)
    if not path:
        pytest.skip(f"{MATERIAL} is not set")
    return Path(path)


def run_without(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own that does not have ``package``."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from siglip_onnx.cli import main\n"
        f"main({[str(argument) for argument in arguments]!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def make_picture(rng: np.random.Generator, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Blobs of colour and some noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse) + rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
