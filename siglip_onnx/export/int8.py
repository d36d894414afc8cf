"""int8: weights quantized per output channel, activations at run time, the token table per row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..head import Floats
from .fp16 import store_as_fp16
from .graph import MICROSOFT, row_blocks

# A convolution (in NaFlex a linear layer) and a table of few rows: never quantized, in any graph.
_EMBEDDINGS = ("patch_embedding.weight", "position_embedding.weight")
# Nor is a classifier's last layer: it is small, and its errors are those of the logits.
NEVER_QUANTIZED = (*_EMBEDDINGS, "classifier.weight")
STORED_AS_FP16 = (*_EMBEDDINGS, ".in_proj_weight")
# A channel is large if it exceeds the usual ones by this factor; at most so many are computed in fp32.
_LARGE, _MAX_LARGE = 4.0, 64
Quantized = tuple[NDArray[np.int8], Floats]
Pair = tuple[NDArray[Any], NDArray[Any]]


class Weight(NamedTuple):
    """A matrix of the checkpoint, not yet read."""

    name: str
    tensor: ir.TensorProtocol
    rows: int
    columns: int


@dataclass(frozen=True)
class Int8Choices:
    """How a tower is quantized to int8.

    ``large_channels`` lists by layer the input channels that are computed in fp32: they are so large that one scale for
    all channels would leave few levels to the others. ``reduce_range`` keeps weights within 7 bits, so that the fast
    instructions of x86 CPUs without VNNI cannot saturate.
    """

    large_channels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    reduce_range: bool = False


def quantize_int8(model: ir.Model, choices: Int8Choices, fp32_layers: Collection[str] = ()) -> dict[str, Any]:
    """Quantize a tower's linear layers, except ``fp32_layers``, and its token table in place; return how.

    Attention and small constants stay in fp32, and so does the patch embedding, where int8 costs accuracy and saves
    nothing.
    """
    graph = model.graph
    linear, tables, num_large = 0, 0, {}
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := find_weight(node.inputs[1])):
            layer = weight.name.removesuffix(".weight")
            if layer in fp32_layers:
                continue
            large = choices.large_channels.get(layer)
            if large is not None:
                num_large[layer] = len(large)
            _quantize_linear(graph, node, weight, large, choices.reduce_range)
            linear += 1
        elif node.op_type == "Gather" and (weight := find_weight(node.inputs[0])):
            quantize_token_table(graph, node, weight)
            tables += 1
    store_as_fp16(graph, STORED_AS_FP16)
    bits = 7 if choices.reduce_range else 8
    return {
        "method": f"dynamic int8: weights {bits}-bit symmetric per output channel, activations uint8 per tensor",
        "linear_layers": linear,
        "token_tables": tables,
        "large_channels": num_large,
        "reduce_range": choices.reduce_range,
    }


def find_large_channels(ranges: Mapping[str, Floats]) -> dict[str, NDArray[np.int64]]:
    """Return the indices of the few channels that are far larger than the rest, for each layer that follows a GELU.

    In other places :func:`.equalize.equalize` moves them into the weights.

    Args:
        ranges: for each linear layer the largest magnitude of each input channel, f32 ``(in,)``.
    """
    channels = {}
    for layer, largest in ranges.items():
        if layer.endswith(".fc2"):
            order = np.argsort(largest)[::-1]
            usual = largest[order[min(_MAX_LARGE, len(order) // 8)]]
            large = order[largest[order] > _LARGE * usual]
            if 0 < len(large) <= _MAX_LARGE:
                channels[layer] = np.sort(large)
    return channels


def quantize_rows(matrix: Floats, levels: int = 127) -> Quantized:
    """Quantize each row of ``(R, C)`` to ``±levels``: int8 ``(R, C)`` and its scale f32 ``(R, 1)``."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / levels, 1).astype(np.float32)
    return np.rint(matrix / scales).astype(np.int8), scales


def quantize_table(table: ir.TensorProtocol, quantize_block: Callable[[Floats], Pair]) -> Pair:
    """Quantize a table one block of rows after the other."""
    first, second = zip(*map(quantize_block, row_blocks(table)), strict=True)
    return np.concatenate(first), np.concatenate(second)


def quantize_columns(matrix: Floats, levels: int = 127) -> Quantized:
    """Quantize each column of ``(R, C)`` to ``±levels``: int8 ``(R, C)`` and its scale f32 ``(C,)``."""
    quantized, scales = quantize_rows(matrix.T, levels)
    return quantized.T, scales[:, 0]


def find_weight(value: ir.Value | None) -> Weight | None:
    """Return the matrix of ``value`` if it is a weight to quantize; small folded constants are not."""
    if value is None or value.const_value is None or value.name is None:
        return None
    if not value.name.endswith(".weight") or value.name.endswith(NEVER_QUANTIZED):
        return None
    shape = value.const_value.shape.numpy()
    return Weight(value.name, value.const_value, *shape) if len(shape) == 2 else None


