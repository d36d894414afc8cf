"""qdq: static int8, activations with scales that are fixed at export; for OpenVINO, TensorRT, QNN and NPUs.

``QuantizeLinear`` and ``DequantizeLinear`` stand around the inputs and weights of linear layers; every operator is of
the standard opset. No scale depends on the input, so the vectors do not depend on what else is in a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..bundle.manifest import FEATURES
from ..head import Floats
from .fp16 import store_as_fp16
from .graph import MICROSOFT
from .int8 import (
    STORED_AS_FP16,
    Weight,
    find_weight,
    linear_with_bias,
    quantize_columns,
    quantize_token_table,
    quantized_initializers,
    replace_nodes,
    split_large,
)

FOLDS = 4
# A range that one quarter of the calibration inputs exceeds by more than this does not generalize.
_MOST_MARGIN = 1.5
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class StaticRange:
    """The largest magnitude of a layer's input on the calibration inputs, and the margin for other inputs.

    The margin is by how much one quarter of the inputs exceeds the others; 1 if none of them does.
    """

    largest: float
    margin: float

    @property
    def generalizes(self) -> bool:
        """Whether the range can be fixed."""
        return self.margin <= _MOST_MARGIN


def static_ranges(
    ranges: Sequence[Mapping[str, Floats]], large_channels: Mapping[str, NDArray[np.int64]]
) -> dict[str, StaticRange]:
    """Return the range of each linear layer's input, without its large channels.

    Args:
        ranges: for each calibration input, the largest magnitude of each channel of each layer's input, f32 ``(in,)``.
        large_channels: by layer, those that are computed in fp32.
    """
    found = {}
    for layer in ranges[0]:
        channels = np.stack([of_input[layer] for of_input in ranges])
        channels[:, large_channels.get(layer, [])] = 0
        largest = channels.max(axis=1)
        folds = np.sort([largest[fold::FOLDS].max() for fold in range(min(FOLDS, len(largest)))])
        margin = folds[-1] / max(folds[-2], _LEAST) if len(folds) > 1 else 1.0
        found[layer] = StaticRange(float(folds[-1]), max(1.0, float(margin)))
    return found


def quantize_static(
    model: ir.Model,
    ranges: Mapping[str, StaticRange],
    large_channels: Mapping[str, NDArray[np.int64]],
    fp32_layers: Collection[str] = (),
    *,
    reduce_range: bool = False,
) -> dict[str, Any]:
    """Quantize a tower's linear layers, except ``fp32_layers``, and its token table in place; return how.

    The weights of a layer whose range does not generalize are int8 too, but its activations stay f32.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "MultiHeadAttention":
            _expand_attention(graph, node)
    quantized: dict[tuple[ir.Value, float], ir.Value] = {}
    linear, tables, f32_activations = 0, 0, {}
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := find_weight(node.inputs[1])):
            layer = weight.name.removesuffix(".weight")
            if layer in fp32_layers:
                continue
            if not ranges[layer].generalizes:
                f32_activations[layer] = round(ranges[layer].margin, 3)
            _quantize_linear(graph, node, weight, ranges[layer], large_channels.get(layer), quantized, reduce_range)
            linear += 1
        elif node.op_type == "Gather" and (weight := find_weight(node.inputs[0])):
            quantize_token_table(graph, node, weight)
            tables += 1
    store_as_fp16(graph, STORED_AS_FP16)
    del graph.opset_imports[MICROSOFT]
    for output in graph.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["batch", "patches", "width"] if output.name == FEATURES else ["batch", "width"])
    margins = [ranges[layer].margin for layer in ranges]
    return {
        "method": f"static int8: weights {7 if reduce_range else 8}-bit symmetric per output channel, activations int8 "
        "symmetric per tensor, ranges fixed at export",
        "linear_layers": linear,
        "token_tables": tables,
        "margin_mean": round(float(np.mean(margins)), 4),
        "margin_max": round(float(np.max(margins)), 4),
        "f32_activations": f32_activations,
        "large_channels": {layer: len(channels) for layer, channels in large_channels.items()},
        "reduce_range": reduce_range,
    }


