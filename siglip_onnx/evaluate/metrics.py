"""Metrics of logits, with bootstrapped intervals: accuracy, calibration error, average precision, recall at k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..head import Floats, sigmoid

CONFIDENCE = 0.95
NUM_BINS = 15  # of the calibration error, as in Guo et al. 2017
RECALL_AT = (1, 5, 10)
_RESAMPLES = 2000
_COMPARED_AT_ONCE = 4_000_000  # pairs of image and text
_RESAMPLED_AT_ONCE = 20_000_000  # counts of a byte in memory
_DRAWN_AT_ONCE = 2_000_000  # numbers in memory, 16 bytes each
Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: NDArray[Any], *, seed: int = 0) -> Interval:
    """Return the mean of values ``(N,)`` with its interval; of differences on the same inputs, it is a paired one."""
    exact = values.astype(np.float64)
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // len(exact))
    means = np.concatenate([
        exact[rng.integers(len(exact), size=(min(at_once, _RESAMPLES - start), len(exact)))].mean(axis=1)
        for start in range(0, _RESAMPLES, at_once)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(exact.mean()), float(low), float(high))


def bootstrap_ratio(values: NDArray[Any], weights: Doubles, *, seed: int = 0) -> Interval:
    """Return the sum of values ``(N,)`` over that of weights, with its interval; of ``(N, K)`` the mean of K ratios.

    A resample in which the weights of a ratio are all 0 does not count for it.
    """
    columns, totals = (each.astype(np.float64).reshape(len(each), -1) for each in (values, weights))
    at_once = max(1, _RESAMPLED_AT_ONCE // len(columns))
    ratios = []
    for start in range(0, _RESAMPLES, at_once):
        drawn = _resamples(len(columns), min(at_once, _RESAMPLES - start), seed + start).astype(np.float64)
        known = drawn @ totals
        each = np.divide(drawn @ columns, known, out=np.full(known.shape, np.nan), where=known > 0)
        counted = (known > 0).sum(axis=1)
        ratios.append((np.nansum(each, axis=1) / np.maximum(1, counted))[counted > 0])
    low, high = np.quantile(np.concatenate(ratios), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean_ratio(values, weights), float(low), float(high))


@lru_cache(10)  # the scores of an evaluation share them: 20 MB each
def _resamples(size: int, count: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each of ``size`` units is drawn in each of ``count`` resamples, at most 255 times."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((count, size), np.uint8)
    for row in drawn:
        row[:] = np.minimum(np.bincount(rng.integers(size, size=size), minlength=size), 255)
    return drawn


def mean_ratio(values: NDArray[Any], weights: Doubles) -> float:
    """Return the sum of values ``(N,)`` over that of weights; of ``(N, K)`` the mean of K ratios."""
    return float((values.sum(axis=0) / weights.sum(axis=0)).mean())


def ranks_of(logits: Floats, right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many other classes are at least as high as the right one ``(N,)`` in logits ``(N, M)``.

    A tie is not a right answer: classes of equal logits count as before the right one.
    """
    own = np.take_along_axis(logits, right[:, np.newaxis], axis=1)
    ranks: NDArray[np.int64] = (logits >= own).sum(axis=1) - 1
    return ranks


class Reliability:
    """Probabilities beside the frequencies of the events, in equally wide bins; filled in parts."""

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        self.counts = np.zeros(num_bins, np.int64)
        self.sums = np.zeros(num_bins)  # of the probabilities
        self.events = np.zeros(num_bins, np.int64)

    def add(self, probabilities: NDArray[Any], truth: Bools) -> None:
        """Add probabilities and whether each event happened, of any equal shapes."""
        values, events, num_bins = probabilities.astype(np.float64).ravel(), truth.ravel(), len(self.counts)
        bins = np.minimum((values * num_bins).astype(np.int64), num_bins - 1)
        self.counts += np.bincount(bins, minlength=num_bins)
        self.sums += np.bincount(bins, values, num_bins)
        self.events += np.bincount(bins[events], minlength=num_bins)

    @property
    def error(self) -> float:
        """The expected calibration error: each bin counts by its share of the values.

        Source: Guo et al. 2017, section 2.
        """
        return float(np.abs(self.sums - self.events).sum() / self.counts.sum())


def calibration_error(probabilities: NDArray[Any], truth: Bools) -> float:
    """Return the expected calibration error of probabilities, see :class:`Reliability`."""
    reliability = Reliability()
    reliability.add(probabilities, truth)
    return reliability.error


def best_threshold(scores: NDArray[Any], truth: Bools) -> tuple[float, float]:
    """Return the score from which on calling everything true gives the highest F1, and that F1.

    The threshold lies midway between two scores. Without a true value there is none: ``(inf, 0)``.
    """
    if not truth.any():
        return float("inf"), 0.0
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + truth.sum())
    ends = np.append(ranked[1:] < ranked[:-1], True)  # equal scores are called true together
    best = int(np.flatnonzero(ends)[np.argmax(f1[ends])])
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1
    return float((ranked[best] + below) / 2), float(f1[best])


def average_precision(scores: NDArray[Any], truth: Bools) -> float:
    """Return the mean precision at each true value, highest scores first; nan without a true value.

    Equal scores count as ordered worst first, so that ties do not help.
    """
    order = np.lexsort((truth, -scores))
    ranked = truth[order]
    if not ranked.any():
        return float("nan")
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


