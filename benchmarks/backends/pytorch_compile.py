"""PyTorch compiled by TorchInductor, which needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.pytorch import PyTorch, files, packages
from siglip_onnx.errors import BenchmarkError

# In bf16, which is twice as fast as compiled fp32 on CPUs that have it.
VARIANTS = {
    "bf16": ("PyTorch torch.compile bf16", "bf16, static shapes, weights frozen; kernels from a warm cache on disk")
}
NEEDS = ("torch", "transformers")


def prepare(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Compile once, so that the cache on disk is warm: a start is then as fast as a user's second one."""
    backend = load(configuration)
    backend.vision(backend.preprocess(backend.decode(calibration[0])))
    backend.text(backend.tokenize("a photo of a cat"))


def load(configuration: Configuration) -> PyTorch:
    """Load the checkpoint; each tower is compiled at its first run."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise BenchmarkError("torch.compile needs a C++ compiler, and neither g++ nor clang++ was found.")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = configuration.work
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    backend = PyTorch(configuration)
    backend.model.to(torch.bfloat16)
    backend.dtype = torch.bfloat16
    compile_towers(backend.model)
    return backend


def compile_towers(model: Any) -> None:
    """Compile both towers for the shapes that they are first run with."""
    model.vision_model = torch.compile(model.vision_model, dynamic=False)
    model.text_model = torch.compile(model.text_model, dynamic=False)


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
