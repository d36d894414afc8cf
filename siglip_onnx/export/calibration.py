"""Look inside a written graph: run it with further outputs, beside its weights and without copying them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..head import Floats, l2_normalize
from ..session import LazySession

Inputs = Mapping[str, NDArray[Any]]
_SUFFIX = ":largest"


@contextmanager
def session_of(model: onnx.ModelProto, folder: Path) -> Iterator[LazySession]:
    """Load a changed graph in the folder of its weights, which onnxruntime does not follow elsewhere."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        yield LazySession(Path(file.name))


def embed(session: LazySession, inputs: Sequence[Inputs]) -> Floats:
    """Return the unit embeddings f32 ``(N, D)`` of a tower's inputs, each run by itself."""
    return l2_normalize(np.concatenate([session.run("pooler_output", one) for one in inputs]))


def run_with_outputs(path: Path, names: Sequence[str], inputs: Sequence[Inputs]) -> dict[str, list[Floats]]:
    """Return the values of those names inside the graph ``path``, one array per input."""
    model = onnx.load(path, load_external_data=False)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    with session_of(model, path.parent) as session:
        outputs = [session.run_many(names, one) for one in inputs]
    return {name: [rows[number] for rows in outputs] for number, name in enumerate(names)}


def linear_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the MatMul of each linear layer by the layer's name, as the checkpoint has it."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {
        node.input[1].removesuffix(".weight"): node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and node.input[1].endswith(".weight")
    }


def input_ranges(path: Path, inputs: Sequence[Inputs]) -> tuple[dict[str, Floats], Floats]:
    """Return for each linear layer of an fp32 graph the largest magnitude of each input channel, f32 ``(C,)``.

    And the unit embeddings of the inputs, f32 ``(N, D)``.
    """
    model = onnx.load(path, load_external_data=False)
    sources = {layer: node.input[0] for layer, node in linear_layers(model).items()}
    for source in dict.fromkeys(sources.values()):
        rows, magnitudes, name = f"{source}:rows", f"{source}:magnitudes", f"{source}{_SUFFIX}"
        axis = onnx.helper.make_tensor(f"{source}:axis", onnx.TensorProto.INT64, [1], [0])
        model.graph.initializer.append(axis)
        # Flatten keeps the last axis, whatever the rank.
        model.graph.node.extend(
            [
                onnx.helper.make_node("Flatten", [source], [rows], axis=-1),
                onnx.helper.make_node("Abs", [rows], [magnitudes]),
                onnx.helper.make_node("ReduceMax", [magnitudes, axis.name], [name], keepdims=0),
            ]
        )
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    names = [*dict.fromkeys(f"{source}{_SUFFIX}" for source in sources.values()), "pooler_output"]
    with session_of(model, path.parent) as session:
        found = [dict(zip(names, session.run_many(names, one), strict=True)) for one in inputs]
    ranges = {
        layer: np.max([rows[f"{source}{_SUFFIX}"] for rows in found], axis=0) for layer, source in sources.items()
    }
    return ranges, l2_normalize(np.concatenate([rows["pooler_output"] for rows in found]))
