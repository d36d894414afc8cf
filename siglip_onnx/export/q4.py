"""q4: linear layers in 4 bits, in blocks of 32 along the input, and the token table in 8 bits; the smallest files.

Source: the operator ``MatMulNBits`` of onnxruntime's domain ``com.microsoft``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..head import Floats
from .fp16 import store_as_fp16
from .graph import MICROSOFT
from .int8 import (
    STORED_AS_FP16,
    Pair,
    Weight,
    declare_pair,
    find_weight,
    linear_with_bias,
    quantize_token_table,
    replace_nodes,
)

BLOCK = 32
Packed = tuple[NDArray[np.uint8], Floats]
_ZERO = 8  # the stored value of 0
_INT8_COMPUTATION = 4  # accuracy_level
_VALUES_AT_ONCE = 1 << 20
# Scales to try, relative to the one at which the largest value is exact.
_SHRINK = np.linspace(1, 0.8, 5, dtype=np.float32)


def quantize_4bit(model: ir.Model, rounded: Mapping[str, Packed] | None = None) -> dict[str, Any]:
    """Quantize a tower's linear layers to 4 bits and its token table to int8 in place; return how.

    In 4 bits the table alone would cost more accuracy than all layers together: no calibration can round it.
    ``rounded`` holds weights that were rounded by :func:`.rounding.round_calibrated`, by their layers; the others are
    rounded to nearest.
    """
    graph = model.graph
    linear, tables = 0, 0
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := find_weight(node.inputs[1])):
            _quantize_linear(graph, node, weight, (rounded or {}).get(weight.name.removesuffix(".weight")))
            linear += 1
        elif node.op_type == "Gather" and (weight := find_weight(node.inputs[0])):
            quantize_token_table(graph, node, weight)
            tables += 1
    store_as_fp16(graph, STORED_AS_FP16)
    return {
        "method": f"weights 4-bit symmetric in blocks of {BLOCK}, scales f32, computed in int8",
        "calibrated_rounding": bool(rounded),
        "linear_layers": linear,
        "token_tables": tables,
    }


def quantize_blocks(matrix: Floats) -> Packed:
    """Quantize each row of ``(R, C)`` in blocks of 32: two values per byte ``(R, B, 16)``, the first in the low bits.

    The last block is padded with zeros. Of several scales per block, f32 ``(R, B)``, the one with the least squared
    error is taken; a value is ``(stored - 8) * scale``.
    """
    rows, columns = matrix.shape
    num_blocks = -(-columns // BLOCK)
    packed = np.empty((rows, num_blocks, BLOCK // 2), np.uint8)
    scales = np.empty((rows, num_blocks), np.float32)
    step = max(1, _VALUES_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = matrix[start : start + step]
        blocks = np.pad(part, ((0, 0), (0, num_blocks * BLOCK - columns))).reshape(len(part), num_blocks, BLOCK)
        levels, scale = _best_scale(blocks)
        packed[start : start + step] = pack_levels(levels)
        scales[start : start + step] = scale
    return packed, scales


def dequantize_blocks(packed: NDArray[np.uint8], scales: Floats, columns: int) -> Floats:
    """Return the values f32 ``(R, columns)`` that :func:`quantize_blocks` stored."""
    stored = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, BLOCK).astype(np.float32)
    values: Floats = ((stored - _ZERO) * scales[..., np.newaxis]).reshape(len(scales), -1)[:, :columns]
    return values


def pack_levels(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack levels from -8 to 7, two per byte ``(R, B, 16)``."""
    stored = (levels + _ZERO).astype(np.uint8)
    packed: NDArray[np.uint8] = stored[..., 0::2] | (stored[..., 1::2] << np.uint8(4))
    return packed


def choose_scales(blocks: Floats) -> Floats:
    """Return the best scale of each block of ``(R, B, 32)``, f32 ``(R, B)``."""
    return _best_scale(blocks)[1]


def _best_scale(blocks: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return the levels and the scale of each block with the least squared error."""
    # The largest magnitude, of either sign, becomes -8: the side of the range with more levels.
    where = np.abs(blocks).argmax(axis=-1, keepdims=True)
    reach = -np.take_along_axis(blocks, where, axis=-1)[..., 0] / 8
    best_error = np.full(reach.shape, np.inf, np.float32)
    best_scale: Floats = np.ones_like(reach)
    best: NDArray[np.int8] = np.zeros(blocks.shape, np.int8)
    for shrink in _SHRINK:
        scale = np.where(reach == 0, np.float32(1), reach * shrink)[..., np.newaxis]
        levels = np.clip(np.rint(blocks / scale), -8, 7)
        error = np.square(levels * scale - blocks).sum(axis=-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale[..., 0], best_scale).astype(np.float32)
        best = np.where(better[..., np.newaxis], levels, best).astype(np.int8)
    return best, best_scale


def _quantize_linear(graph: ir.Graph, node: ir.Node, weight: Weight, rounded: Packed | None) -> None:
    """Replace a MatMul, and the Add of its bias, by one ``MatMulNBits``."""
    tape = ir.tape.Tape()
    num_blocks = -(-weight.rows // BLOCK)

    def quantize() -> Packed:
        return rounded or quantize_blocks(np.ascontiguousarray(weight.tensor.numpy().T))

    shapes = (weight.columns, num_blocks, BLOCK // 2), (weight.columns, num_blocks)
    packed, scales = _initializers(tape, weight, quantize, *shapes)
    old, bias = linear_with_bias(node, weight)
    attributes = {"K": weight.rows, "N": weight.columns, "bits": 4, "block_size": BLOCK,
                  "accuracy_level": _INT8_COMPUTATION}  # fmt: skip
    inputs = [node.inputs[0], packed, scales, None, None, bias]
    replace_nodes(graph, old, tape, tape.op("MatMulNBits", inputs, attributes, domain=MICROSOFT), weight)


def _initializers(
    tape: ir.tape.Tape,
    weight: Weight,
    quantize: Callable[[], Pair],
    packed_shape: tuple[int, ...],
    scale_shape: tuple[int, ...],
) -> tuple[ir.Value, ir.Value]:
    """Declare the packed weight and its scales, which are computed when the graph is saved."""
    return declare_pair(
        tape,
        quantize,
        (f"{weight.name}_q4", ir.DataType.UINT8, packed_shape),
        (f"{weight.name}_scale", ir.DataType.FLOAT, scale_shape),
    )
