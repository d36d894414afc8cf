"""Fit the bias and the scale of a model to labelled images, so that its probabilities are frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..evaluate.metrics import Bools, Doubles, best_threshold, calibration_error
from ..head import Calibration, Floats
from ..model import SigLIP
from .folds import NUM_FOLDS, make_folds, splits

ALL, LABEL, LANGUAGE = "all", "label", "language"
SCOPES = (ALL, LABEL, LANGUAGE)  # for what a bias is fitted
_SPREAD = 1.0  # of the biases of single labels around the common one, in logits; few images move a bias little
_STEPS = 100
_LARGEST_STEP = 2.0
_CONVERGED = 1e-10


@dataclass(frozen=True)
class LabelSet:
    """The classes in the words of one language, and what the model says of them without its bias.

    Attributes:
        language: its name, empty if there is only one set.
        texts: the words for each class.
        scores: ``exp(logit_scale)`` times the cosines ``(N, M)``.
    """

    language: str
    texts: list[str]
    scores: Doubles


@dataclass(frozen=True)
class Fit:
    """A scale, a common bias, and the biases of single texts, by language and text."""

    scale: float
    bias: float
    texts: dict[tuple[str, str], float] = field(default_factory=dict)

    def logits(self, labels: LabelSet, rows: Bools) -> Doubles:
        """Return the logits of some images."""
        biases = [self.texts.get((labels.language, text), self.bias) for text in labels.texts]
        logits: Doubles = self.scale * labels.scores[rows] + np.array(biases)
        return logits


def score_labels(
    model: SigLIP, images: Floats, texts: Sequence[str], templates: Sequence[str], language: str
) -> LabelSet:
    """Return what the model says of unit embeddings ``(N, D)`` and texts, without its bias."""
    embeddings = model.encode_labels(list(texts), template=list(templates))
    scores = (
        images.astype(np.float64) @ embeddings.astype(np.float64).T * np.exp(model.bundle.manifest.head["logit_scale"])
    )
    return LabelSet(language, list(texts), scores)


def calibrate(
    label_sets: Sequence[LabelSet], truth: Bools, start: Fit, *, scope: str = ALL, fit_scale: bool = False
) -> Fit:
    """Return the scale and biases of the highest likelihood: every pair of image and label counts as one yes or no.

    Args:
        label_sets: the same classes in one or several languages.
        truth: ``(N, M)``, which labels are true of each image.
        start: the model's own scale, 1, and bias.
        scope: one bias for all, one of each language, or one of each label, which stays near the common one if there
            are few images.
        fit_scale: fit the scale too; otherwise it stays 1.
    """
    scores = np.concatenate([labels.scores for labels in label_sets], axis=1)
    both = np.concatenate([truth] * len(label_sets), axis=1)
    scale, bias = _fit_pair(scores.ravel(), both.ravel(), start, fit_scale=fit_scale)
    texts: dict[tuple[str, str], float] = {}
    for labels in label_sets if scope != ALL else ():
        shared = Fit(scale, bias)
        if scope == LANGUAGE:
            own = fit_bias(scale * labels.scores.ravel(), truth.ravel(), shared.bias, spread=None)
            texts |= {(labels.language, text): own for text in labels.texts}
        else:
            for column, text in enumerate(labels.texts):
                own = fit_bias(scale * labels.scores[:, column], truth[:, column], shared.bias, spread=_SPREAD)
                texts[labels.language, text] = own
    return Fit(scale, bias, texts)


def _fit_pair(scores: Doubles, truth: Bools, start: Fit, *, fit_scale: bool) -> tuple[float, float]:
    """Return scale and bias of the highest likelihood, with a weak prior that keeps separable pairs at a finite scale.

    Raises:
        DataError: higher scores go with false labels, so that no positive scale fits.
    """
    bias = fit_bias(scores, truth, start.bias, spread=None)
    if not fit_scale:
        return 1.0, bias
    # Around the mean score of true pairs, scale and bias are nearly independent, so that Newton's steps are good ones.
    center = float(scores[truth].mean())
    features = np.stack([scores - center, np.ones_like(scores)])
    prior = np.array([1.0, 0.0])  # precision, around the scale 1

    def loss(place: Doubles) -> float:
        logits = place @ features
        return float(np.logaddexp(0, np.where(truth, -logits, logits)).sum() + 0.5 * (place[0] - 1) ** 2)

    place = np.array([1.0, bias + center])
    for _ in range(_STEPS):
        probabilities = sigmoid64(place @ features)
        gradient = features @ (probabilities - truth) + prior * (place - 1)
        curvature = (features * (probabilities * (1 - probabilities))) @ features.T + np.diag(prior + 1e-9)
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


def fit_bias(scores: Doubles, truth: Bools, start: float, *, spread: float | None) -> float:
    """Return the bias of the highest likelihood, by damped Newton steps; without a spread both kinds must occur."""
    bias = start
    for _ in range(_STEPS):
        probabilities = sigmoid64(scores + bias)
        gradient = probabilities.sum() - truth.sum()
        curvature = (probabilities * (1 - probabilities)).sum()
        if spread is not None:
            gradient += (bias - start) / spread**2
            curvature += 1 / spread**2
        step = np.clip(gradient / max(curvature, 1e-12), -_LARGEST_STEP, _LARGEST_STEP)
        bias -= float(step)
        if abs(step) < _CONVERGED:
            break
    return bias


def sigmoid64(logits: Doubles) -> Doubles:
    """Return probabilities in f64."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


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
    labels = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    after = [np.empty_like(labels.scores) for labels in label_sets]
    for fitted, held_out in splits(make_folds(labels)):
        parts = [LabelSet(each.language, each.texts, each.scores[fitted]) for each in label_sets]
        fit = calibrate(parts, truth[fitted], start, scope=scope, fit_scale=fit_scale)
        for number, each in enumerate(label_sets):
            after[number][held_out] = fit.logits(each, held_out)
    everything = np.ones(len(truth), bool)
    qualities, rows = [], []
    for number, each in enumerate(label_sets):
        before = start.logits(each, everything)
        qualities.append(Quality(each.language, *_errors(before, after[number], truth)))
        rows += [
            LabelQuality(
                each.language,
                text,
                int(truth[:, column].sum()),
                calibration_error(sigmoid64(before[:, column]), truth[:, column]),
                calibration_error(sigmoid64(after[number][:, column]), truth[:, column]),
                _threshold(before[:, column], truth[:, column]),
                _threshold(after[number][:, column], truth[:, column]),
            )
            for column, text in enumerate(each.texts)
        ]
    return Report(qualities, rows)


def check_truth(truth: Bools) -> None:
    """Check that labels can be calibrated.

    Raises:
        DataError: fewer images than folds, or labels that are true of all images or of none.
    """
    if len(truth) < NUM_FOLDS:
        raise DataError(f"There are {len(truth)} images to calibrate with; give at least {NUM_FOLDS}, better 100.")
    if truth.all() or not truth.any():
        raise DataError("The labels are true of all images, or of none; give images with different labels.")


def _errors(before: Doubles, after: Doubles, truth: Bools) -> tuple[float, float, float, float]:
    pairs = [calibration_error(sigmoid64(logits), truth) for logits in (before, after)]
    tops = [
        calibration_error(sigmoid64(logits.max(axis=1)), truth[np.arange(len(truth)), logits.argmax(axis=1)])
        for logits in (before, after)
    ]
    return pairs[0], pairs[1], tops[0], tops[1]


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
