"""Score heads: linear functions of embeddings, such as an aesthetic score or a linear probe, for stored vectors too.

A head file is ``.npz`` with ``weights`` f32 ``(M, D)``, ``biases`` ``(M,)`` and a JSON entry ``head``. PyTorch files of
a linear layer, and of the aesthetic predictor v2.5, are read directly; nothing in them is executed.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, DataError, first_line
from ..head import Floats, sigmoid, softmax
from ..system.extras import extra
from ..system.files import open_regular, read_up_to, write_atomic
from ..system.npy_files import NPY_ERRORS, read_npy

FORMAT = "siglip_onnx.head/1"
NONE, SIGMOID, SOFTMAX = "none", "sigmoid", "softmax"
_MAX_FILE_BYTES = 200_000_000  # also of the weights in f32
_MAX_FACTS_BYTES = 8_000_000  # of the JSON, 4 for each character
_MAX_RATIO, _FEW_BYTES = 20, 1_000_000  # weights compress by less than 2; an archive that grows by more is a bomb
_DTYPES = ("F32", "F16", "BF16", "F64")  # of PyTorch files
_MAX_WEIGHT = 1e30  # with larger ones, scores would not be finite in f32
# The aesthetic predictor v2.5 is a chain of linear layers without activations, which is one linear layer.
_CHAIN = re.compile(r"(?:scoring_head\.)(\d{1,4})\.weight")
_LINEAR = ("", "classifier.", "linear.", "fc.", "head.")


@dataclass(frozen=True)
class ScoreHead:
    """Scores ``activation(vectors @ weights.T + biases)``.

    Attributes:
        labels: M names.
        weights: f32 ``(M, D)``.
        biases: f32 ``(M,)``.
        activation: ``"none"``, ``"sigmoid"`` or ``"softmax"``.
        normalize: whether it takes embeddings of length 1, as all of this package are.
        embedding_space: that of the vectors it was fitted to, empty if unknown.
    """

    labels: list[str]
    weights: Floats
    biases: Floats
    activation: str = NONE
    normalize: bool = True
    embedding_space: str = ""

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            DataError: they do not fit together.
        """
        shapes_fit = self.weights.ndim == 2 and self.biases.shape == self.weights.shape[:1] == (len(self.labels),)
        if not shapes_fit or not all(map(_is_within_bounds, (self.weights, self.biases))):
            raise DataError(
                f"A head has {len(self.labels)} labels, weights of shape {self.weights.shape} and biases of shape "
                f"{self.biases.shape}; expected finite (M, D) and (M,) for M labels, of at most {_MAX_WEIGHT:g}."
            )
        if len(set(self.labels)) < len(self.labels):
            raise DataError("A head has a label twice; expected one name for each of its rows.")
        if self.activation not in (NONE, SIGMOID, SOFTMAX):
            raise DataError(f"A head has the activation {self.activation!r}; expected none, sigmoid or softmax.")
        if not self.normalize:
            raise DataError(
                "This head takes raw outputs of the vision tower, but embeddings have length 1, so its scores would be "
                "others. Use a head that was fitted to normalized embeddings."
            )

    def scores(self, vectors: Floats) -> Floats:
        """Return scores f32 ``(N, M)`` of unit embeddings ``(N, D)``.

        Raises:
            DataError: embeddings of another width.
        """
        self.check(vectors.shape[1], "")
        logits: Floats = (vectors.astype(np.float64) @ self.weights.astype(np.float64).T + self.biases).astype(
            np.float32
        )
        if self.activation == NONE:
            return logits
        return sigmoid(logits) if self.activation == SIGMOID else softmax(logits)

    def check(self, embedding_dim: int, embedding_space: str) -> None:
        """Check that vectors suit the head.

        Raises:
            DataError: their width or embedding space is another one.
        """
        if embedding_dim != self.weights.shape[1]:
            raise DataError(f"The head takes vectors of width {self.weights.shape[1]}, but these have {embedding_dim}.")
        if self.embedding_space and embedding_space and self.embedding_space != embedding_space:
            raise DataError(
                f"The head was fitted to the embedding space {self.embedding_space}, but the vectors have "
                f"{embedding_space}. Use the model and variant of the head."
            )

    def column(self, label: str | None) -> int:
        """Return the number of a label; without one, the head must have only one.

        Raises:
            DataError: no such label, or several to choose from.
        """
        if label is None and len(self.labels) == 1:
            return 0
        if label not in self.labels:
            problem = "has several labels" if label is None else f"has no label {label!r}"
            raise DataError(f"The head {problem}; choose one of {', '.join(self.labels)}.")
        return self.labels.index(str(label))


def write_head(path: Path, head: ScoreHead) -> None:
    """Write a head file."""
    facts = {"format": FORMAT, "labels": head.labels, "activation": head.activation, "normalize": head.normalize,
             "embedding_space": head.embedding_space}  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, weights=head.weights, biases=head.biases, head=np.array(json.dumps(facts)))
    write_atomic(path, buffer.getvalue())


