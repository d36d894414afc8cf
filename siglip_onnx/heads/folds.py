"""Folds for cross-validation: each image is held out once, and every class is spread over the folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_FOLDS = 5


def make_folds(labels: Sequence[Sequence[int]], num_folds: int = NUM_FOLDS, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the number of the fold of each image; images of the same labels go to different folds in turn."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    folds = np.empty(len(labels), np.int64)
    next_fold: dict[tuple[int, ...], int] = {}
    for row in sorted(order.tolist(), key=lambda row: tuple(labels[row])):
        key = tuple(labels[row])
        fold = next_fold.setdefault(key, int(rng.integers(num_folds)))
        folds[row] = fold
        next_fold[key] = (fold + 1) % num_folds
    return folds


def splits(folds: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield for each fold which images are fitted, and which are held out."""
    for fold in np.unique(folds):
        held_out = folds == fold
        yield ~held_out, held_out
