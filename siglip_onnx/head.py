"""The head: logits, sigmoid probabilities and softmax shares of embeddings, in numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    image_embeddings: Floats, text_embeddings: Floats, *, logit_scale: float, logit_bias: float
) -> Floats:
    """Return logits f32 ``(N, M)`` of unit embeddings ``(N, D)`` and ``(M, D)``.

    ``logit_scale`` is the checkpoint's raw, log-space parameter. Sums are f64 and rounded once, so that the result
    does not depend on the order of summation: a compiled classifier gives the same bits.
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
