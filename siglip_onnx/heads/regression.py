"""Logistic regression, L2-regularized towards given weights, with softmax or one-vs-rest losses, by L-BFGS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluate.metrics import Bools, Doubles
from .calibrate import in_blocks

Objective = Callable[[Doubles], tuple[float, Doubles]]
_MEMORY = 10  # pairs of the L-BFGS approximation
_MAX_STEPS = 200


def fit_regression(
    features: Doubles, offsets: Doubles, truth: Bools, strength: float, *, one_label: bool, start: Doubles | None = None
) -> Doubles:
    """Return the changes ``(M, D + 1)`` of weights and biases that fit labels best, near zero.

    The logits are ``offsets + features @ changes[:, :-1].T + changes[:, -1]``; what is minimized is the sum of the log
    losses and ``|changes|^2 / (2 strength)``: convex, with one minimum. With features of length 1, ``strength`` is
    about how many logits one image can move.

    Args:
        features: ``(N, D)``.
        offsets: the logits ``(N, M)`` without changes.
        truth: ``(N, M)``.
        strength: above 0.
        one_label: each image has one label: softmax over the labels; otherwise a sigmoid for each.
        start: changes from which to start, such as those of a smaller strength.
    """
    num_labels, width = truth.shape[1], features.shape[1] + 1
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    loss_of = softmax_loss if one_label else sigmoid_loss

    def objective(flat: Doubles) -> tuple[float, Doubles]:
        changes = flat.reshape(num_labels, width)
        total, gradient = float((changes * changes).sum()) / (2 * strength), changes / strength
        for rows in in_blocks(np.arange(len(inputs)), num_labels):
            loss, residuals = loss_of(offsets[rows] + inputs[rows] @ changes.T, truth[rows])
            total += loss
            gradient += residuals.T @ inputs[rows]
        return total, gradient.ravel()

    place = np.zeros(num_labels * width) if start is None else start.ravel()
    return minimize(objective, place, tolerance=1e-3).reshape(num_labels, width)


def log_loss(logits: NDArray[Any], truth: Bools, *, one_label: bool, scale: float = 1.0, bias: float = 0.0) -> float:
    """Return the log loss of ``scale * logits + bias``: softmax over the labels, or a sigmoid for each."""
    loss_of = softmax_loss if one_label else sigmoid_loss
    blocks = in_blocks(np.arange(len(logits)), logits.shape[1])
    return sum(loss_of(scale * logits[rows].astype(np.float64) + bias, truth[rows])[0] for rows in blocks)


def softmax_loss(logits: Doubles, truth: Bools) -> tuple[float, Doubles]:
    """Return the log loss of one label per image, and its gradient by the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    sums = weights.sum(axis=1, keepdims=True)
    return float(np.log(sums).sum() - shifted[truth].sum()), weights / sums - truth


def sigmoid_loss(logits: Doubles, truth: Bools) -> tuple[float, Doubles]:
    """Return the log loss of each label by itself, and its gradient by the logits."""
    small = np.exp(-np.abs(logits))
    probabilities = np.where(logits >= 0, 1, small) / (1 + small)
    return float(np.logaddexp(0, np.where(truth, -logits, logits)).sum()), probabilities - truth


def minimize(objective: Objective, place: Doubles, *, tolerance: float) -> Doubles:
    """Return the minimum of a smooth convex function by L-BFGS with backtracking.

    It ends when no component of the gradient is larger than ``tolerance``. Source: Nocedal and Wright, Numerical
    Optimization, algorithms 7.4 and 7.5.
    """
    value, gradient = objective(place)
    pairs: deque[tuple[Doubles, Doubles]] = deque(maxlen=_MEMORY)
    for _ in range(_MAX_STEPS):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = _direction(gradient, pairs)
        slope, step = float(gradient @ direction), 1.0
        while True:
            moved = place - step * direction
            new_value, new_gradient = objective(moved)
            if new_value <= value - 1e-4 * step * slope or step < 1e-12:
                break
            step /= 2
        change, bend = moved - place, new_gradient - gradient
        if change @ bend > 1e-14:
            pairs.append((change, bend))
        place, value, gradient = moved, new_value, new_gradient
    return place


def _direction(gradient: Doubles, pairs: deque[tuple[Doubles, Doubles]]) -> Doubles:
    """Return the gradient times the approximate inverse of the curvature."""
    if not pairs:
        return gradient / max(1.0, float(np.linalg.norm(gradient)))
    direction = gradient.copy()
    factors = []
    for change, bend in reversed(pairs):
        factors.append(float(change @ direction) / float(change @ bend))
        direction -= factors[-1] * bend
    change, bend = pairs[-1]
    direction *= float(change @ bend) / float(bend @ bend)
    for (change, bend), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - float(bend @ direction) / float(change @ bend)) * change
    return direction
