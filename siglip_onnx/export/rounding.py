"""Round 4-bit weights so that a layer's outputs on the calibration inputs stay close, not each weight alone.

Weights are rounded one input channel after the other, and the error of each is compensated by the channels that are not
rounded yet. The tower is walked through part by part, on the activations behind the parts that are rounded already.
Source: GPTQ (arXiv 2210.17323).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from ..bundle.manifest import POOLED
from ..head import Floats
from ..session import return_free_memory
from .calibration import Inputs, linear_layers, list_progress, session_of
from .graph import Progress, ignore_progress
from .q4 import BLOCK, Packed, choose_scales, dequantize_blocks, pack_levels

_DAMPING = 0.01  # relative to the mean of a Gram matrix's diagonal
_GRAM = ":gram"
_ENCODER_LAYER = re.compile(r"(?:.*\.)?encoder\.layers\.\d+")
Doubles = NDArray[np.float64]


class Part(NamedTuple):
    """A part of a tower: a graph to the value ``end`` whose linear weights are inputs.

    ``sources`` is the value that each of its linear layers reads; the products of its channels are outputs too.
    """

    model: onnx.ModelProto
    sources: Mapping[str, str]
    end: str


def round_calibrated(
    path: Path,
    inputs: Sequence[Inputs],
    never: tuple[str, ...],
    progress: Progress = ignore_progress,
    output: str = POOLED,
) -> dict[str, Packed]:
    """Return the rounded weight of each linear layer by the layer's name, as :func:`.q4.quantize_blocks` does.

    Args:
        path: the fp32 tower.
        inputs: the calibration inputs, one dictionary each.
        never: ends of the names of weights that are not rounded.
        progress: called after each part of the tower.
        output: the tower's output; layers that only others depend on are left out.
    """
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    states: list[dict[str, NDArray[Any]]] = [dict(row) for row in inputs]
    rounded: dict[str, Packed] = {}
    for part in list_progress(list(split(model, never, output)), "rounding weights", progress):
        weights = {
            f"{layer}.weight": onnx.numpy_helper.to_array(stored[f"{layer}.weight"], str(path.parent))
            for layer in part.sources
        }
        used = [value.name for value in part.model.graph.input if value.name not in weights]
        sources = list(dict.fromkeys(part.sources.values()))
        widths = {source: weights[f"{layer}.weight"].shape[0] for layer, source in part.sources.items()}
        grams = {source: np.zeros((width, width), np.float32) for source, width in widths.items()}
        with session_of(part.model, path.parent) as session:
            for state in states if sources else ():  # the last part may have no linear layer
                known = {name: state[name] for name in used} | weights
                products = session.run_many([f"{source}{_GRAM}" for source in sources], known)
                for source, product in zip(sources, products, strict=True):
                    grams[source] += product
            for layer, source in part.sources.items():
                name = f"{layer}.weight"
                rounded[layer] = round_weight(weights[name].T, grams[source])
                weights[name] = np.ascontiguousarray(dequantize_blocks(*rounded[layer], len(weights[name])).T)
            for state in states:
                state[part.end] = session.run(part.end, {name: state[name] for name in used} | weights)
        return_free_memory()
    return rounded


def split(model: onnx.ModelProto, never: tuple[str, ...], output: str = POOLED) -> Iterator[Part]:
    """Yield the parts of a tower in order: each encoder layer with what precedes it, and the rest."""
    producers = {name: node for node in model.graph.node for name in node.output}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    graph_inputs = {value.name: value for value in model.graph.input}
    layers = {layer: node for layer, node in linear_layers(model).items() if not f"{layer}.weight".endswith(never)}
    start = ""
    for end in [*filter(_ENCODER_LAYER.fullmatch, producers), output]:
        nodes, read = _trace(producers, start, end)
        sources = {layer: node.input[0] for layer, node in layers.items() if node.output[0] in nodes}
        replaced = {f"{layer}.weight" for layer in sources}
        inputs = [graph_inputs[name] for name in graph_inputs if name in read]
        free = [start] * (start in read) + sorted(replaced)
        inputs += [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in free]
        kept = [tensor for name, tensor in initializers.items() if name in read and name not in replaced]
        outputs = [end, *(f"{source}{_GRAM}" for source in dict.fromkeys(sources.values()))]
        graph = onnx.helper.make_graph(
            [*(node for node in model.graph.node if node.output[0] in nodes), *_gram_nodes(sources.values())],
            end,
            inputs,
            [onnx.ValueInfoProto(name=name) for name in outputs],
            kept,
        )
        yield Part(
            onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), sources, end
        )
        start = end


def _trace(producers: Mapping[str, onnx.NodeProto], start: str, end: str) -> tuple[set[str], set[str]]:
    """Return the first outputs of the nodes between two values, and all values that these read."""
    nodes: set[str] = set()
    read: set[str] = set()
    waiting = [end]
    while waiting:
        name = waiting.pop()
        read.add(name)
        node = producers.get(name)
        if name != start and node is not None and node.output[0] not in nodes:
            nodes.add(node.output[0])
            waiting.extend(filter(None, node.input))  # an omitted input has an empty name
    return nodes, read


def _gram_nodes(sources: Any) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that sum the products of each two channels of a value over all rows."""
    make = onnx.helper.make_node
    for source in dict.fromkeys(sources):
        yield make("Flatten", [source], [f"{source}:flat"], axis=-1)
        yield make("Transpose", [f"{source}:flat"], [f"{source}:transposed"], perm=[1, 0])
        yield make("MatMul", [f"{source}:transposed", f"{source}:flat"], [f"{source}{_GRAM}"])


