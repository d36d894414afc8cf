"""The recipe of transformers.js for its files ``*_quantized.onnx``, on the graphs that optimum exports.

Dynamic int8, per tensor, every operator of onnxruntime's integer registry; weights are uint8 in a graph with a
convolution, which is the vision tower, and int8 in the others. Source: ``scripts/quantize.py`` of transformers.js 3,
mode q8 with its defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.config import TOWERS

from . import optimum_fp32
from .onnx_graphs import SETTINGS, files, graph_of, load, packages

VARIANTS = {"q8": ("transformers.js q8", f"its quantize.py, mode q8: vision uint8 weights, text int8; {SETTINGS}")}
NEEDS = ("optimum.exporters.onnx", "torch", "transformers")


def prepare(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Export both towers and quantize them."""
    import onnx  # noqa: PLC0415 - running needs none of these
    from onnxruntime.quantization import QuantizationMode, QuantType  # noqa: PLC0415
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer  # noqa: PLC0415
    from onnxruntime.quantization.registry import IntegerOpsRegistry  # noqa: PLC0415

    optimum_fp32.prepare(configuration, calibration)
    for tower in TOWERS:
        path = graph_of(configuration, tower)
        model = onnx.load(path)
        convolutes = any(node.op_type == "Conv" for node in model.graph.node)
        quantizer = ONNXQuantizer(
            model,
            per_channel=False,
            reduce_range=False,
            mode=QuantizationMode.IntegerOps,
            static=False,
            weight_qType=QuantType.QUInt8 if convolutes else QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(IntegerOpsRegistry),
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
        for old in path.parent.glob(f"{tower}.onnx*"):
            old.unlink()
        onnx.save(quantizer.model.model, path)


__all__ = ["NEEDS", "VARIANTS", "files", "load", "packages", "prepare"]
