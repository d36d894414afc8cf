"""PyTorch's dynamic quantization: int8 weights, activations measured at run time, oneDNN."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from siglip_onnx.bench.contestant import Configuration
from siglip_onnx.bench.pytorch import PyTorch, files, packages

VARIANTS = {"int8": ("PyTorch dynamic int8", "torch.ao.quantization.quantize_dynamic, Linear layers, engine onednn")}
NEEDS = ("torch", "transformers")


def prepare(_configuration: Configuration, _calibration: Sequence[Path]) -> None:
    """Nothing to convert: weights are quantized when they are loaded, as documented."""


def load(configuration: Configuration) -> PyTorch:
    """Load the checkpoint and quantize it."""
    torch.backends.quantized.engine = "onednn"
    contestant = PyTorch(configuration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchao is to replace it; torchao is measured too
        contestant.model = torch.ao.quantization.quantize_dynamic(
            contestant.model, {torch.nn.Linear}, dtype=torch.qint8
        )
    return contestant


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