def round_weight(weight: Floats, gram: Floats) -> Packed:
    """Round a weight ``(out, in)`` in blocks, given the sums of products of its input channels, ``(in, in)``."""
    rows, columns = weight.shape
    padding = -columns % BLOCK
    rest = np.pad(weight, ((0, 0), (0, padding)))
    factor = _inverse_factor(np.pad(gram, (0, padding)) if padding else gram)
    levels = np.empty(rest.shape, np.int8)
    scales = np.empty((rows, rest.shape[1] // BLOCK), np.float32)
    errors = np.empty((rows, BLOCK), np.float32)
    for block in range(rest.shape[1] // BLOCK):
        start, end = block * BLOCK, (block + 1) * BLOCK
        part = np.ascontiguousarray(rest[:, start:end])
        scale = scales[:, block] = choose_scales(part[:, np.newaxis])[:, 0]
        for column in range(BLOCK):
            row = start + column
            levels[:, row] = np.clip(np.rint(part[:, column] / scale), -8, 7)
            errors[:, column] = (part[:, column] - levels[:, row] * scale) / factor[row, row]
            part[:, column + 1 :] -= errors[:, column, np.newaxis] * factor[row, row + 1 : end]
        rest[:, end:] -= errors @ factor[start:end, end:]
    return pack_levels(levels.reshape(rows, -1, BLOCK)), scales


def _inverse_factor(gram: Floats) -> Floats:
    """Return the upper triangular U, f32, of which ``U.T @ U`` is the inverse of the damped Gram matrix."""
    # Reversed in both directions the lower factor of Cholesky is the upper one; few copies, as each has 75 MB in a base
    # model.
    damped = gram[::-1, ::-1].astype(np.float64)
    diagonal = np.diagonal(damped)
    mean = float(diagonal.mean()) or 1.0
    damped.flat[:: len(gram) + 1] += np.where(diagonal > 0, _DAMPING * mean, mean)
    lower = np.asarray(np.linalg.cholesky(damped), np.float64)
    del damped, diagonal
    _invert_lower(lower)
    factor: Floats = lower[::-1, ::-1].astype(np.float32)
    return factor


def _invert_lower(matrix: Doubles) -> None:
    """Invert a lower triangular matrix in place, by halves: a third of the time of a general inverse."""
    size = len(matrix)
    if size <= 64:
        matrix[:] = np.linalg.inv(matrix)
        return
    half = size // 2
    _invert_lower(matrix[:half, :half])
    _invert_lower(matrix[half:, half:])
    matrix[half:, :half] = -(matrix[half:, half:] @ (matrix[half:, :half] @ matrix[:half, :half]))
