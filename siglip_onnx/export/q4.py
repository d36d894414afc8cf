"""q4: linear layers in 4 bits, in blocks of 32 along the input; the smallest files.

Source: the operators ``MatMulNBits`` and ``GatherBlockQuantized`` of onnxruntime's domain ``com.microsoft``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..head import Floats
from .fp16 import store_as_fp16
from .graph import MICROSOFT
from .int8 import ROWS_AT_ONCE, STORED_AS_FP16, Weight, declare_pair, find_weight, linear_with_bias, replace_nodes

BLOCK = 32
_ZERO = 8  # the stored value of 0
_INT8_COMPUTATION = 4  # accuracy_level
# Scales to try, relative to the one at which the largest value is exact.
_SHRINK = np.linspace(1, 0.8, 5, dtype=np.float32)


def quantize_4bit(model: ir.Model) -> dict[str, Any]:
    """Quantize a tower's linear layers and token table to 4 bits in place; return how."""
    graph = model.graph
    linear, tables = 0, 0
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := find_weight(node.inputs[1])):
            _quantize_linear(graph, node, weight)
            linear += 1
        elif node.op_type == "Gather" and (weight := find_weight(node.inputs[0])):
            _quantize_table(graph, node, weight)
            tables += 1
    store_as_fp16(graph, STORED_AS_FP16)
    return {
        "method": f"weights 4-bit symmetric in blocks of {BLOCK}, scales f32, computed in int8",
        "linear_layers": linear,
        "token_tables": tables,
    }


def quantize_blocks(matrix: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Quantize each row of ``(R, C)`` in blocks of 32: two values per byte ``(R, B, 16)``, the first in the low bits.

    The last block is padded with zeros. Of several scales per block, f32 ``(R, B)``, the one with the least squared
    error is taken; a value is ``(stored - 8) * scale``.
    """
    rows, columns = matrix.shape
    num_blocks = -(-columns // BLOCK)
    packed = np.empty((rows, num_blocks, BLOCK // 2), np.uint8)
    scales = np.empty((rows, num_blocks), np.float32)
    step = max(1, ROWS_AT_ONCE * 64 // columns)
    for start in range(0, rows, step):
        part = matrix[start : start + step]
        blocks = np.pad(part, ((0, 0), (0, num_blocks * BLOCK - columns))).reshape(len(part), num_blocks, BLOCK)
        stored, scale = _best_scale(blocks)
        packed[start : start + step] = stored[..., 0::2] | stored[..., 1::2] << 4
        scales[start : start + step] = scale
    return packed, scales


def _best_scale(blocks: Floats) -> tuple[NDArray[np.uint8], Floats]:
    # The largest magnitude, of either sign, becomes -8: the side of the range with more levels.
    where = np.abs(blocks).argmax(axis=-1, keepdims=True)
    reach = -np.take_along_axis(blocks, where, axis=-1)[..., 0] / 8
    best_error = np.full(reach.shape, np.inf, np.float32)
    best_scale: Floats = np.ones_like(reach)
    best: NDArray[np.uint8] = np.full(blocks.shape, _ZERO, np.uint8)
    for shrink in _SHRINK:
        scale = np.where(reach == 0, np.float32(1), reach * shrink)[..., np.newaxis]
        levels = np.clip(np.rint(blocks / scale), -8, 7)
        error = np.square(levels * scale - blocks).sum(axis=-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale[..., 0], best_scale).astype(np.float32)
        best = np.where(better[..., np.newaxis], levels + _ZERO, best).astype(np.uint8)
    return best, best_scale


def _quantize_linear(graph: ir.Graph, node: ir.Node, weight: Weight) -> None:
    """Replace a MatMul, and the Add of its bias, by one ``MatMulNBits``."""
    tape = ir.tape.Tape()
    num_blocks = -(-weight.rows // BLOCK)
    packed, scales = _initializers(
        tape, weight, (weight.columns, num_blocks, BLOCK // 2), (weight.columns, num_blocks), transposed=True
    )
    old, bias = linear_with_bias(node, weight)
    attributes = {"K": weight.rows, "N": weight.columns, "bits": 4, "block_size": BLOCK,
                  "accuracy_level": _INT8_COMPUTATION}  # fmt: skip
    inputs = [node.inputs[0], packed, scales, None, None, bias]
    replace_nodes(graph, old, tape, tape.op("MatMulNBits", inputs, attributes, domain=MICROSOFT), weight)


def _quantize_table(graph: ir.Graph, node: ir.Node, table: Weight) -> None:
    tape = ir.tape.Tape()
    num_blocks = -(-table.columns // BLOCK)
    packed, scales = _initializers(
        tape, table, (table.rows, num_blocks * BLOCK // 2), (table.rows, num_blocks), transposed=False
    )
    attributes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    rows = tape.op("GatherBlockQuantized", [packed, node.inputs[1], scales], attributes, domain=MICROSOFT)
    if num_blocks * BLOCK != table.columns:
        zero, width, axis = (
            tape.initializer(ir.tensor(np.array([number], np.int64), name=f"{table.name}_{part}"))
            for part, number in (("begin", 0), ("width", table.columns), ("axis", 2))
        )
        rows = tape.op("Slice", [rows, zero, width, axis])
    replace_nodes(graph, [node], tape, rows, table)


def _initializers(
    tape: ir.tape.Tape, weight: Weight, packed_shape: tuple[int, ...], scale_shape: tuple[int, ...], *, transposed: bool
) -> tuple[ir.Value, ir.Value]:
    """Declare the packed weight and its scales, which are computed when the graph is saved."""

    def quantized() -> tuple[NDArray[np.uint8], Floats]:
        matrix = weight.tensor.numpy()
        return quantize_blocks(np.ascontiguousarray(matrix.T) if transposed else matrix)

    return declare_pair(
        tape,
        quantized,
        (f"{weight.name}_q4", ir.DataType.UINT8, packed_shape),
        (f"{weight.name}_scale", ir.DataType.FLOAT, scale_shape),
    )
