"""Join two towers and the head in one graph, ``model.onnx``, which the zero-shot pipeline of transformers.js opens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .graph import save_graph

_IMAGES, _TEXTS = "image_batch", "text_batch"


def write_joined(vision_path: Path, text_path: Path, out: Path, *, logit_scale: float, logit_bias: float) -> None:
    """Write ``out`` from the graphs of both towers; outputs are named as transformers.js and optimum name them.

    ``pixel_values`` f32 ``(N, 3, S, S)`` and ``input_ids`` i64 ``(M, T)`` to ``logits_per_image`` f32 ``(N, M)``,
    ``logits_per_text`` f32 ``(M, N)``, ``text_embeds`` f32 ``(M, D)`` and ``image_embeds`` f32 ``(N, D)``.
    """
    model, text_model = ir.load(vision_path), ir.load(text_path)
    graph, text = model.graph, text_model.graph
    image_output, text_output = graph.outputs[0], text.outputs[0]
    for tower, prefix, batch in ((graph, "vision", _IMAGES), (text, "text", _TEXTS)):
        _rename(tower, prefix, batch)
        tower.outputs.clear()
    inputs, initializers, nodes = list(text.inputs), list(text.initializers.values()), list(text)
    text.remove(nodes)
    text.inputs.clear()
    text.initializers.clear()
    graph.extend(nodes)
    graph.inputs.extend(inputs)
    for initializer in initializers:
        graph.register_initializer(initializer)
    _add_head(graph, image_output, text_output, logit_scale, logit_bias)
    graph.name = "model"
    save_graph(model, out)


def _rename(graph: ir.Graph, prefix: str, batch: str) -> None:
    """Make the names of a tower's values unlike those of the other one, and name the batch of its inputs."""
    initializers = list(graph.initializers.values())
    graph.initializers.clear()
    for value in (*initializers, *(output for node in graph for output in node.outputs)):
        value.name = f"{prefix}/{value.name}"
    for initializer in initializers:
        graph.register_initializer(initializer)
    for node in graph:
        node.name = f"{prefix}/{node.name}"
        for output in node.outputs:
            output.shape = None  # it names the batch
    for value in graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])


def _add_head(graph: ir.Graph, image: ir.Value, text: ir.Value, logit_scale: float, logit_bias: float) -> None:
    """Add what ``SiglipModel.forward`` computes: normalize, compare, scale, shift."""
    tape = ir.tape.Tape()

    def constant(array: float | list[int], dtype: type, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(array, dtype), name=name))

    axis = constant([-1], np.int64, "embedding_axis")
    image_embeds, text_embeds = (
        tape.op("Div", [pooled, tape.op("ReduceL2", [pooled, axis], {"keepdims": 1})]) for pooled in (image, text)
    )
    cosines = tape.op("MatMul", [text_embeds, tape.op("Transpose", [image_embeds], {"perm": [1, 0]})])
    scaled = tape.op("Mul", [cosines, constant(math.exp(logit_scale), np.float32, "exp_logit_scale")])
    logits_per_text = tape.op("Add", [scaled, constant(logit_bias, np.float32, "logit_bias")])
    logits_per_image = tape.op("Transpose", [logits_per_text], {"perm": [1, 0]})
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    graph.extend(tape.nodes)
    for value, name, shape in (
        (logits_per_image, "logits_per_image", [_IMAGES, _TEXTS]),
        (logits_per_text, "logits_per_text", [_TEXTS, _IMAGES]),
        (text_embeds, "text_embeds", [_TEXTS, "embedding_dim"]),
        (image_embeds, "image_embeds", [_IMAGES, "embedding_dim"]),
    ):
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        graph.outputs.append(value)
