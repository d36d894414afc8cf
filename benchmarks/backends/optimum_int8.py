"""optimum's ORTQuantizer on the graphs that optimum exports."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.config import TOWERS

from . import optimum_fp32
from .onnx_graphs import SETTINGS, files, graph_of, load, packages

VARIANTS = {
    "int8": ("optimum-onnx int8", f"ORTQuantizer, AutoQuantizationConfig.avx512_vnni, dynamic, per channel; {SETTINGS}")
}
NEEDS = ("optimum.onnxruntime", "torch", "transformers")


def prepare(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Export both towers and quantize them."""
    from optimum.onnxruntime import ORTQuantizer  # noqa: PLC0415 - running does not need it
    from optimum.onnxruntime.configuration import AutoQuantizationConfig  # noqa: PLC0415

    optimum_fp32.prepare(configuration, calibration)
    work = Path(configuration.work)
    shutil.copy(Path(configuration.checkpoint) / "config.json", work / "config.json")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    for tower in TOWERS:
        quantizer = ORTQuantizer.from_pretrained(work, file_name=f"{tower}.onnx")
        quantizer.quantize(save_dir=work / "int8", quantization_config=settings, file_suffix="")
        for path in work.glob(f"{tower}.onnx*"):
            path.unlink()
    for path in (work / "int8").glob("*.onnx*"):
        path.rename(work / path.name)
    assert all(graph_of(configuration, tower).exists() for tower in TOWERS)


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
