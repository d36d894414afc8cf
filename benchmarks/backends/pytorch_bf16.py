"""PyTorch with weights and activations in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.pytorch import PyTorch, files, packages

VARIANTS = {"bf16": ("PyTorch bf16", "eager, model.to(torch.bfloat16), scaled dot product attention")}
NEEDS = ("torch", "transformers")


def prepare(_configuration: Configuration, _calibration: Sequence[Path]) -> None:
    """Nothing to convert."""


def load(configuration: Configuration) -> PyTorch:
    """Load the checkpoint and cast it."""
    backend = PyTorch(configuration)
    backend.model.to(torch.bfloat16)
    backend.dtype = torch.bfloat16
    return backend


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
