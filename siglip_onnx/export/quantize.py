"""int8: weights symmetric per output channel, activations measured at run time, the token table per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graph import MICROSOFT

_ROWS_AT_ONCE = 16384
# A convolution, or in NaFlex a linear layer, and a table of few rows: fp32 wherever they stand.
_LEFT_ALONE = ("patch_embedding.weight", "position_embedding.weight")
Quantized = tuple[NDArray[np.int8], NDArray[np.float32]]


class _Weight(NamedTuple):
    """A matrix of the checkpoint, not read yet."""

    name: str
    tensor: ir.TensorProtocol
    rows: int
    columns: int


def quantize_int8(model: ir.Model) -> dict[str, Any]:
    """Turn a tower's linear layers and token table into int8, in place; says what was done.

    Attention itself and small constants stay in fp32, and so does the patch embedding, where int8 costs accuracy and
    saves nothing.
    """
    graph = model.graph
    linear, tables = 0, 0
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := _find_weight(node.inputs[1])):
            _quantize_linear(graph, node, weight)
            linear += 1
        elif node.op_type == "Gather" and (weight := _find_weight(node.inputs[0])):
            _quantize_table(graph, node, weight)
            tables += 1
    return {
        "method": "dynamic int8: weights int8 symmetric per output channel, activations uint8 per tensor",
        "linear_layers": linear,
        "token_tables": tables,
    }


def quantize_rows(matrix: NDArray[np.float32]) -> Quantized:
    """Quantize each row of ``(R, C)`` symmetrically: int8 ``(R, C)`` and its scale f32 ``(R, 1)``."""
    quantized = np.empty(matrix.shape, np.int8)
    scales = np.empty((len(matrix), 1), np.float32)
    for start in range(0, len(matrix), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        largest = np.abs(matrix[rows]).max(axis=1, keepdims=True)
        scales[rows] = np.where(largest > 0, largest / 127, 1)
        quantized[rows] = np.rint(matrix[rows] / scales[rows])
    return quantized, scales


def quantize_columns(matrix: NDArray[np.float32]) -> Quantized:
    """Quantize each column of ``(R, C)`` symmetrically: int8 ``(R, C)`` and its scale f32 ``(C,)``."""
    quantized, scales = quantize_rows(matrix.T)
    return quantized.T, scales[:, 0]


def _find_weight(value: ir.Value | None) -> _Weight | None:
    """Return the matrix behind ``value`` if it is a weight to quantize; small folded constants are not."""
    if value is None or value.const_value is None or value.name is None:
        return None
    if not value.name.endswith(".weight") or value.name.endswith(_LEFT_ALONE):
        return None
    shape = value.const_value.shape.numpy()
    return _Weight(value.name, value.const_value, *shape) if len(shape) == 2 else None


def _quantize_linear(graph: ir.Graph, node: ir.Node, weight: _Weight) -> None:
    """MatMul, and the Add of a bias behind it, become one ``DynamicQuantizeMatMul``."""
    tape = ir.tape.Tape()
    int8, scale = _quantized_initializers(tape, weight, quantize_columns, (weight.columns,))
    old, bias = [node], None
    consumers = node.outputs[0].consumers()
    if len(consumers) == 1 and consumers[0].op_type == "Add":
        other = next(value for value in consumers[0].inputs if value is not node.outputs[0])
        if other is not None and other.const_value is not None and tuple(other.const_value.shape) == (weight.columns,):
            old, bias = [node, consumers[0]], other
    product = tape.op("DynamicQuantizeMatMul", [node.inputs[0], int8, scale, None, bias], domain=MICROSOFT)
    _replace(graph, old, tape, product, weight)


def _quantize_table(graph: ir.Graph, node: ir.Node, table: _Weight) -> None:
    """Gather from fp32 becomes: gather int8 rows and their scales, multiply. Rows never asked for are never read."""
    ids = node.inputs[1]
    tape = ir.tape.Tape()
    int8, scale = _quantized_initializers(tape, table, quantize_rows, (table.rows, 1))
    rows = tape.op("Cast", [tape.op("Gather", [int8, ids])], {"to": ir.DataType.FLOAT})
    product = tape.op("Mul", [rows, tape.op("Gather", [scale, ids])])
    _replace(graph, [node], tape, product, table)


def _quantized_initializers(
    tape: ir.tape.Tape,
    weight: _Weight,
    quantize: Callable[[NDArray[np.float32]], Quantized],
    scale_shape: tuple[int, ...],
) -> tuple[ir.Value, ir.Value]:
    """Declare the int8 weight and its scale; both are computed when the graph is saved."""

    def int8() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(quantize(weight.tensor.numpy())[0]), name=f"{weight.name}_int8")

    def scale() -> ir.TensorProtocol:
        return ir.tensor(quantize(weight.tensor.numpy())[1], name=f"{weight.name}_scale")

    shape = ir.Shape((weight.rows, weight.columns))
    return (
        tape.initializer(ir.LazyTensor(int8, ir.DataType.INT8, shape, name=f"{weight.name}_int8")),
        tape.initializer(ir.LazyTensor(scale, ir.DataType.FLOAT, ir.Shape(scale_shape), name=f"{weight.name}_scale")),
    )


def _replace(graph: ir.Graph, old: list[ir.Node], tape: ir.tape.Tape, result: ir.Value, weight: _Weight) -> None:
    """Put the tape's nodes in the place of ``old`` nodes, whose last output ``result`` takes over."""
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    last = old[-1].outputs[0]
    result.name = last.name
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, tape.nodes, [last], [result])
    del graph.initializers[weight.name]