@dataclass(frozen=True)
class Answers:
    """What a variant answers for each image: ``(N,)`` each.

    Attributes:
        best: number of the class with the highest logit.
        rank: how many classes rank before the right one.
        confidence: probability of the best class.
    """

    best: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence: Floats


def answer(logits: Floats, right: NDArray[np.int64]) -> Answers:
    """Return what logits ``(N, M)`` say, where ``right`` ``(N,)`` are the true classes."""
    best = logits.argmax(axis=1)
    highest = np.take_along_axis(logits, best[:, np.newaxis], axis=1)[:, 0]
    return Answers(best, ranks_of(logits, right), sigmoid(highest))


def confusion(right: NDArray[np.int64], best: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return how many images of each true class (rows) were given each class (columns)."""
    counts = np.bincount(right * num_classes + best, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Retrieval:
    """Ranks, and the best answers, of image-to-text ``(N,)`` and text-to-image ``(M,)``.

    A rank counts the others that are at least as similar: texts of other images than the best own text, other images
    than the text's own. An image without a text has no rank in image-to-text: M.
    """

    image_ranks: NDArray[np.int64]
    best_texts: NDArray[np.int64]
    text_ranks: NDArray[np.int64]
    best_images: NDArray[np.int64]


def retrieve(
    images: Floats,
    texts: Floats,
    captions: NDArray[np.int64],
    owners: NDArray[np.int64],
    *,
    rows_at_once: int | None = None,
) -> Retrieval:
    """Compare unit embeddings of images ``(N, D)`` and of the captions' texts ``(T, D)``, each text once.

    ``captions`` ``(M,)`` says which text each caption is, ``owners`` ``(M,)`` which image it belongs to.
    """
    rows_at_once = rows_at_once or max(1, min(1000, _COMPARED_AT_ONCE // max(1, len(captions))))
    image_ranks, best_texts = np.empty(len(images), np.int64), np.empty(len(images), np.int64)
    text_ranks, best_images = np.zeros(len(captions), np.int64), np.zeros(len(captions), np.int64)
    highest = np.full(len(captions), -np.inf, np.float32)
    own = _compare_pairs(images, texts, owners, captions)
    best_own = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(best_own, owners, own)
    exact_texts = texts.astype(np.float64).T
    for start in range(0, len(images), rows_at_once):
        rows = np.arange(start, min(start + rows_at_once, len(images)))
        # Rounded, so that equal captions are ties although their sums were taken in another order.
        similar = (images[rows].astype(np.float64) @ exact_texts).astype(np.float32)[:, captions]
        is_other = owners != rows[:, np.newaxis]
        best_texts[rows] = similar.argmax(axis=1)
        image_ranks[rows] = ((similar >= best_own[rows][:, np.newaxis]) & is_other).sum(axis=1)
        text_ranks += ((similar >= own) & is_other).sum(axis=0)
        higher = similar.max(axis=0) > highest
        best_images[higher] = start + similar[:, higher].argmax(axis=0)
        highest = np.maximum(highest, similar.max(axis=0))
    return Retrieval(image_ranks, best_texts, text_ranks, best_images)


def _compare_pairs(
    images: Floats, texts: Floats, image_rows: NDArray[np.int64], text_rows: NDArray[np.int64]
) -> Floats:  # fmt: skip
    """Return the similarities ``(M,)`` of pairs of an image and a text, without a copy of all their embeddings."""
    similar = np.empty(len(image_rows), np.float32)
    at_once = max(1, _COMPARED_AT_ONCE // images.shape[1])
    for start in range(0, len(similar), at_once):
        part = slice(start, start + at_once)
        similar[part] = (images[image_rows[part]].astype(np.float64) * texts[text_rows[part]]).sum(axis=1)
    return similar


def mean_per_class(hits: Bools, right: NDArray[np.int64], num_classes: int) -> Doubles:
    """Return each class's share of hits ``(num_classes,)``, nan without images."""
    counts = np.bincount(right, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        shares: Doubles = np.bincount(right, hits, num_classes) / counts
    return shares


def one_hot(labels: Sequence[Sequence[int]], num_classes: int) -> Bools:
    """Return truth ``(N, num_classes)`` of the class numbers of each image."""
    truth = np.zeros((len(labels), num_classes), bool)
    for row, numbers in enumerate(labels):
        truth[row, list(numbers)] = True
    return truth


class Labels:
    """Several labels of each image, as pairs: a matrix of all images and all labels may not fit into memory."""

    def __init__(self, labels: Sequence[Sequence[int]], num_classes: int) -> None:
        """Take the class numbers of each image."""
        pairs = np.array([(number, row) for row, numbers in enumerate(labels) for number in numbers], np.int64)
        self._pairs = pairs[np.argsort(pairs[:, 0], kind="stable")] if len(pairs) else pairs.reshape(0, 2)
        self._num_images = len(labels)
        self.sizes: NDArray[np.int64] = np.bincount(self._pairs[:, 0], minlength=num_classes)  # images of each class

    def truth(self, columns: slice) -> Bools:
        """Return ``(N, M)`` for some consecutive classes."""
        classes = range(len(self.sizes))[columns]
        first, end = np.searchsorted(self._pairs[:, 0], (classes.start, classes.stop))
        truth = np.zeros((self._num_images, len(classes)), bool)
        truth[self._pairs[first:end, 1], self._pairs[first:end, 0] - classes.start] = True
        return truth
