"""The head: logits, sigmoid probabilities and softmax shares of embeddings, in numpy; and its calibration."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, OptionError
from .system.json_files import MAX_JSON_BYTES, read_json_object
from .system.records import read_record

_MAX_SCALE, _MAX_BIAS = 1000.0, 10_000.0  # of a calibration; with larger ones logits would not be finite
CALIBRATION_FORMAT = "siglip_onnx.calibration/1"
Floats = NDArray[np.float32]
_ROWS_AT_ONCE = 4096  # that are f64 at the same time


class Match(NamedTuple):
    """How well one text describes one image.

    ``probability`` is the model's own and does not depend on the other texts. ``relative`` is the softmax share among
    the texts of one call: it sums to 1 over them and shows which text fits best, not whether any does.
    """

    text: str
    logit: float
    probability: float
    relative: float


def check_finite(value: float, name: str) -> float:
    """Return a number as a float.

    Raises:
        OptionError: it is not a finite number.
    """
    # isfinite raises an error for whole numbers that are too large for a float.
    if not isinstance(value, Real) or not abs(value) <= sys.float_info.max:
        raise OptionError(f"{name} is {value!r:.100}, expected a finite number.")
    return float(value)


def check_bias(value: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
    """Return a bias, or one of each text, as f64.

    Raises:
        OptionError: it is not a finite number, or so large that logits would not be.
    """
    values = value if isinstance(value, np.ndarray) else check_finite(value, "logit_bias")
    if not (np.abs(values) <= _MAX_BIAS).all():
        raise OptionError(f"logit_bias is {value!r:.100}, expected numbers from {-_MAX_BIAS:g} to {_MAX_BIAS:g}.")
    return values


def l2_normalize(features: Floats) -> Floats:
    """Scale each row of ``features``, f32 ``(N, D)``, to length 1; computed in f64, see :func:`compute_logits`.

    A row whose length is zero or not finite becomes nan.
    """
    exact = features.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        normalized: Floats = (exact / np.linalg.norm(exact, axis=-1, keepdims=True)).astype(np.float32)
    return normalized


def average_unit(embeddings: Floats) -> Floats:
    """Return the mean over axis 1 of unit embeddings f32 ``(M, K, D)``, scaled to length 1 again: ``(M, D)``."""
    if embeddings.shape[1] == 1:
        return embeddings[:, 0]
    return l2_normalize(embeddings.mean(axis=1))


def compute_logits(
    image_embeddings: Floats, text_embeddings: Floats, *, logit_scale: float, logit_bias: float | NDArray[np.float64]
) -> Floats:
    """Return logits f32 ``(N, M)`` of unit embeddings ``(N, D)`` and ``(M, D)``.

    ``logit_scale`` is the checkpoint's raw, log-space parameter, ``logit_bias`` one number or f64 ``(M,)``. Sums are
    f64 and rounded once, so that the result does not depend on the order of summation: a compiled classifier gives the
    same bits.
    Source: ``SiglipModel.forward`` of transformers 4.57.
    """
    texts = text_embeddings.astype(np.float64).T
    logits = np.empty((len(image_embeddings), len(text_embeddings)), np.float32)
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        logits[rows] = image_embeddings[rows].astype(np.float64) @ texts * np.exp(logit_scale) + logit_bias
    return logits


def sigmoid(logits: Floats) -> Floats:
    """Return ``1 / (1 + exp(-logits))``, without overflow for large negative logits."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def softmax(logits: Floats) -> Floats:
    """Return each row's shares, which sum to 1 over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def match_texts(logits: Floats, texts: list[str]) -> list[Match]:
    """Turn one image's logits f32 ``(M,)`` into one match per text, in the order given."""
    probabilities, shares = sigmoid(logits), softmax(logits)
    return [
        Match(text, float(logit), float(probability), float(share))
        for text, logit, probability, share in zip(texts, logits, probabilities, shares, strict=True)
    ]


@dataclass(frozen=True)
class Calibration:
    """A bias and a scale fitted to labelled images, so that probabilities are frequencies; ``calibrate`` writes it.

    Attributes:
        model: name of the model that it was fitted to.
        variant: the variant.
        scale: multiplies the model's ``exp(logit_scale)``.
        bias: replaces the model's ``logit_bias``.
        texts: biases of single texts, which replace ``bias`` for these.
        data: the images that it was fitted to, and by how much the error was reduced.
        spaces: the embedding spaces of the model's variants, by which it is recognized.
    """

    model: str
    variant: str
    scale: float
    bias: float
    texts: Mapping[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    spaces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one is not finite or absurdly large, or the scale is not positive.
        """
        if not 1 / _MAX_SCALE <= self.scale <= _MAX_SCALE:
            raise ValueError(f"its scale is {self.scale}, expected {1 / _MAX_SCALE:g} to {_MAX_SCALE:g}")
        odd = next((bias for bias in (self.bias, *self.texts.values()) if not abs(bias) <= _MAX_BIAS), None)
        if odd is not None:
            raise ValueError(f"it has the bias {odd}, expected {-_MAX_BIAS:g} to {_MAX_BIAS:g}")

    def suits(self, variant: str, spaces: Mapping[str, str]) -> bool:
        """Say whether it was fitted to the model whose variants have these embedding spaces, or to another variant."""
        if variant in self.spaces:
            return self.spaces[variant] == spaces[variant]
        return bool(self.spaces.items() & spaces.items())

    def biases(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the bias of each text ``(M,)``."""
        return np.array([self.texts.get(text, self.bias) for text in texts], np.float64)


def read_calibration(path: Path) -> Calibration:
    """Read what ``siglip-onnx calibrate`` wrote.

    Raises:
        DataError: it cannot be read, or is damaged or of another format.
    """
    try:
        document = read_json_object(path, MAX_JSON_BYTES)
        if document.pop("format", None) != CALIBRATION_FORMAT:
            raise ValueError(f"its format is not {CALIBRATION_FORMAT}")
        return read_record(Calibration, document, ignore_unknown=True)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} cannot be read as a calibration: {problem}. Write one: siglip-onnx calibrate"
        ) from error
