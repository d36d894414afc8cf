"""Rewrite a serialized int8 graph so that onnxruntime loads it sooner, with the same results.

Loading takes onnxruntime long for two reasons. It copies constant weights into the layout of its kernels, which speeds
up later runs by 5 to 30 %. And where its exact kernels of x86 need unsigned weights, see :func:`.int8_saturates`, it
converts them several times slower than numpy does. So here

* weights are declared as inputs of the graph, with themselves as default values. They are not constant then, because a
  caller may replace them, and are used where they are;
* weights are optionally declared unsigned, with the zero point 128. The caller then adds 128 to each, and passes them.

Both apply only to weights of ``DynamicQuantizeMatMul``: products of integers are exact in every layout. Those of
float32 products, which are not, stay as they are. Source of the numbers of fields: ``onnx.proto`` of ONNX 1.23.

Graphs whose weights are in ``<graph>.data``, as version 0.1 named it, are loaded in the usual way. The demo model's are
such, and would gain nothing: to load and run its vision tower once takes 11 ms of CPU time in the usual way and 17 ms
in this one, its text tower 5 and 8 ms, because most weights are in the graphs, which Python must parse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..system.protobuf import Entry, read_fields, read_values, write_fields
from ..system.sizes import MAX_DIMENSIONS

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto
_NODE_INPUT, _OP_TYPE = 1, 4  # of NodeProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 8, 9, 13  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_UINT8, _INT8 = 2, 3  # of TensorProto.DataType
_OPERATOR = b"DynamicQuantizeMatMul"
_WEIGHT, _ZERO_POINT = 1, 3  # of its inputs
_ZERO_POINT_NAME = b"siglip_onnx.zero_point"
ZERO_POINT = 128


@dataclass(frozen=True)
class Weight:
    """A weight: its shape, and where its bytes are in the file beside the graph."""

    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Int8Graph:
    """A parsed graph whose weights are in one file beside it.

    Attributes:
        weights: int8 weights of ``DynamicQuantizeMatMul``, by name.
    """

    weights: dict[str, Weight]
    _others: bytes  # fields of the model beside its graph
    _entries: list[Entry]  # of the graph

    def serialize(self, *, unsigned: bool) -> bytes:
        """Return the model with its weights declared as inputs, int8 or uint8."""
        kind, entries = _INT8, self._entries
        if unsigned:
            zero_point: list[Entry] = [
                (_DATA_TYPE, _UINT8),
                (_NAME, _ZERO_POINT_NAME),
                (_RAW_DATA, bytes([ZERO_POINT])),
            ]
            kind = _UINT8
            entries = [*map(self._make_unsigned, self._entries), (_INITIALIZER, write_fields(zero_point))]
        inputs = [(_INPUT, _describe(name.encode(), weight.shape, kind)) for name, weight in self.weights.items()]
        return self._others + write_fields([(_GRAPH, write_fields([*entries, *inputs]))])

    def _make_unsigned(self, entry: Entry) -> Entry:
        number, value = entry
        if number == _NODE and _is_product(value):
            inputs = read_values(value, _NODE_INPUT)
            if inputs[_WEIGHT].decode() in self.weights:
                inputs[_ZERO_POINT:] = [_ZERO_POINT_NAME, *inputs[_ZERO_POINT + 1 :]]
                others = [field for field in read_fields(value) if field[0] != _NODE_INPUT]
                return number, write_fields([*((_NODE_INPUT, name) for name in inputs), *others])
        if number == _INITIALIZER and read_values(value, _NAME)[0].decode() in self.weights:
            fields = read_fields(value)
            return number, write_fields((key, _UINT8 if key == _DATA_TYPE else field) for key, field in fields)
        return entry


def parse_int8_graph(model: bytes, weights_name: str) -> Int8Graph:
    """Parse a serialized ``ModelProto``; ``weights_name`` is the name of the file beside it.

    Raises:
        ValueError: it is damaged, has no such weights, or has some elsewhere.
    """
    try:
        return _parse(model, weights_name.encode())
    except (IndexError, KeyError) as error:
        raise ValueError("it is not a serialized graph") from error


def _parse(model: bytes, weights_name: bytes) -> Int8Graph:
    fields = list(read_fields(model))
    (graph,) = (value for number, value in fields if number == _GRAPH)
    entries = list(read_fields(graph))
    used = set()
    for number, node in entries:
        if number == _NODE and _is_product(node):
            inputs = read_values(node, _NODE_INPUT)
            if any(inputs[_ZERO_POINT : _ZERO_POINT + 1]) or len(inputs) < _ZERO_POINT:
                raise ValueError("its weights have zero points")
            used.add(inputs[_WEIGHT])
    weights = {}
    for number, tensor in entries:
        external = _external_data(tensor) if number == _INITIALIZER else {}
        if external.get(b"location", weights_name) != weights_name:
            raise ValueError("its weights are elsewhere")
        if external and (_DATA_TYPE, _INT8) in read_fields(tensor) and (name := read_values(tensor, _NAME)[0]) in used:
            shape = tuple(value for key, value in read_fields(tensor) if key == _DIMS and isinstance(value, int))
            weight = Weight(shape, int(external[b"offset"]), int(external[b"length"]))
            if len(shape) > MAX_DIMENSIONS or math.prod(shape) != weight.length:
                raise ValueError("a weight has the wrong size")
            weights[name.decode()] = weight
    if not weights:
        raise ValueError("it has no int8 weights")
    return Int8Graph(weights, write_fields(field for field in fields if field[0] != _GRAPH), entries)


def _is_product(node: int | bytes) -> bool:
    return read_values(node, _OP_TYPE) == [_OPERATOR]


def _external_data(tensor: int | bytes) -> dict[bytes, bytes]:
    return {read_values(entry, _KEY)[0]: read_values(entry, _VALUE)[0] for entry in read_values(tensor, _EXTERNAL_DATA)}


def _describe(name: bytes, shape: Iterable[int], kind: int) -> bytes:
    """Return the ``ValueInfoProto`` of a tensor."""
    dimensions = write_fields((1, write_fields([(1, size)])) for size in shape)
    tensor = write_fields([(1, kind), (2, dimensions)])
    return write_fields([(1, name), (2, write_fields([(1, tensor)]))])
