"""Build ONNX graphs from transformer layers; weights are read when a graph is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..bundle.manifest import data_path
from ..errors import SiglipOnnxError
from .checkpoint import ROWS_AT_ONCE, Weights

OPSET = 20  # the first with Gelu
IR_VERSION = 9
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's fused operators
# Smaller weights stay in the graph file: aligned in the data file, each would take a page of the largest size.
_LARGE_BYTES, _PAGE_BYTES = 16384, 65536
Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]
# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def ignore_progress(_step: str, _done: int, _total: int) -> None:
    """Report nothing."""


class RowsTensor(ir.LazyTensor):
    """A table that is computed, and written, one block of rows after the other: a vocabulary takes a gigabyte."""

    __slots__ = ("_blocks",)

    def __init__(
        self, name: str, dtype: ir.DataType, shape: ir.Shape, blocks: Callable[[], Iterator[NDArray[Any]]]
    ) -> None:
        """``blocks`` starts a new iteration over the rows, in order and in the tensor's type."""
        super().__init__(lambda: ir.tensor(np.concatenate(list(blocks())), name=name), dtype, shape, name=name)
        self._blocks = blocks

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the rows in blocks."""
        return self._blocks()

    def tofile(self, file: BinaryIO) -> None:
        for block in self._blocks():
            file.write(np.ascontiguousarray(block).data)


def row_blocks(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """Yield the rows of a tensor in blocks."""
    if isinstance(tensor, RowsTensor):
        yield from tensor.blocks()
    else:
        array = tensor.numpy()
        for start in range(0, len(array), ROWS_AT_ONCE):
            yield array[start : start + ROWS_AT_ONCE]


class GraphBuilder:
    """Records the nodes of one tower; weights are named as in the checkpoint."""

    def __init__(self, weights: Weights, layer_norm_eps: float, hidden_act: str) -> None:
        self._weights = weights
        self._layer_norm_eps = layer_norm_eps
        self._approximate = "tanh" if hidden_act == "gelu_pytorch_tanh" else "none"
        self._tape = ir.tape.Tape()
        self._constants: dict[str, ir.Value] = {}

    def weight(self, name: str, transform: Transform | None = None) -> ir.Value:
        """Return a tensor of the checkpoint, transformed, as an initializer; it is read when the graph is saved."""
        shape = np.broadcast_to(np.float32(0), self._weights.shape(name))
        if transform is not None:
            shape = transform(shape)

        def read() -> ir.TensorProtocol:
            tensor = self._weights[name]
            return ir.tensor(np.ascontiguousarray(tensor if transform is None else transform(tensor)), name=name)

        return self._tape.initializer(ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(shape.shape), name=name), name)

    def table(self, name: str) -> ir.Value:
        """Return a tensor of the checkpoint as an initializer that is read in blocks of rows."""
        shape = ir.Shape(self._weights.shape(name))
        tensor = RowsTensor(name, ir.DataType.FLOAT, shape, lambda: self._weights.blocks(name))
        return self._tape.initializer(tensor, name)

    def constant(self, value: NDArray[np.float32] | Sequence[int], name: str) -> ir.Value:
        """Return an array, or a list of integers such as a shape, as an initializer, which is shared by its name."""
        if name not in self._constants:
            array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            self._constants[name] = self._tape.initializer(tensor, name)
        return self._constants[name]

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: int | float | str | Sequence[int],
    ) -> ir.Value:
        """Add a node of any type."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def add(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.op("Add", left, right)

    def matmul(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.op("MatMul", left, right)

    def linear(self, x: ir.Value, layer: str) -> ir.Value:
        """``nn.Linear``; PyTorch stores its weight as (out, in)."""
        product = self.matmul(x, self.weight(f"{layer}.weight", np.transpose))
        return self.add(product, self.weight(f"{layer}.bias"))

    def layer_norm(self, x: ir.Value, layer: str) -> ir.Value:
        weight, bias = self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")
        return self.op("LayerNormalization", x, weight, bias, epsilon=self._layer_norm_eps)

    def gelu(self, x: ir.Value) -> ir.Value:
        return self.op("Gelu", x, approximate=self._approximate)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, num_heads: int, mask: ir.Value | None = None
    ) -> ir.Value:
        """Scaled dot-product attention of ``(N, S, D)`` projections, heads next to each other in ``D``.

        ``mask`` i32 ``(N, S)`` is 0 where a key must be ignored.
        """
        inputs = (query, key, value) if mask is None else (query, key, value, None, mask)
        return self.op("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=num_heads)

    def build(self, name: str, inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value]) -> ir.Model:
        """Close the graph with outputs by name, such as ``pooler_output``, f32 ``(N, D)``."""
        for output_name, output in outputs.items():
            output.name = output_name
        graph = ir.Graph(
            inputs,
            list(outputs.values()),
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="siglip_onnx")


def graph_input(name: str, dtype: ir.DataType, shape: Sequence[str | int]) -> ir.Value:
    """Declare a graph's input."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def save_graph(model: ir.Model, path: Path, progress: Progress = ignore_progress) -> None:
    """Write ``path`` and, next to it, ``<path>_data`` with the large weights, aligned for memory mapping.

    Raises:
        CheckpointError: a weight, which is read only now, is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data_path(path.name)

    def report(_tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        progress("writing weights", info.index, info.total)

    try:
        ir.save(
            model,
            path,
            external_data=data,
            size_threshold_bytes=_LARGE_BYTES,
            alignment=_PAGE_BYTES,
            callback=report,
        )
    except ir.serde.SerdeError as error:
        raise _own_cause(error) from error
    (path.parent / data).touch()  # not written for a tiny model, which has no large weights


def _own_cause(error: BaseException) -> BaseException:
    """Return the package's own error that caused one of onnx_ir's, or the latter if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SiglipOnnxError):
        cause = cause.__cause__
    return cause or error
