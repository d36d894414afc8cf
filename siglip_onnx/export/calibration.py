"""Calibration: sample inputs of both towers, and the embeddings and activation ranges of the fp32 graphs on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from ..bundle.manifest import POOLED
from ..config import TEXT, TOKENIZER, VISION, NaflexPreprocessorConfig, PreprocessorConfig
from ..head import Floats
from ..image.decode import ImageReader, ImageSource
from ..image.preprocess import NaflexPreprocessor, SquashPreprocessor
from ..session import LazySession
from ..text.tokenizer import Tokenizer
from ..verify.accuracy import unit_rows
from ..verify.samples import quiet_samples
from .checkpoint import POSITIONS_WEIGHT, Checkpoint
from .graph import Progress, ignore_progress

Inputs = Mapping[str, NDArray[Any]]
Item = TypeVar("Item")
_SUFFIX = ":largest"


class Calibration:
    """One tower's calibration inputs, with its embeddings and activation ranges in fp32, computed when first used."""

    def __init__(
        self, graph: Path, inputs: Sequence[Inputs], progress: Progress = ignore_progress, output: str = POOLED
    ) -> None:
        """Keep the path of the fp32 graph, the inputs, one dictionary per image or text, and the output to compare."""
        self.graph = graph
        self.inputs = inputs
        self.progress = progress
        self.output = output

    @cached_property
    def _measured(self) -> tuple[Sequence[Mapping[str, Floats]], Floats]:
        return input_ranges(self.graph, self.inputs, self.progress, self.output)

    @property
    def ranges(self) -> Mapping[str, Floats]:
        """The largest magnitude of each input channel of each linear layer, f32 ``(C,)`` by the layer's name."""
        ranges = self.ranges_by_input
        return {layer: np.max([of_input[layer] for of_input in ranges], axis=0) for layer in ranges[0]}

    @property
    def ranges_by_input(self) -> Sequence[Mapping[str, Floats]]:
        """The same on each calibration input alone."""
        return self._measured[0]

    @property
    def expected(self) -> Floats:
        """The unit embeddings in fp32, f32 ``(N, D)``."""
        return self._measured[1]

    def cosine_min(self, graph: Path) -> float:
        """Return the smallest cosine between a graph's embeddings and those of fp32."""
        inputs = list_progress(self.inputs, "checking", self.progress)
        return float((embed(LazySession(graph), inputs, self.output) * self.expected).sum(axis=1).min())


def list_progress(items: Sequence[Item], step: str, progress: Progress) -> Iterator[Item]:
    """Yield the items, and report after each how many are done."""
    for number, item in enumerate(items, 1):
        yield item
        progress(step, number, len(items))


def prepare_inputs(
    checkpoint: Checkpoint, bundle_path: Path, images: Sequence[ImageSource], texts: Sequence[str]
) -> dict[str, list[Inputs]]:
    """Return the inputs of each tower, one dictionary per image or text; ``bundle_path`` has the tokenizer.

    Raises:
        ImageError: an image cannot be read.
        TextError: a text cannot be tokenized.
    """
    inputs: dict[str, list[Inputs]] = {}
    if checkpoint.preprocessor is not None:
        reader, preprocess = ImageReader(), _make_preprocessor(checkpoint.preprocessor, checkpoint)
        inputs[VISION] = [preprocess(reader.read(image).rgb) for image in images]
    if checkpoint.config.text is not None:
        tokenizer = Tokenizer(bundle_path / TOKENIZER, checkpoint.config.text.max_position_embeddings)
        with quiet_samples(texts):
            inputs[TEXT] = [{"input_ids": row[np.newaxis]} for row in tokenizer(list(texts))]
    return inputs


def _make_preprocessor(
    config: PreprocessorConfig | NaflexPreprocessorConfig, checkpoint: Checkpoint
) -> SquashPreprocessor | NaflexPreprocessor:
    if isinstance(config, NaflexPreprocessorConfig):
        return NaflexPreprocessor(config, checkpoint.weights[POSITIONS_WEIGHT])
    return SquashPreprocessor(config)


@contextmanager
def session_of(model: onnx.ModelProto, folder: Path) -> Iterator[LazySession]:
    """Load a changed graph from a file in the folder of its weights, where alone onnxruntime looks for them."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        yield LazySession(Path(file.name))


def embed(session: LazySession, inputs: Iterable[Inputs], output: str = POOLED) -> Floats:
    """Return an output of a tower's inputs, run one by one, as unit rows f32 ``(N, D)``; see :func:`.unit_rows`."""
    return unit_rows([session.run(output, row) for row in inputs])


def linear_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the MatMul of each linear layer by the layer's name, as in the checkpoint."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {
        node.input[1].removesuffix(".weight"): node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and node.input[1].endswith(".weight")
    }


def input_ranges(
    path: Path, inputs: Sequence[Inputs], progress: Progress = ignore_progress, output: str = POOLED
) -> tuple[list[dict[str, Floats]], Floats]:
    """Return the activation ranges of an fp32 graph on each input, and an output as unit rows f32 ``(N, D)``.

    A range is the largest magnitude of each input channel of a linear layer, f32 ``(C,)`` by the layer's name.
    """
    model = onnx.load(path, load_external_data=False)
    sources = {layer: node.input[0] for layer, node in linear_layers(model).items()}
    for source in dict.fromkeys(sources.values()):
        rows, magnitudes, name = f"{source}:rows", f"{source}:magnitudes", f"{source}{_SUFFIX}"
        axis = onnx.helper.make_tensor(f"{source}:axis", onnx.TensorProto.INT64, [1], [0])
        model.graph.initializer.append(axis)
        # Flatten makes two axes of any rank and keeps the last.
        model.graph.node.extend(
            [
                onnx.helper.make_node("Flatten", [source], [rows], axis=-1),
                onnx.helper.make_node("Abs", [rows], [magnitudes]),
                onnx.helper.make_node("ReduceMax", [magnitudes, axis.name], [name], keepdims=0),
            ]
        )
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    names = [*dict.fromkeys(f"{source}{_SUFFIX}" for source in sources.values()), output]
    with session_of(model, path.parent) as session:
        outputs = [
            dict(zip(names, session.run_many(names, row), strict=True))
            for row in list_progress(inputs, "calibrating", progress)
        ]
    ranges = [{layer: values[f"{source}{_SUFFIX}"] for layer, source in sources.items()} for values in outputs]
    return ranges, unit_rows([values[output] for values in outputs])
