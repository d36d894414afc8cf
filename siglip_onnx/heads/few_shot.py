"""Few-shot classifiers: text embeddings of class names, moved as far as labelled images support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..evaluate.metrics import Bools, Doubles, average_precision
from ..head import Floats
from .calibrate import Fit, LabelSet, Pairs, calibrate, fit_bias
from .folds import NUM_FOLDS, make_folds, splits
from .regression import fit_regression, log_loss

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # how many logits an image can move its own class, about
TEXT_SHARES = tuple(10 ** (-step / 10) for step in range(21))  # 1 to .01 of the texts' logits, from which to start
_ONE_SHOT_STRENGTH = 3.0  # where no image can be held out, divided by the text share
_KEPT = 0.95  # share of held-out images that are not called "none of these"


@dataclass(frozen=True)
class Head:
    """Weights f64 ``(M, D)`` and biases ``(M,)``: logits are ``scale * vectors @ weights.T + biases``."""

    weights: Doubles
    biases: Doubles
    scale: float

    def logits(self, vectors: Floats) -> Doubles:
        """Return logits f64 ``(N, M)`` of unit embeddings ``(N, D)``."""
        return self.scale * (vectors.astype(np.float64) @ self.weights.T) + self.biases


@dataclass(frozen=True)
class FewShot:
    """A fitted classifier.

    Attributes:
        head: the classifier.
        zero_shot: the texts alone.
        strength: how far images could move the texts; 0 is the texts alone.
        text_share: the part of the texts' logits from which the regression started, one of :data:`TEXT_SHARES`.
        held_out: logits ``(N, M)`` of each image by classifiers that were fitted without it; None if every class has
            only one image, so that none can be held out.
    """

    head: Head
    zero_shot: Head
    strength: float
    text_share: float
    held_out: Doubles | None

    @property
    def none_logit(self) -> float:
        """The logit that is beaten by the best one of all but 5 % of the held-out images.

        Raises:
            DataError: no image could be held out.
        """
        if self.held_out is None:
            raise _nothing_held_out()
        return float(np.quantile(self.held_out.max(axis=1), 1 - _KEPT))


def check_held_out(labels: Iterable[Sequence[int]]) -> None:
    """Check that images can be held out, from which the logit of none of these follows; see :class:`FewShot`.

    Raises:
        DataError: every class has at most one image.
    """
    if max(Counter(chain.from_iterable(labels)).values(), default=0) < 2:
        raise _nothing_held_out()


def _nothing_held_out() -> DataError:
    return DataError(
        "A threshold for none of these needs held-out scores, and every class has one image; give at least two."
    )


def fit_few_shot(vectors: Floats, truth: Bools, zero_shot: Head, *, one_label: bool) -> FewShot:
    """Fit a classifier to unit embeddings ``(N, D)`` and labels ``(N, M)``, starting from the texts' classifier.

    The text share is that under which the labels of the images are most likely by the texts alone. The strength is
    chosen by cross-validation: the smallest log loss minus accuracy (or mean average precision) on held-out images, of
    which the accuracy is noisier and the log loss depends more on single images; but not a choice whose accuracy is
    below that of the texts alone. With one image per class nothing can be held out: the less the texts explain, the
    larger the strength. Then scale and bias are calibrated on the held-out logits, so that sigmoids are frequencies.

    Raises:
        DataError: an image has no label although each must have one, or no image has a label.
    """
    counts = truth.sum(axis=1)
    if not truth.any() or (one_label and (counts != 1).any()):
        raise DataError(f"{int((counts != 1).sum())} images have no label or several; give --multi-label, or one each.")
    labels = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    text_share, start = _share_texts(vectors, truth, zero_shot, one_label=one_label)
    if truth.sum(axis=0).max() < 2:  # nothing can be held out
        strength = _ONE_SHOT_STRENGTH / text_share
        head = _fit(vectors, truth, start, (strength,), one_label=one_label)[0]
        return FewShot(head, zero_shot, strength, text_share, None)
    folds = make_folds(labels, min(NUM_FOLDS, len(labels)))
    score = hits if one_label else precisions
    least = float(np.nanmean(score(zero_shot.logits(vectors), truth)))
    strength, head = 0.0, zero_shot
    held_out: NDArray[Any] = zero_shot.logits(vectors)
    best = _scaled_loss(held_out, truth, one_label=one_label) - least
    rows = _hold_out(vectors, truth, zero_shot, folds, one_label=one_label)
    for each, logits in zip(STRENGTHS, rows, strict=True):
        reached = float(np.nanmean(score(logits, truth)))
        loss = _scaled_loss(logits, truth, one_label=one_label) - reached
        if loss < best and reached >= least:
            strength, best, held_out = each, loss, logits
    if strength:
        strengths = [each for each in STRENGTHS if each <= strength]
        head = _fit(vectors, truth, start, strengths, one_label=one_label)[-1]
    else:
        text_share = 1.0
    scored = LabelSet("", list(map(str, range(truth.shape[1]))), held_out)
    try:
        fit = calibrate([scored], truth, Fit(1, 0), fit_scale=True)
    except DataError:  # the held-out images do not prefer their own labels
        fit = calibrate([scored], truth, Fit(1, 0))
    calibrated = Head(head.weights, fit.scale * head.biases + fit.bias, fit.scale * head.scale)
    return FewShot(calibrated, zero_shot, strength, text_share, fit.scale * held_out.astype(np.float64) + fit.bias)


def _share_texts(
    vectors: Floats, truth: Bools, zero_shot: Head, *, one_label: bool
) -> tuple[float, Head]:  # fmt: skip
    """Return the part of the texts' logits that explains the labels best, and the texts with that part.

    A bias is fitted to that part, because less of the logits needs another one.
    """
    scores = zero_shot.scale * (vectors.astype(np.float64) @ zero_shot.weights.T)

    def bias_of(share: float) -> float:
        return fit_bias(Pairs([scores], truth), float(zero_shot.biases.mean()), scale=share)

    def loss_of(share: float) -> float:
        bias = 0.0 if one_label else bias_of(share)  # to softmax, a common bias is nothing
        return log_loss(scores, truth, one_label=one_label, scale=share, bias=bias)

    share = min(TEXT_SHARES, key=loss_of)
    return share, Head(share * zero_shot.weights, np.full(truth.shape[1], bias_of(share)), zero_shot.scale)


def _scaled_loss(logits: NDArray[Any], truth: Bools, *, one_label: bool) -> float:
    """Return the log loss per image at the best scale, because the scale is calibrated afterwards."""
    return min(log_loss(logits, truth, one_label=one_label, scale=scale) for scale in TEXT_SHARES) / len(truth)


def _hold_out(
    vectors: Floats, truth: Bools, zero_shot: Head, folds: NDArray[np.int64], *, one_label: bool
) -> list[Floats]:  # fmt: skip
    """Return for each strength the logits of each image by classifiers that were fitted to the other folds."""
    held_out = [np.empty(truth.shape, np.float32) for _ in STRENGTHS]
    for fitted, rest in splits(folds):
        _, start = _share_texts(vectors[fitted], truth[fitted], zero_shot, one_label=one_label)
        heads = _fit(vectors[fitted], truth[fitted], start, STRENGTHS, one_label=one_label)
        for logits, head in zip(held_out, heads, strict=True):
            logits[rest] = head.logits(vectors[rest])
    return held_out


def _fit(
    vectors: Floats, truth: Bools, start: Head, strengths: Sequence[float], *, one_label: bool
) -> list[Head]:  # fmt: skip
    """Return a classifier for each strength, in ascending order; each starts from the one before."""
    features, offsets = vectors.astype(np.float64), start.logits(vectors)
    heads, changes = [], None
    for strength in strengths:
        changes = fit_regression(features, offsets, truth, strength, one_label=one_label, start=changes)
        weights = start.weights + changes[:, :-1] / start.scale
        heads.append(Head(weights, start.biases + changes[:, -1], start.scale))
    return heads


def hits(logits: NDArray[Any], truth: Bools) -> NDArray[np.bool_]:
    """Return for each image whether its label is the best one."""
    right: NDArray[np.bool_] = truth[np.arange(len(truth)), logits.argmax(axis=1)]
    return right


def precisions(logits: NDArray[Any], truth: Bools) -> Doubles:
    """Return the average precision of each label, nan without images."""
    return np.array([average_precision(logits[:, column], truth[:, column]) for column in range(truth.shape[1])])
