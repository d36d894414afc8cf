"""torchao's dynamic int8, compiled, as its documentation asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.pytorch import PyTorch, files
from siglip_onnx.bench.pytorch import packages as pytorch_packages

from .pytorch_compile import compile_towers

VARIANTS = {
    "int8": ("torchao int8", "Int8DynamicActivationInt8WeightConfig, torch.compile, weights frozen, warm kernel cache")
}
NEEDS = ("torch", "transformers", "torchao")


def prepare(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Compile once, so that the cache on disk is warm."""
    backend = load(configuration)
    backend.vision(backend.preprocess(backend.decode(calibration[0])))
    backend.text(backend.tokenize("a photo of a cat"))


def load(configuration: Configuration) -> PyTorch:
    """Load the checkpoint and quantize it; each tower is compiled at its first run."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = configuration.work
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # noqa: PLC0415 - after freezing

    backend = PyTorch(configuration)
    quantize_(backend.model, Int8DynamicActivationInt8WeightConfig())
    compile_towers(backend.model)
    return backend


def packages(configuration: Configuration) -> tuple[str, ...]:
    """Return the packages that compute."""
    return (*pytorch_packages(configuration), "torchao")


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