def _quantize_linear(
    graph: ir.Graph,
    node: ir.Node,
    weight: Weight,
    range_: StaticRange,
    large: NDArray[np.int64] | None,
    quantized: dict[tuple[ir.Value, float], ir.Value],
    reduce_range: bool,
) -> None:
    """Replace a MatMul by one of dequantized inputs and weights; the Add of its bias stays."""
    tape = ir.tape.Tape()
    quantize = partial(quantize_columns, levels=63 if reduce_range else 127)
    int8, scale = quantized_initializers(tape, weight, lambda: quantize(weight.tensor.numpy()), (weight.columns,))
    x = node.inputs[0]
    if x is None:
        raise TypeError(f"{weight.name} multiplies nothing")
    old, bias = linear_with_bias(node, weight)
    product_of_large = None
    if large is not None:
        x, product_of_large = split_large(tape, x, weight, large)
    if range_.generalizes:
        x = _quantize_activations(tape, x, range_, weight, quantized)
    zero = tape.initializer(ir.tensor(np.zeros(weight.columns, np.int8), name=f"{weight.name}_zero"))
    # Without a zero point onnxruntime makes a scalar one where it turns the weight to uint8, and then refuses it.
    product = tape.op("MatMul", [x, tape.op("DequantizeLinear", [int8, scale, zero], {"axis": 1})])
    for term in (product_of_large, bias):
        if term is not None:
            product = tape.op("Add", [product, term])
    replace_nodes(graph, old, tape, product, weight)


def _quantize_activations(
    tape: ir.tape.Tape,
    x: ir.Value,
    range_: StaticRange,
    weight: Weight,
    quantized: dict[tuple[ir.Value, float], ir.Value],
) -> ir.Value:
    """Return ``x`` quantized and dequantized; layers that read the same value share it."""
    scale = max(range_.largest * range_.margin / 127, _LEAST)
    if (x, scale) not in quantized:
        name = weight.name.removesuffix(".weight")
        scale_value = tape.initializer(ir.tensor(np.array(scale, np.float32), name=f"{name}.input_scale"))
        zero = tape.initializer(ir.tensor(np.array(0, np.int8), name=f"{name}.input_zero"))
        levels = tape.op("QuantizeLinear", [x, scale_value, zero])
        quantized[x, scale] = tape.op("DequantizeLinear", [levels, scale_value, zero])
    return quantized[x, scale]


def _expand_attention(graph: ir.Graph, node: ir.Node) -> None:
    """Replace onnxruntime's attention by standard operators."""
    query, key, value, *rest = node.inputs
    mask = rest[1] if len(rest) > 1 else None
    num_heads = node.attributes["num_heads"].as_int()
    width = _width(query)
    tape = ir.tape.Tape()

    def constant(array: Any, name: str) -> ir.Value:
        value_name = f"attention_{name}"
        if value_name not in graph.initializers:
            tensor = ir.tensor(np.array(array), name=value_name)
            type_ = ir.TensorType(tensor.dtype)
            graph.register_initializer(
                ir.Value(name=value_name, type=type_, shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
            )
        return graph.initializers[value_name]

    heads = constant([0, 0, num_heads, width // num_heads], f"heads_{num_heads}_{width}")
    joined = constant([0, 0, width], f"joined_{width}")
    factor = constant(np.float32((width // num_heads) ** -0.5), f"scale_{width // num_heads}")
    queries, keys, values = (
        tape.op("Transpose", [tape.op("Reshape", [x, heads])], {"perm": order})
        for x, order in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3]))
    )
    scores = tape.op("MatMul", [tape.op("Mul", [queries, factor]), keys])
    if mask is not None:
        axes = constant([1, 2], "mask_axes")
        hidden = tape.op("Sub", [tape.op("Cast", [mask], {"to": ir.DataType.FLOAT}), constant(np.float32(1), "one")])
        lowered = tape.op("Mul", [hidden, constant(np.float32(1e4), "hiding")])
        scores = tape.op("Add", [scores, tape.op("Unsqueeze", [lowered, axes])])
    mixed = tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), values])
    rows = tape.op("Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    result = tape.op("Reshape", [rows, joined])
    output = node.outputs[0]
    result.name = output.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [output], [result])


def _width(value: ir.Value | None) -> int:
    """Return the number of channels of a projection: that of its bias."""
    producer = value.producer() if value is not None else None
    if producer is None:
        raise TypeError("an attention reads no projection")
    constants = [other.const_value for other in producer.inputs if other is not None and other.const_value is not None]
    width: int = constants[0].shape.numpy()[-1]
    return width
