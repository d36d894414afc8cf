"""Compile a classifier: the vision tower, the embeddings of fixed labels and the head in one ONNX file.

A fine-tuned classifier has labels and a layer for them already. The metadata holds what is needed besides the graph,
see :class:`siglip_onnx.classifier.ClassifierFacts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..bundle.manifest import LOGITS, POOLED, graph_path
from ..classifier import FACTS, ClassifierFacts, FineTunedClassifier
from ..config import REGRESSION, SINGLE_LABEL, VISION, PreprocessorConfig
from ..errors import BundleError, SiglipOnnxError, TextError
from ..head import check_bias
from ..image.preprocess import normalized_levels
from ..model import SigLIP
from ..session import LazySession
from ..system.files import atomic_path

Doubles = NDArray[np.float64]
_MAX_FILE_BYTES = 2_000_000_000  # the limit of one protobuf file


def compile_classifier(
    model: SigLIP,
    labels: Sequence[str],
    out: Path,
    *,
    template: str | Sequence[str] = "{}",
    logit_bias: float | None = None,
    uint8: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write ``out``: ``pixel_values`` to ``logits`` and ``probabilities``, both f32 ``(N, M)`` for M labels.

    The logits are bit for bit those of ``model`` on the same pixels. A regression has no probabilities.

    Args:
        model: a model of fixed resolution, of whose variant the classifier is.
        labels: at least one, all different; none for a model that has its own.
        out: the file to write.
        template: what each label is put into; of several templates the mean is taken.
        logit_bias: instead of the checkpoint's.
        uint8: take pixels u8 ``(N, S, S, 3)`` as a decoder returns them, instead of f32 ``(N, 3, S, S)``.
        check: called before ``out`` is replaced; raises if it is not to be.

    Raises:
        TextError: no labels, a repeated one, one that cannot be tokenized, or labels for a model that has its own.
        BundleError: a NaFlex model, one without labels and text tower, or one too large for one file.
        SiglipOnnxError: ``out`` cannot be written.
    """
    if isinstance(model, FineTunedClassifier):
        check_compilable(model)
        tower, facts = _with_probabilities(model, labels, template, logit_bias)
        _finish(model, tower, facts, out, uint8=uint8, check=check)
        return
    check_compilable(model, len(labels))
    check_labels(labels)
    weights = model.encode_labels(labels, template=template).astype(np.float64)
    bias = model.biases(labels) if logit_bias is None else np.float64(check_bias(logit_bias))
    templates = [template] if isinstance(template, str) else list(template)
    scale = np.exp(model.logit_scale)
    write_classifier(model, labels, weights, scale, bias, out, templates=templates, uint8=uint8, check=check)


