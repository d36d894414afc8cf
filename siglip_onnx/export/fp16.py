"""fp16: half the size, for GPUs and Apple accelerators, which compute in it; CPUs convert it to fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graph import RowsTensor

_LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: ir.Model) -> dict[str, Any]:
    """Convert a tower's weights and computation to fp16 in place; inputs and outputs stay f32."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            _halve(value)
    for node in graph:
        constant = node.attributes.get("value")
        if node.op_type == "Constant" and constant is not None and constant.as_tensor().dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_half(constant.as_tensor().numpy())))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        for output in node.outputs:
            output.type = None  # onnxruntime infers it again
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            _cast_input(graph, value)
    for number in range(len(graph.outputs)):
        _cast_output(graph, number)
    return {"method": "fp16 weights and computation; inputs and output f32"}


def store_as_fp16(graph: ir.Graph, endings: tuple[str, ...]) -> None:
    """Store the f32 weights with these endings of names as fp16; a Cast converts them back when the graph is loaded.

    For the weights that int8 and q4 do not quantize: rounding to 11 bits is negligible next to their 8 bits elsewhere.
    """
    for name in [name for name in graph.initializers if name.endswith(endings)]:
        value = graph.initializers[name]
        if value.dtype == ir.DataType.FLOAT:
            readers = list(value.uses())
            _halve(value)
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            for node, index in readers:
                node.replace_input_with(index, cast.outputs[0])
            graph.insert_before(graph[0], cast)


def _halve(value: ir.Value) -> None:
    before = value.const_value
    if before is None:
        raise TypeError(f"{value.name} is not a weight")

    name, shape = before.name or "", ir.Shape(before.shape.numpy())

    def halved() -> ir.TensorProtocol:
        return ir.tensor(_half(before.numpy()), name=name)

    if isinstance(before, RowsTensor):
        value.const_value = RowsTensor(name, ir.DataType.FLOAT16, shape, lambda: map(_half, before.blocks()))
    else:
        value.const_value = ir.LazyTensor(halved, ir.DataType.FLOAT16, shape, name=name)
    value.type = ir.TensorType(ir.DataType.FLOAT16)


def _half(array: NDArray[Any]) -> NDArray[np.float16]:
    """Round to fp16; values beyond its range, such as the score of padding patches, become its largest number."""
    half: NDArray[np.float16] = np.clip(array, -_LARGEST, _LARGEST).astype(np.float16)
    return half


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    readers = list(value.uses())
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, number: int) -> None:
    half = graph.outputs[number]
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
    graph.append(cast)
    cast.outputs[0].name, half.name = half.name, f"{half.name}_fp16"
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), half.shape
    graph.outputs[number] = cast.outputs[0]
