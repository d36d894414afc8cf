"""Check ONNX graphs that others exported, before anything runs them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from ..errors import BundleError, first_line
from ..system.files import open_regular
from ..system.names import check_name, leaves_folder
from ..system.sizes import MAX_DIMENSIONS, bounded_product

DOMAINS = {"", "ai.onnx", "com.microsoft"}  # of operators that onnxruntime itself has
_MAX_GRAPH_BYTES = 2**31 - 1  # the limit of one protobuf file
_LOOPS = ("Loop", "Scan", "SequenceMap")  # a tower has a fixed number of layers
_MAX_FILLED = 2**28  # elements of a constant that a node fills; a gigabyte
_NUMBERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT)  # types of shapes, ranges and scales
_MAX_SHAPE_LENGTH = 100  # of a constant that may be a shape
_ELEMENTS_PER_BYTE = 2  # of 4-bit types, the densest


@dataclass(frozen=True)
class ForeignGraph:
    """An ONNX graph from elsewhere, its weights beside it not read yet.

    Attributes:
        path: the file.
        model: its content.
    """

    path: Path
    model: ModelProto

    @property
    def weight_names(self) -> list[str]:
        """The files of its weights, as the graph names them: relative to its folder."""
        return sorted({_location(self.path, tensor) for tensor in _tensors(self.model) if _is_external(tensor)})

    def check(self, input_name: str, dtype: int) -> str:
        """Return why the graph is not a tower with this input, empty if it is one."""
        initialized = {tensor.name for tensor in self.model.graph.initializer}
        inputs = {
            value.name: value.type.tensor_type.elem_type
            for value in self.model.graph.input
            if value.name not in initialized
        }
        if inputs != {input_name: dtype}:
            named = {name: TensorProto.DataType.Name(kind) for name, kind in inputs.items()}
            return f"its inputs are {named}, expected {input_name} of {TensorProto.DataType.Name(dtype)} alone"
        outputs = {value.name: value.type.tensor_type.elem_type for value in self.model.graph.output}
        if outputs.get("pooler_output") not in (TensorProto.FLOAT, TensorProto.UNDEFINED):  # some leave it to inference
            return f"its outputs are {', '.join(outputs)}, expected pooler_output of FLOAT among them"
        return ""


def read_graph(path: Path) -> ForeignGraph:
    """Read a graph without its weights, and check everything that can be checked without them.

    Raises:
        BundleError: the file is not an ONNX graph, has operators of others, or constants of absurd sizes.
    """
    try:
        with open_regular(path) as file:
            size = path.stat().st_size
            if size > _MAX_GRAPH_BYTES:
                raise _refusal(path, f"has {size:,} bytes, more than an ONNX file can have")
            model = onnx.load_model_from_string(file.read())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}. Download it again.") from error
    except BundleError:
        raise
    except Exception as error:  # protobuf's DecodeError has no public home
        raise _refusal(path, f"is not an ONNX graph ({first_line(error):.200})") from error
    if not model.graph.node:
        raise _refusal(path, "is not an ONNX graph: it has no nodes")
    graph = ForeignGraph(path, model)
    _check_operators(graph)
    for tensor in _tensors(model):
        limit = _ELEMENTS_PER_BYTE * size
        elements = _count(path, tensor, limit)
        if not _is_external(tensor) and elements > limit:
            raise _refusal(path, f"has a constant of at least {elements:,} elements in {size:,} bytes")
    _check_filled(graph)
    return graph


def check_weights(graph: ForeignGraph, folder: Path) -> None:
    """Check the files of a graph's weights.

    Raises:
        BundleError: a file is missing, too short, or outside ``folder``.
    """
    for tensor in _tensors(graph.model):
        if not _is_external(tensor):
            continue
        location = _location(graph.path, tensor)
        file = graph.path.parent / location
        if leaves_folder(folder, file):
            raise _refusal(graph.path, f"has weights in {location!r:.200}, outside the folder {folder}")
        if not file.is_file():
            raise BundleError(f"{graph.path} has weights in {location}, which is missing. Download it as well.")
        facts = {entry.key: entry.value for entry in tensor.external_data}
        available = file.stat().st_size
        try:
            offset = int(facts.get("offset", "0"))
            length = int(facts.get("length", str(available - offset)))
        except ValueError as error:
            raise _refusal(graph.path, f"has offsets that are not numbers ({error})") from error
        limit = _ELEMENTS_PER_BYTE * max(length, 0)
        is_too_short = _count(graph.path, tensor, limit) > limit
        if offset < 0 or length < 0 or offset + length > available or is_too_short:
            raise _refusal(
                graph.path,
                f"has the weight {tensor.name!r:.100} of {length:,} bytes at {offset:,} of {location}, which has only "
                f"{available:,} bytes",
            )


def _check_operators(graph: ForeignGraph) -> None:
    if graph.model.functions or graph.model.graph.sparse_initializer:
        raise _refusal(graph.path, "has functions or sparse weights of its own")
    for node in _nodes(graph.model.graph):
        if node.domain not in DOMAINS:
            raise _refusal(
                graph.path, f"has the operator {node.op_type!r:.100} of {node.domain!r:.100}, which onnxruntime lacks"
            )
        if node.op_type in _LOOPS:
            raise _refusal(graph.path, f"has the operator {node.op_type!r}, which towers do not need")


def _check_filled(graph: ForeignGraph) -> None:
    """Refuse a node that makes an array of absurd size of constants: memory would run out when the graph is loaded."""
    constants = dict(_small_constants(graph.model))
    for node in _nodes(graph.model.graph):
        elements = _filled(node, [constants.get(name, []) for name in node.input])
        if elements > _MAX_FILLED:
            raise _refusal(graph.path, f"fills a constant of at least {elements:,} elements")


def _filled(node: NodeProto, inputs: Sequence[Sequence[float]]) -> int:
    """Return at least how many elements the output of a node has, as far as its constant inputs tell; 0 if unknown."""
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Resize", "Upsample"):
        return bounded_product([max(1, math.ceil(side)) for side in (inputs[-1] if inputs else ())], _MAX_FILLED)
    if node.op_type in ("RandomNormal", "RandomUniform"):
        return bounded_product([max(1, side) for side in _integers(node, "shape")], _MAX_FILLED)
    if node.op_type == "Pad":
        pads = _integers(node, "pads") or (inputs[1] if len(inputs) > 1 else [])
        sides = zip(pads, pads[len(pads) // 2 :], strict=False)
        return bounded_product([1 + max(0, int(before)) + max(0, int(after)) for before, after in sides], _MAX_FILLED)
    if node.op_type == "Range" and [len(each) for each in inputs] == [1, 1, 1]:
        (start,), (limit,), (delta,) = inputs
        return int(abs(limit - start) / abs(delta)) if delta else 0
    return 0


def _integers(node: NodeProto, name: str) -> list[int]:
    """Return the value of an attribute, empty if the node has none of this name."""
    return next((list(each.ints) for each in node.attribute if each.name == name), [])


def _small_constants(model: ModelProto) -> Iterator[tuple[str, list[float]]]:
    """Yield the names and finite values of constants that may be shapes, in the graph and in those inside it."""
    for tensor in _initializers(model.graph):
        yield tensor.name, _values(tensor)
    for node in _nodes(model.graph):
        for attribute in node.attribute if node.op_type == "Constant" and node.output else ():
            yield node.output[0], _constant_values(attribute)


def _constant_values(attribute: AttributeProto) -> list[float]:
    """Return the finite numbers of an attribute of the operator ``Constant``."""
    numbers: Sequence[float] = {
        "value_int": [attribute.i], "value_ints": attribute.ints, "value_float": [attribute.f],
        "value_floats": attribute.floats,
    }.get(attribute.name, ())  # fmt: skip
    if attribute.name == "value":
        return _values(attribute.t)
    return [float(number) for number in numbers if math.isfinite(number)]


def _values(tensor: TensorProto) -> list[float]:
    if tensor.data_type in _NUMBERS and not _is_external(tensor) and _is_small(tensor):
        with suppress(ValueError, TypeError):  # damaged, which onnxruntime reports
            return [float(value) for value in onnx.numpy_helper.to_array(tensor).ravel() if math.isfinite(value)]
    return []


def _is_small(tensor: TensorProto) -> bool:
    return bounded_product(tensor.dims, _MAX_SHAPE_LENGTH) <= _MAX_SHAPE_LENGTH


def _initializers(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield the weights of a graph and of the graphs inside it."""
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield the weights and constants of a model and of the graphs inside it."""
    yield from _initializers(model.graph)
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _count(path: Path, tensor: TensorProto, limit: int) -> int:
    """Return the number of elements, or a number above ``limit``."""
    if len(tensor.dims) > MAX_DIMENSIONS:
        raise _refusal(path, f"has the constant {tensor.name!r:.100} of {len(tensor.dims):,} dimensions")
    if any(side < 0 for side in tensor.dims):
        raise _refusal(path, f"has the constant {tensor.name!r:.100} of shape {list(tensor.dims)!r:.100}")
    return bounded_product(tensor.dims, limit)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _location(path: Path, tensor: TensorProto) -> str:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    try:
        check_name(location)
    except ValueError as error:
        raise _refusal(path, f"has weights in {location!r:.200}, outside its folder") from error
    return location


def _refusal(path: Path, problem: str) -> BundleError:
    return BundleError(f"{path} {problem}. Nothing was written; take the model from a source that you trust.")
