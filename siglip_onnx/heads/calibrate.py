"""Fit the bias and the scale of a model to labelled images, so that its probabilities are frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..evaluate.metrics import Bools, Doubles, Reliability, best_threshold, calibration_error
from ..head import Calibration, Floats
from ..model import SigLIP
from .folds import NUM_FOLDS, make_folds, splits

ALL, LABEL, LANGUAGE = "all", "label", "language"
SCOPES = (ALL, LABEL, LANGUAGE)  # for what a bias is fitted
_SPREAD = 1.0  # of the biases of single labels around the common one, in logits; few images move a bias little
_STEPS = 100
_LARGEST_STEP = 2.0
_CONVERGED = 1e-10
_PAIRS = 1_000_000  # at the same time


@dataclass(frozen=True)
class LabelSet:
    """The classes in the words of one language, and what the model says of them without its bias.

    Attributes:
        language: its name, empty if there is only one set.
        texts: the words for each class.
        scores: ``exp(logit_scale)`` times the cosines, f32 or f64 ``(N, M)``.
    """

    language: str
    texts: list[str]
    scores: NDArray[Any]


@dataclass(frozen=True)
class Fit:
    """A scale, a common bias, and the biases of single texts, by language and text."""

    scale: float
    bias: float
    texts: dict[tuple[str, str], float] = field(default_factory=dict)

    def biases(self, labels: LabelSet) -> Doubles:
        """Return the bias of each label ``(M,)``."""
        return np.array([self.texts.get((labels.language, text), self.bias) for text in labels.texts])


def score_labels(model: SigLIP, images: Floats, texts: Sequence[str], classes: Floats, language: str) -> LabelSet:
    """Return what the model says of unit embeddings of images ``(N, D)`` and of texts ``(M, D)``, without its bias."""
    scaled = classes.astype(np.float64)
    scaled *= np.exp(model.bundle.manifest.head["logit_scale"])
    scores = np.empty((len(images), len(texts)), np.float32)
    for rows in in_blocks(np.arange(len(images)), len(texts)):
        scores[rows] = images[rows].astype(np.float64) @ scaled.T
    return LabelSet(language, list(texts), scores)


def calibrate(
    label_sets: Sequence[LabelSet],
    truth: Bools,
    start: Fit,
    *,
    scope: str = ALL,
    fit_scale: bool = False,
    images: NDArray[np.bool_] | None = None,
) -> Fit:
    """Return the scale and biases of the highest likelihood: every pair of image and label counts as one yes or no.

    Args:
        label_sets: the same classes in one or several languages.
        truth: ``(N, M)``, which labels are true of each image.
        start: the model's own scale, 1, and bias.
        scope: one bias for all, one of each language, or one of each label, which stays near the common one if there
            are few images.
        fit_scale: fit the scale too; otherwise it stays 1.
        images: ``(N,)``, which images count; by default all.
    """
    rows = np.arange(len(truth)) if images is None else np.flatnonzero(images)
    scale, bias = _fit_pair(Pairs([labels.scores for labels in label_sets], truth, rows), start, fit_scale=fit_scale)
    texts: dict[tuple[str, str], float] = {}
    for labels in label_sets if scope != ALL else ():
        if scope == LANGUAGE:
            own = fit_bias(Pairs([labels.scores], truth, rows), bias, scale=scale)
            texts |= {(labels.language, text): own for text in labels.texts}
        else:
            for column, text in enumerate(labels.texts):
                pairs = [(labels.scores[rows, column].astype(np.float64), truth[rows, column])]
                texts[labels.language, text] = fit_bias(pairs, bias, scale=scale, spread=_SPREAD)
    return Fit(scale, bias, texts)


class Pairs:
    """Scores and truth of pairs of image and label, in blocks: a data set may have a hundred million pairs."""

    def __init__(self, scores: Sequence[NDArray[Any]], truth: Bools, rows: NDArray[np.int64] | None = None) -> None:
        """Take some rows, by default all, of matrices ``(N, M)`` of scores, which share one of truth."""
        self._scores, self._truth = scores, truth
        self._rows = np.arange(len(truth)) if rows is None else rows

    def __iter__(self) -> Iterator[tuple[Doubles, Bools]]:
        for scores in self._scores:
            for rows in in_blocks(self._rows, scores.shape[1]):
                yield scores[rows].ravel().astype(np.float64), self._truth[rows].ravel()


def in_blocks(rows: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of a matrix of this width, at most :data:`_PAIRS` of its elements at a time."""
    at_once = max(1, _PAIRS // max(1, width))
    return (rows[first : first + at_once] for first in range(0, len(rows), at_once))


def _fit_pair(pairs: Iterable[tuple[Doubles, Bools]], start: Fit, *, fit_scale: bool) -> tuple[float, float]:
    """Return scale and bias of the highest likelihood, with a weak prior that keeps separable pairs at a finite scale.

    Raises:
        DataError: higher scores go with false labels, so that no positive scale fits.
    """
    bias = fit_bias(pairs, start.bias)
    if not fit_scale:
        return 1.0, bias
    # Around the mean score of true pairs, scale and bias are nearly independent, so that Newton's steps are good ones.
    totals = np.sum([(scores[truth].sum(), truth.sum(), truth.size) for scores, truth in pairs], axis=0)
    if totals[1] in (0, totals[2]):  # of rare labels, all true pairs may be in the fold that is held out
        return 1.0, bias
    center = float(totals[0] / totals[1])

    def loss(place: Doubles) -> float:
        total = 0.5 * (place[0] - 1) ** 2
        for scores, truth in pairs:
            logits = place[0] * (scores - center) + place[1]
            total += np.logaddexp(0, np.where(truth, -logits, logits)).sum()
        return float(total)

    place = np.array([1.0, bias + center])
    for _ in range(_STEPS):
        gradient = np.array([place[0] - 1, 0.0])  # of the prior: precision 1, around the scale 1
        curvature = np.diag([1.0, 0.0]) + 1e-9 * np.eye(2)
        for scores, truth in pairs:
            centered = scores - center
            probabilities = sigmoid64(place[0] * centered + place[1])
            errors, weights = probabilities - truth, probabilities * (1 - probabilities)
            weighted = weights @ centered
            gradient += (errors @ centered, errors.sum())
            curvature += ((weights @ centered**2, weighted), (weighted, weights.sum()))
        step = np.linalg.solve(curvature, gradient)
        now = loss(place)
        while loss(place - step) > now and np.abs(step).max() > _CONVERGED:
            step = step / 2
        place = place - step
        if np.abs(step).max() <= _CONVERGED:
            break
    if place[0] <= 0:
        raise DataError("Higher scores go with false labels: the texts do not describe the classes. Check --labels.")
    return float(place[0]), float(place[1] - place[0] * center)


def fit_bias(
    pairs: Iterable[tuple[Doubles, Bools]], start: float, *, scale: float = 1.0, spread: float | None = None
) -> float:
    """Return the bias of the highest likelihood of ``scale`` times the scores, by damped Newton steps.

    ``pairs`` are blocks of scores and truth, iterated in every step. Without a spread around ``start`` both kinds of
    truth must occur.
    """
    bias = start
    for _ in range(_STEPS):
        gradient, curvature = 0.0, 1e-12
        for scores, truth in pairs:
            probabilities = sigmoid64(scale * scores + bias)
            gradient += float(probabilities.sum() - truth.sum())
            curvature += float((probabilities * (1 - probabilities)).sum())
        if spread is not None:
            gradient += (bias - start) / spread**2
            curvature += 1 / spread**2
        step = min(max(gradient / curvature, -_LARGEST_STEP), _LARGEST_STEP)
        bias -= step
        if abs(step) < _CONVERGED:
            break
    return bias


def sigmoid64(logits: Doubles) -> Doubles:
    """Return probabilities in f64."""
    small = np.exp(-np.abs(logits))
    larger = 1 / (1 + small)
    return np.where(logits >= 0, larger, small * larger)


@dataclass(frozen=True)
class Quality:
    """Calibration errors over all pairs and over the best label of each image, before and after."""

    language: str
    before: float
    after: float
    before_top1: float
    after_top1: float


@dataclass(frozen=True)
class LabelQuality:
    """One label: its images, the calibration error, and the probability from which on F1 is highest."""

    language: str
    text: str
    images: int
    before: float
    after: float
    threshold_before: float | None
    threshold_after: float | None


@dataclass(frozen=True)
class Report:
    """What a calibration changes on images that it was not fitted to."""

    sets: list[Quality]
    labels: list[LabelQuality]


def cross_validate(
    label_sets: Sequence[LabelSet], truth: Bools, start: Fit, *, scope: str = ALL, fit_scale: bool = False
) -> Report:
    """Calibrate on four fifths of the images and measure on the rest, in turn.

    Raises:
        DataError: fewer images than folds, or no image of a label.
    """
    check_truth(truth)
    folds = make_folds([tuple(np.flatnonzero(row).tolist()) for row in truth])
    fits = [
        (held_out, calibrate(label_sets, truth, start, scope=scope, fit_scale=fit_scale, images=fitted))
        for fitted, held_out in splits(folds)
    ]
    before = [(np.ones(len(truth), bool), start)]
    qualities, rows = [], []
    for each in label_sets:
        old, new = _Judged(each, before), _Judged(each, fits)
        qualities.append(Quality(each.language, old.error(truth), new.error(truth), old.top1(truth), new.top1(truth)))
        for column, text in enumerate(each.texts):
            own, logits = truth[:, column], [judged.column(column) for judged in (old, new)]
            errors = [calibration_error(sigmoid64(values), own) for values in logits]
            thresholds = [_threshold(values, own) for values in logits]
            rows.append(LabelQuality(each.language, text, int(own.sum()), *errors, *thresholds))
    return Report(qualities, rows)


class _Judged:
    """A set of labels, and the fits by which its images are judged: each those of which it is held out."""

    def __init__(self, labels: LabelSet, fits: Sequence[tuple[NDArray[np.bool_], Fit]]) -> None:
        self._labels = labels
        self._number = np.zeros(len(labels.scores), np.int64)  # of each image's fit
        for number, (held_out, _) in enumerate(fits):
            self._number[held_out] = number
        self._scales = np.array([fit.scale for _, fit in fits])
        self._biases = np.array([fit.biases(labels) for _, fit in fits])

    def column(self, column: int) -> Doubles:
        """Return the logits ``(N,)`` of one label."""
        scales, biases = self._scales[self._number], self._biases[self._number, column]
        logits: Doubles = scales * self._labels.scores[:, column] + biases
        return logits

    def error(self, truth: Bools) -> float:
        """Return the calibration error of all pairs."""
        reliability = Reliability()
        for rows, logits in self._blocks():
            reliability.add(sigmoid64(logits), truth[rows])
        return reliability.error

    def top1(self, truth: Bools) -> float:
        """Return the calibration error of the best label of each image."""
        reliability = Reliability()
        for rows, logits in self._blocks():
            reliability.add(sigmoid64(logits.max(axis=1)), truth[rows, logits.argmax(axis=1)])
        return reliability.error

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], Doubles]]:
        """Yield some rows at a time, with their logits."""
        scores = self._labels.scores
        for rows in in_blocks(np.arange(len(scores)), scores.shape[1]):
            number = self._number[rows]
            yield rows, self._scales[number, np.newaxis] * scores[rows] + self._biases[number]


def check_truth(truth: Bools) -> None:
    """Check that labels can be calibrated.

    Raises:
        DataError: fewer images than folds, or labels that are true of all images or of none.
    """
    if len(truth) < NUM_FOLDS:
        raise DataError(f"There are {len(truth)} images to calibrate with; give at least {NUM_FOLDS}, better 100.")
    if truth.all() or not truth.any():
        raise DataError("The labels are true of all images, or of none; give images with different labels.")


def _threshold(logits: Doubles, truth: NDArray[np.bool_]) -> float | None:
    threshold, _ = best_threshold(logits, truth)
    return float(sigmoid64(np.array(threshold))) if np.isfinite(threshold) else None


def to_calibration(model: SigLIP, fit: Fit, data: dict[str, Any]) -> Calibration:
    """Return a fit as what models take. A text of several languages gets the mean of its biases."""
    biases: dict[str, list[float]] = {}
    for (_, text), bias in fit.texts.items():
        biases.setdefault(text, []).append(bias)
    texts = {text: float(np.mean(values)) for text, values in biases.items()}
    manifest = model.bundle.manifest
    return Calibration(manifest.model_name, model.variant, fit.scale, fit.bias, texts, data, manifest.spaces)