def _quantize_linear(
    graph: ir.Graph, node: ir.Node, weight: Weight, large: NDArray[np.int64] | None, reduce_range: bool
) -> None:
    """Replace a MatMul, and the Add of its bias, by one ``DynamicQuantizeMatMul``."""
    tape = ir.tape.Tape()
    quantize = partial(quantize_columns, levels=63 if reduce_range else 127)
    int8, scale = quantized_initializers(tape, weight, lambda: quantize(weight.tensor.numpy()), (weight.columns,))
    old, bias = linear_with_bias(node, weight)
    x = node.inputs[0]
    if large is None:
        product = tape.op("DynamicQuantizeMatMul", [x, int8, scale, None, bias], domain=MICROSOFT)
    else:
        small, product_of_large = split_large(tape, x, weight, large)
        small = tape.op("DynamicQuantizeMatMul", [small, int8, scale, None, bias], domain=MICROSOFT)
        product = tape.op("Add", [small, product_of_large])
    replace_nodes(graph, old, tape, product, weight)


def linear_with_bias(node: ir.Node, weight: Weight) -> tuple[list[ir.Node], ir.Value | None]:
    """Return a MatMul with the Add of its bias, and the bias; or the MatMul alone."""
    consumers = node.outputs[0].consumers()
    if len(consumers) == 1 and consumers[0].op_type == "Add":
        other = next(value for value in consumers[0].inputs if value is not node.outputs[0])
        if other is not None and other.const_value is not None and tuple(other.const_value.shape) == (weight.columns,):
            return [node, consumers[0]], other
    return [node], None


def split_large(
    tape: ir.tape.Tape, x: ir.Value | None, weight: Weight, large: NDArray[np.int64]
) -> tuple[ir.Value, ir.Value]:
    """Return ``x`` with its large channels set to 0, and their part of the product in fp32."""
    mask = np.ones(weight.rows, np.float32)
    mask[large] = 0
    indices = tape.initializer(ir.tensor(large, name=f"{weight.name}_large"))
    small = tape.op("Mul", [x, tape.initializer(ir.tensor(mask, name=f"{weight.name}_small"))])

    def rows() -> ir.TensorProtocol:
        return ir.tensor(weight.tensor.numpy()[large], name=f"{weight.name}_large_rows")

    shape = ir.Shape((len(large), weight.columns))
    large_rows = ir.LazyTensor(rows, ir.DataType.FLOAT, shape, name=f"{weight.name}_large_rows")
    picked = tape.op("Gather", [x, indices], {"axis": -1})
    return small, tape.op("MatMul", [picked, tape.initializer(large_rows)])


def quantize_token_table(graph: ir.Graph, node: ir.Node, table: Weight) -> None:
    """Replace a Gather from fp32 by those of int8 rows and of their scales, multiplied. Unused rows are never read."""
    ids = node.inputs[1]
    tape = ir.tape.Tape()
    int8, scale = quantized_initializers(
        tape, table, lambda: quantize_table(table.tensor, quantize_rows), (table.rows, 1)
    )
    rows = tape.op("Cast", [tape.op("Gather", [int8, ids])], {"to": ir.DataType.FLOAT})
    product = tape.op("Mul", [rows, tape.op("Gather", [scale, ids])])
    replace_nodes(graph, [node], tape, product, table)


def quantized_initializers(
    tape: ir.tape.Tape, weight: Weight, quantize: Callable[[], Pair], scale_shape: tuple[int, ...]
) -> tuple[ir.Value, ir.Value]:
    """Declare the int8 weight and its scale, which are computed when the graph is saved."""
    return declare_pair(
        tape,
        quantize,
        (f"{weight.name}_int8", ir.DataType.INT8, (weight.rows, weight.columns)),
        (f"{weight.name}_scale", ir.DataType.FLOAT, scale_shape),
    )


Declaration = tuple[str, ir.DataType, tuple[int, ...]]


def declare_pair(
    tape: ir.tape.Tape,
    compute: Callable[[], Pair],
    *declarations: Declaration,
) -> tuple[ir.Value, ir.Value]:
    """Declare two initializers that are computed together, when the first of them is saved."""
    computed: dict[int, NDArray[Any]] = {}

    def part(number: int) -> ir.TensorProtocol:
        if number not in computed:
            computed.update(enumerate(compute()))
        name, _, shape = declarations[number]
        return ir.tensor(np.ascontiguousarray(computed.pop(number)).reshape(shape), name=name)

    first, second = (
        tape.initializer(ir.LazyTensor(partial(part, number), dtype, ir.Shape(shape), name=name))
        for number, (name, dtype, shape) in enumerate(declarations)
    )
    return first, second


def replace_nodes(graph: ir.Graph, old: list[ir.Node], tape: ir.tape.Tape, result: ir.Value, weight: Weight) -> None:
    """Replace ``old`` nodes by those of the tape; ``result`` replaces their last output."""
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    last = old[-1].outputs[0]
    result.name = last.name
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, tape.nodes, [last], [result])
    del graph.initializers[weight.name]