def write_classifier(
    model: SigLIP,
    labels: Sequence[str],
    weights: Doubles,
    scale: float,
    biases: Doubles | np.float64,
    out: Path,
    *,
    templates: Sequence[str] = (),
    uint8: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a classifier whose logits are ``scale * embedding @ weights.T + biases``; see :func:`compile_classifier`.

    Args:
        model: the model whose vision tower makes the embeddings.
        labels: M labels, all different.
        weights: ``(M, D)``.
        scale: the factor itself, not its logarithm.
        biases: one number, or ``(M,)``.
        out: the file to write.
        templates: recorded in the file.
        uint8: as in :func:`compile_classifier`.
        check: as there.

    Raises:
        TextError, BundleError, SiglipOnnxError: as there.
    """
    check_compilable(model, len(labels))
    check_labels(labels)
    tower = _read_tower(model)
    _only_output(tower.graph, POOLED)
    _add_head(tower.graph, weights, scale, biases)
    _finish(model, tower, {"labels": list(labels), "templates": list(templates)}, out, uint8=uint8, check=check)


def check_labels(labels: Sequence[str]) -> None:
    """Check the labels of a classifier.

    Raises:
        TextError: no labels, or a repeated one.
    """
    if not labels or len(set(labels)) < len(labels):
        raise TextError(f"There are {len(labels)} labels, {len(set(labels))} of them different; give each label once.")


def _finish(
    model: SigLIP, tower: ir.Model, facts: dict[str, Any], out: Path, *, uint8: bool, check: Callable[[], None]
) -> None:  # fmt: skip
    """Add the facts and what prepares images to a tower with its head, and write it."""
    preprocessor = check_compilable(model)
    if uint8:
        _take_uint8(tower.graph, preprocessor)
    tower.metadata_props[FACTS] = ClassifierFacts(
        model=model.bundle.manifest.model_name,
        variant=model.variant,
        embedding_space=model.embedding_space,
        **facts,
        input="uint8" if uint8 else "float32",
        height=preprocessor.height,
        width=preprocessor.width,
        resample=preprocessor.resample,
        rescale_factor=preprocessor.levels.rescale_factor,
        image_mean=preprocessor.levels.image_mean,
        image_std=preprocessor.levels.image_std,
    ).to_json()
    _save(tower, out, check)


def _read_tower(model: SigLIP) -> ir.Model:
    return ir.external_data.load_to_model(ir.load(model.bundle.path / graph_path(VISION, model.variant)))


def check_compilable(model: SigLIP, num_labels: int = 0) -> PreprocessorConfig:
    """Check that the model can be compiled with that many labels besides its own; return how images are prepared.

    Raises:
        BundleError: a NaFlex model, one without vision tower, or one too large for one file.
        TextError: the labels are too many for one file.
    """
    preprocessor = model.bundle.preprocessor
    model.bundle.manifest.check_tower(VISION)
    if not isinstance(preprocessor, PreprocessorConfig):
        raise BundleError(
            f"{model.bundle.path} is a NaFlex model, whose positions are resized for each image outside of the graph. "
            "Compile a model of fixed resolution."
        )
    files = model.bundle.manifest.variants[model.variant].files
    size = sum(facts.size_bytes for name, facts in files.items() if name.startswith(graph_path(VISION, model.variant)))
    if size > _MAX_FILE_BYTES:
        raise BundleError(
            f"The {model.variant} vision tower has {size:,} bytes, more than the {_MAX_FILE_BYTES:,} of one ONNX file. "
            "Compile a smaller variant: --variant int8"
        )
    room = (_MAX_FILE_BYTES - size) // (8 * model.embedding_dim) if num_labels else 0
    if num_labels > room:
        raise TextError(
            f"{num_labels:,} labels are too many for one ONNX file of at most {_MAX_FILE_BYTES:,} bytes, which has "
            f"room for {room:,} beside the {model.variant} vision tower. Compile fewer."
        )
    return preprocessor


def _with_probabilities(
    model: FineTunedClassifier, labels: Sequence[str], template: str | Sequence[str], logit_bias: float | None
) -> tuple[ir.Model, dict[str, Any]]:
    """Return the tower of a classifier with its probabilities, and the facts about its labels."""
    if labels or template not in ("{}", ["{}"], ("{}",)) or logit_bias is not None:
        raise TextError(
            f"{model.bundle.path} is a classifier with {len(model.labels)} labels of its own. Leave out labels, "
            "template and logit_bias."
        )
    tower = _read_tower(model)
    graph = tower.graph
    logits = _only_output(graph, LOGITS)
    logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", len(model.labels)])
    if model.problem_type != REGRESSION:
        single = model.problem_type == SINGLE_LABEL
        tape = ir.tape.Tape()
        probabilities = tape.op("Softmax", [logits], {"axis": -1}) if single else tape.op("Sigmoid", [logits])
        probabilities.name, probabilities.type, probabilities.shape = "probabilities", logits.type, logits.shape
        graph.extend(tape.nodes)
        graph.outputs.append(probabilities)
    return tower, {"labels": model.labels, "templates": [], "problem_type": model.problem_type}


def _only_output(graph: ir.Graph, name: str) -> ir.Value:
    """Return the output of this name, after it was made the graph's only one."""
    graph.outputs[:] = [output for output in graph.outputs if output.name == name]
    return graph.outputs[0]


def _save(tower: ir.Model, out: Path, check: Callable[[], None]) -> None:
    try:
        with atomic_path(out) as part:
            onnx.save(ir.to_proto(tower), part)
            LazySession(part).load()  # a graph that cannot be loaded must not replace one that can
            check()
    except OSError as error:
        raise SiglipOnnxError(f"{out} cannot be written: {error.strerror or error}. Choose another path.") from error


def _add_head(graph: ir.Graph, weights: Doubles, scale: float, biases: Doubles | np.float64) -> None:
    """Add what ``head.py`` computes, in f64: normalize, compare with the labels, scale, shift."""
    _free_names(graph, ("labels", "exp_logit_scale", "logit_bias", "embedding_axis", "logits", "probabilities"))
    tape = ir.tape.Tape()
    pooled = graph.outputs[0]

    def double(array: Doubles | float, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(np.asarray(array, np.float64), name=name))

    axis = tape.initializer(ir.tensor(np.array([-1], np.int64), name="embedding_axis"))
    exact = tape.op("Cast", [pooled], {"to": ir.DataType.DOUBLE})
    length = tape.op("Sqrt", [tape.op("ReduceSumSquare", [exact, axis], {"keepdims": 1})])
    # Embeddings are f32 between the towers and the head.
    embedding = tape.op("Cast", [tape.op("Div", [exact, length])], {"to": ir.DataType.FLOAT})
    cosines = tape.op(
        "MatMul",
        [tape.op("Cast", [embedding], {"to": ir.DataType.DOUBLE}), double(weights.T, "labels")],
    )
    scaled = tape.op("Mul", [cosines, double(scale, "exp_logit_scale")])
    exact_logits = tape.op("Add", [scaled, double(biases, "logit_bias")])
    logits = tape.op("Cast", [exact_logits], {"to": ir.DataType.FLOAT})
    probabilities = tape.op("Cast", [tape.op("Sigmoid", [exact_logits])], {"to": ir.DataType.FLOAT})
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    graph.extend(tape.nodes)
    for value, name in ((logits, "logits"), (probabilities, "probabilities")):
        value.name = name
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", len(weights)])
    graph.outputs[:] = [logits, probabilities]


def _free_names(graph: ir.Graph, names: Collection[str]) -> None:
    """Rename the values of a tower, which another exporter may have made, whose names are needed for new ones."""
    inner = [output for node in graph for output in node.outputs]
    values = {value.name: value for value in (*graph.initializers.values(), *inner)}
    for name in names:
        if name in values:
            values[name].name = next(
                other for number in itertools.count() if (other := f"tower.{number}.{name}") not in values
            )


def _take_uint8(graph: ir.Graph, preprocessor: PreprocessorConfig) -> None:
    """Put the normalization of pixels before the tower: u8 ``(N, H, W, 3)`` to f32 ``(N, 3, H, W)``."""
    _free_names(graph, ("levels", "level_offsets", "normalized_pixel_values"))
    floats = graph.inputs[0]
    shape = ir.Shape(["batch", preprocessor.height, preprocessor.width, 3])
    pixels = ir.Value(name=floats.name, type=ir.TensorType(ir.DataType.UINT8), shape=shape)
    tape = ir.tape.Tape()
    levels = tape.initializer(ir.tensor(normalized_levels(preprocessor.levels).ravel(), name="levels"))
    offsets = tape.initializer(ir.tensor(np.array([0, 256, 512], np.int32), name="level_offsets"))
    indices = tape.op("Add", [tape.op("Cast", [pixels], {"to": ir.DataType.INT32}), offsets])
    planes = tape.op("Transpose", [tape.op("Gather", [levels, indices])], {"perm": [0, 3, 1, 2]})
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    floats.replace_all_uses_with(planes)
    planes.name, floats.name = "normalized_pixel_values", None
    graph.inputs[0] = pixels
    graph.insert_before(graph[0], tape.nodes)
