"""Run SigLIP with onnxruntime: probabilities that texts match pictures, without PyTorch.

import siglip_onnx
model = siglip_onnx.load("demo")
for match in model.classify("picture.png", ["a red circle", "青い星"]):
    print(match.text, match.probability)
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# onnxruntime's Linux wheel reports to its maker as soon as it is imported; only the environment prevents it.
TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
ONNXRUNTIME_CAME_FIRST = "onnxruntime" in sys.modules and os.environ.get(TELEMETRY_VARIABLE) != "1"
os.environ.setdefault(TELEMETRY_VARIABLE, "1")

if TYPE_CHECKING:
    from .errors import (
        AccuracyError,
        BenchmarkError,
        BundleError,
        CacheError,
        CheckpointError,
        DownloadError,
        ImageError,
        JobError,
        MissingExtraError,
        ModelNotFoundError,
        ProviderError,
        SiglipOnnxError,
        TextError,
    )
    from .head import Match, sigmoid
    from .hub import load
    from .image_limits import ImageLimits
    from .model import SigLIP

__version__ = "0.1.0"

_HOMES = {
    "load": "hub",
    "SigLIP": "model",
    "Match": "head",
    "sigmoid": "head",
    "SiglipOnnxError": "errors",
    "AccuracyError": "errors",
    "BenchmarkError": "errors",
    "BundleError": "errors",
    "CacheError": "errors",
    "CheckpointError": "errors",
    "DownloadError": "errors",
    "ImageError": "errors",
    "ImageLimits": "image_limits",
    "JobError": "errors",
    "MissingExtraError": "errors",
    "ModelNotFoundError": "errors",
    "ProviderError": "errors",
    "TextError": "errors",
}

__all__ = [
    "AccuracyError",
    "BenchmarkError",
    "BundleError",
    "CacheError",
    "CheckpointError",
    "DownloadError",
    "ImageError",
    "ImageLimits",
    "JobError",
    "Match",
    "MissingExtraError",
    "ModelNotFoundError",
    "ProviderError",
    "SigLIP",
    "SiglipOnnxError",
    "TextError",
    "load",
    "sigmoid",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``siglip-onnx --help`` need not load numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
