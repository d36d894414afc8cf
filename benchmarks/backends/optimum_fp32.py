"""The graphs that optimum-onnx exports, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bundle.folder import open_bundle

from .onnx_graphs import SETTINGS, files, load, packages

VARIANTS = {"fp32": ("optimum-onnx fp32", f"graphs as optimum-onnx exports them, opset 18; {SETTINGS}")}
NEEDS = ("optimum.exporters.onnx", "torch", "transformers")


def prepare(configuration: Configuration, _calibration: Sequence[Path]) -> None:
    """Export both towers."""
    from siglip_onnx.export.optimum import trace_towers  # noqa: PLC0415 - exporting needs PyTorch, running does not

    trace_towers(
        Path(configuration.checkpoint), open_bundle(Path(configuration.bundle)).config, Path(configuration.work)
    )


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
