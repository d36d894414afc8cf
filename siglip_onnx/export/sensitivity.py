"""Search for the layers of an int8 tower to leave in fp32, in one graph in which each can be switched to fp32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx

from ..bundle.manifest import POOLED
from ..head import Floats
from .calibration import Inputs, embed, linear_layers, list_progress, session_of
from .graph import Progress, ignore_progress

_WORST = 3  # inputs on which single layers are switched
_SWITCH, _INT8 = ":in_fp32", ":in_int8"


def find_fp32_layers(
    fp32_path: Path,
    int8_path: Path,
    inputs: Sequence[Inputs],
    expected: Floats,
    min_cosine: float,
    progress: Progress = ignore_progress,
    output: str = POOLED,
) -> dict[str, float]:
    """Return the layers to leave in fp32 so that every input's embedding reaches ``min_cosine``.

    Layers are ranked by the gain in cosine of each one alone on the worst inputs, and as few of the first as suffice
    are returned with their gains; a smaller set may exist. If all together do not suffice, all are returned.

    Args:
        fp32_path: the tower in fp32; its folder also holds ``int8_path``.
        int8_path: the same tower, every linear layer in int8.
        inputs: the calibration inputs, one dictionary each.
        expected: their unit embeddings in fp32, f32 ``(N, D)``.
        min_cosine: between 0 and 1.
        progress: called for each layer that was tried, and each input.
        output: the output to compare.
    """
    model, layers = switchable(fp32_path, int8_path)
    with session_of(model, fp32_path.parent) as session:

        def cosines(fp32: Collection[str], rows: Sequence[int]) -> Floats:
            switches = {f"{layer}{_SWITCH}": np.array(layer in fp32) for layer in layers}
            step = f"trying {len(fp32)} layers in fp32"
            switched = [{**inputs[row], **switches} for row in rows]
            report = progress if len(fp32) > 1 else ignore_progress  # one layer is reported as a whole
            embeddings = embed(session, list_progress(switched, step, report), output)
            cosine: Floats = (embeddings * expected[rows, : embeddings.shape[1]]).sum(axis=1)
            return cosine

        all_rows = list(range(len(inputs)))
        before = cosines((), all_rows)
        if before.min() >= min_cosine:
            return {}
        worst = np.argsort(before)[:_WORST].tolist()
        gains = {
            layer: float((cosines({layer}, worst) - before[worst]).mean())
            for layer in list_progress(layers, "searching for layers to leave in fp32", progress)
        }
        order = sorted(layers, key=lambda layer: -gains[layer])
        too_few, enough = 0, len(order)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if cosines(order[:middle], all_rows).min() >= min_cosine:
                enough = middle
            else:
                too_few = middle
    return {layer: gains[layer] for layer in order[:enough]}


def switchable(fp32_path: Path, int8_path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """Return the int8 graph with a boolean input ``<layer>:in_fp32`` per linear layer, and the layers' names.

    Its weights are in the files of both graphs.
    """
    fp32 = onnx.load(fp32_path, load_external_data=False)
    model = onnx.load(int8_path, load_external_data=False)
    weights = {tensor.name: tensor for tensor in fp32.graph.initializer}
    present = {tensor.name for tensor in model.graph.initializer}
    readers = {name: node for node in fp32.graph.node for name in node.input}
    nodes = {node.output[0]: [node] for node in model.graph.node}
    layers = {
        layer: matmul
        for layer, matmul in linear_layers(fp32).items()
        if f"{layer}.weight_int8" in present  # NaFlex's patch embedding is a linear layer too, but never quantized
    }
    for layer, matmul in layers.items():
        add = readers[matmul.output[0]]
        (bias,) = set(add.input) - set(matmul.output)
        result = add.output[0]
        model.graph.initializer.extend(weights[name] for name in (f"{layer}.weight", bias) if name not in present)
        model.graph.input.append(onnx.helper.make_tensor_value_info(f"{layer}{_SWITCH}", onnx.TensorProto.BOOL, []))
        nodes[result][0].output[0] = f"{result}{_INT8}"
        nodes[result].append(_choose(layer, matmul.input[0], bias, result))
    ordered = [node for group in nodes.values() for node in group]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model, list(layers)


def _choose(layer: str, x: str, bias: str, result: str) -> onnx.NodeProto:
    """Return the node that computes a layer in fp32 if its switch is on, and passes the int8 result otherwise."""
    make = onnx.helper.make_node
    product, total, copied = (f"{result}:{part}" for part in ("product", "sum", "copy"))
    fp32 = [make("MatMul", [x, f"{layer}.weight"], [product]), make("Add", [product, bias], [total])]
    int8 = [make("Identity", [f"{result}{_INT8}"], [copied])]
    branches = {
        "then_branch": onnx.helper.make_graph(fp32, f"{layer}.fp32", [], [onnx.ValueInfoProto(name=total)]),
        "else_branch": onnx.helper.make_graph(int8, f"{layer}.int8", [], [onnx.ValueInfoProto(name=copied)]),
    }
    return make("If", [f"{layer}{_SWITCH}"], [result], **branches)
