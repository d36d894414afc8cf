"""Compile a classifier: the vision tower, the embeddings of fixed labels and the head in one ONNX file.

Its metadata holds what is needed besides the graph, see :class:`siglip_onnx.classifier.ClassifierFacts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ..bundle.manifest import VISION, graph_path
from ..classifier import FACTS, ClassifierFacts
from ..config import PreprocessorConfig
from ..errors import BundleError, SiglipOnnxError, TextError
from ..head import Floats
from ..image.preprocess import normalized_levels
from ..model import SigLIP
from ..system.files import atomic_path

_MAX_FILE_BYTES = 2_000_000_000  # the limit of one protobuf file


def compile_classifier(
    model: SigLIP,
    labels: Sequence[str],
    out: Path,
    *,
    template: str | Sequence[str] = "{}",
    logit_bias: float | None = None,
    uint8: bool = False,
) -> None:
    """Write ``out``: ``pixel_values`` to ``logits`` and ``probabilities``, both f32 ``(N, M)`` for M labels.

    The logits are bit for bit those of ``model`` on the same pixels.

    Args:
        model: a model of fixed resolution, of whose variant the classifier is.
        labels: at least one, all different.
        out: the file to write.
        template: what each label is put into; of several templates the mean is taken.
        logit_bias: instead of the checkpoint's.
        uint8: take pixels u8 ``(N, S, S, 3)`` as a decoder returns them, instead of f32 ``(N, 3, S, S)``.

    Raises:
        TextError: no labels, a repeated one, or one that cannot be tokenized.
        BundleError: a NaFlex model, or one too large for one file.
        SiglipOnnxError: ``out`` cannot be written.
    """
    path = model.bundle.path / graph_path(VISION, model.variant)
    preprocessor = _check(model, labels, path)
    embeddings = model.encode_labels(labels, template=template)
    tower = ir.external_data.load_to_model(ir.load(path))
    head = model.bundle.manifest
    _add_head(tower.graph, embeddings, head.logit_scale, head.logit_bias if logit_bias is None else logit_bias)
    if uint8:
        _take_uint8(tower.graph, preprocessor)
    tower.metadata_props[FACTS] = ClassifierFacts(
        model=model.bundle.manifest.model_name,
        variant=model.variant,
        embedding_space=model.embedding_space,
        labels=list(labels),
        templates=[template] if isinstance(template, str) else list(template),
        input="uint8" if uint8 else "float32",
        height=preprocessor.height,
        width=preprocessor.width,
        resample=preprocessor.resample,
        rescale_factor=preprocessor.levels.rescale_factor,
        image_mean=preprocessor.levels.image_mean,
        image_std=preprocessor.levels.image_std,
    ).to_json()
    _save(tower, out)


def _check(model: SigLIP, labels: Sequence[str], path: Path) -> PreprocessorConfig:
    """Check that the model and the labels can be compiled; return how images are prepared."""
    preprocessor = model.bundle.preprocessor
    if not isinstance(preprocessor, PreprocessorConfig):
        raise BundleError(
            f"{model.bundle.path} is a NaFlex model, whose positions are resized for each image outside of the graph. "
            "Compile a model of fixed resolution."
        )
    if not labels or len(set(labels)) < len(labels):
        raise TextError(f"There are {len(labels)} labels, {len(set(labels))} of them different; give each label once.")
    if (size := path.with_name(f"{path.name}.data").stat().st_size) > _MAX_FILE_BYTES:
        raise BundleError(
            f"The {model.variant} vision tower has {size:,} bytes, more than the {_MAX_FILE_BYTES:,} of one ONNX file. "
            "Compile a smaller variant: --variant int8"
        )
    return preprocessor


def _save(tower: ir.Model, out: Path) -> None:
    try:
        with atomic_path(out) as part:
            onnx.save(ir.to_proto(tower), part)
    except OSError as error:
        raise SiglipOnnxError(f"{out} cannot be written: {error.strerror or error}. Choose another path.") from error


def _add_head(graph: ir.Graph, embeddings: Floats, logit_scale: float, logit_bias: float) -> None:
    """Add what ``head.py`` computes, in f64: normalize, compare with the labels, scale, shift."""
    tape = ir.tape.Tape()
    pooled = graph.outputs[0]

    def double(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | float, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(np.asarray(array, np.float64), name=name))

    axis = tape.initializer(ir.tensor(np.array([-1], np.int64), name="embedding_axis"))
    exact = tape.op("Cast", [pooled], {"to": ir.DataType.DOUBLE})
    length = tape.op("Sqrt", [tape.op("ReduceSumSquare", [exact, axis], {"keepdims": 1})])
    # Embeddings are f32 between the towers and the head.
    embedding = tape.op("Cast", [tape.op("Div", [exact, length])], {"to": ir.DataType.FLOAT})
    cosines = tape.op(
        "MatMul",
        [tape.op("Cast", [embedding], {"to": ir.DataType.DOUBLE}), double(embeddings.astype(np.float64).T, "labels")],
    )
    scaled = tape.op("Mul", [cosines, double(np.exp(logit_scale), "exp_logit_scale")])
    exact_logits = tape.op("Add", [scaled, double(logit_bias, "logit_bias")])
    logits = tape.op("Cast", [exact_logits], {"to": ir.DataType.FLOAT})
    probabilities = tape.op("Cast", [tape.op("Sigmoid", [exact_logits])], {"to": ir.DataType.FLOAT})
    for initializer in tape.initializers:
        graph.register_initializer(initializer)
    graph.extend(tape.nodes)
    for value, name in ((logits, "logits"), (probabilities, "probabilities")):
        value.name = name
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", len(embeddings)])
    graph.outputs[:] = [logits, probabilities]


def _take_uint8(graph: ir.Graph, preprocessor: PreprocessorConfig) -> None:
    """Put the normalization of pixels before the tower: u8 ``(N, H, W, 3)`` to f32 ``(N, 3, H, W)``."""
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
