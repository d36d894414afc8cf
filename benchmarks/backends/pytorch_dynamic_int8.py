"""PyTorch's dynamic quantization: int8 weights, activations measured at run time, oneDNN."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.pytorch import PyTorch, files, packages

VARIANTS = {"int8": ("PyTorch dynamic int8", "torch.ao.quantization.quantize_dynamic, Linear layers, engine onednn")}
NEEDS = ("torch", "transformers")


def prepare(_configuration: Configuration, _calibration: Sequence[Path]) -> None:
    """Nothing to convert: weights are quantized when they are loaded, as documented."""


def load(configuration: Configuration) -> PyTorch:
    """Load the checkpoint and quantize it."""
    torch.backends.quantized.engine = "onednn"
    backend = PyTorch(configuration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchao replaces it; torchao is measured too
        backend.model = torch.ao.quantization.quantize_dynamic(backend.model, {torch.nn.Linear}, dtype=torch.qint8)
    return backend


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