def read_head(path: Path) -> ScoreHead:
    """Read a head file, or a PyTorch file of linear layers (needs the extra [export]).

    Raises:
        DataError: it cannot be read, or holds something else.
        MissingExtraError: a PyTorch file, and the extra is not installed.
    """
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_pytorch(path)
    try:
        with open_regular(path) as file:
            content = read_up_to(file, _MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"more than {_MAX_FILE_BYTES:,} bytes")
        max_bytes = min(_MAX_FILE_BYTES, max(_MAX_RATIO * len(content), _FEW_BYTES))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            facts = json.loads(str(_read_array(archive, "head", min(max_bytes, _MAX_FACTS_BYTES))))
            weights, biases = (_read_floats(archive, name, max_bytes) for name in ("weights", "biases"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}")
        labels = [str(label) for label in facts["labels"]]
        activation, normalize = str(facts.get("activation", NONE)), bool(facts.get("normalize", True))
        space = str(facts.get("embedding_space", ""))
    except (*NPY_ERRORS, KeyError, AttributeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        problem = first_line(error) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as a head: {problem:.200}. Expected .npz of format {FORMAT}, or .pth."
        ) from error
    return ScoreHead(labels, weights, biases, activation, normalize, space)


def _is_within_bounds(values: Floats) -> bool:
    return not values.size or bool(values.min() >= -_MAX_WEIGHT and values.max() <= _MAX_WEIGHT)  # false of NaN too


def _read_array(archive: zipfile.ZipFile, name: str, max_bytes: int) -> NDArray[Any]:
    """Return an array of an ``.npz`` file, whose bytes are bounded after decompression too."""
    with archive.open(f"{name}.npy") as file:
        content = read_up_to(file, max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{name} has more than {max_bytes:,} bytes, too many for a file of this size")
    return read_npy(content)


def _read_floats(archive: zipfile.ZipFile, name: str, max_bytes: int) -> Floats:
    array = _read_array(archive, name, max_bytes)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} of {array.dtype}")
    if 4 * array.size > max_bytes:
        raise ValueError(f"{name} has {array.size:,} numbers, too many for a file of this size")
    return array.astype(np.float32)


def _read_pytorch(path: Path) -> ScoreHead:
    with extra("export", "A head in a PyTorch file"):
        from ..export.sources.pytorch_file import open_pytorch  # noqa: PLC0415 - an optional extra
    try:
        opened = open_pytorch(path)
        layers = _find_layers(path, opened)
        _check_tensors(path, opened)
        tensors = {name: np.asarray(tensor.read(), np.float64) for name, tensor in opened.items()}
    except CheckpointError as error:
        raise DataError(f"{path} cannot be read as a head: {error}") from error
    weights, biases = fold_linear(tensors, layers)
    labels = [path.stem] if len(weights) == 1 else [f"label {number}" for number in range(len(weights))]
    return ScoreHead(labels, weights.astype(np.float32), biases.astype(np.float32))


def _check_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Check types and sizes before anything is read."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or len(tensor.shape) > 2:
            raise DataError(
                f"{path} has {name} of type {tensor.dtype} with {len(tensor.shape)} dimensions; expected floats in one "
                "or two."
            )
    size_bytes = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if size_bytes > _MAX_FILE_BYTES:
        raise DataError(f"{path} has weights of {size_bytes:,} bytes in f32; expected at most {_MAX_FILE_BYTES:,}.")


def _find_layers(path: Path, names: Mapping[str, object]) -> list[str]:
    """Return what precedes ``weight`` and ``bias`` in the names of the linear layers, in order."""
    chain = sorted(int(found[1]) for name in names if (found := _CHAIN.fullmatch(name)))
    layers = [f"scoring_head.{number}." for number in chain]
    layers = layers or [prefix for prefix in _LINEAR if f"{prefix}weight" in names][:1]
    if not layers or len(names) != 2 * len(layers):
        raise DataError(
            f"{path} has the tensors {', '.join(list(names)[:4])}, ...; expected one linear layer (weight, bias), or "
            "the chain scoring_head.0, .2, ... of the aesthetic predictor v2.5."
        )
    return layers


def fold_linear(
    tensors: Mapping[str, NDArray[np.float64]], layers: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights and biases of one linear layer that does what a chain of them does.

    Raises:
        DataError: the shapes of the layers do not follow each other, or those of their product are too large.
    """
    try:
        steps = [(tensors[f"{layer}weight"], tensors[f"{layer}bias"]) for layer in layers]
    except KeyError as error:
        raise DataError(f"The linear layers of a head do not fit together: {error} is missing.") from error
    fit = all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in steps)
    if not fit or any(weight.shape[1] != len(before) for (before, _), (weight, _) in pairwise(steps)):
        shapes = ", ".join(f"{weight.shape} and {bias.shape}" for weight, bias in steps)
        raise DataError(f"The linear layers of a head do not fit together: their weights and biases are {shapes:.200}.")
    weights, biases = steps[0]
    if 4 * weights.shape[1] * max(len(weight) for weight, _ in steps) > _MAX_FILE_BYTES:
        raise DataError(f"The linear layers of a head become a matrix of more than {_MAX_FILE_BYTES:,} bytes.")
    for weight, bias in steps[1:]:
        weights, biases = weight @ weights, weight @ biases + bias
    return weights, biases


def describe_scores(head: ScoreHead, scores: Floats) -> dict[str, Any]:
    """Return one image's scores by label."""
    return {label: float(score) for label, score in zip(head.labels, scores, strict=True)}
