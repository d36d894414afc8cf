"""Summaries of samples: min, median, p90, agreement of rounds, and ratios with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rounds = Sequence[Sequence[float]]
UNSTABLE = 1.10  # the slowest round's median over the fastest's
CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """All rounds of one stage. No p99: that takes 662 samples."""

    min: float
    median: float
    p90: float
    num_samples: int
    spread: float

    @property
    def unstable(self) -> bool:
        """Whether the rounds differ by more than a tenth."""
        return self.spread > UNSTABLE


def summarize(rounds: Rounds) -> Summary:
    """Return the summary of samples above 0, one sequence per round."""
    samples = np.concatenate([np.asarray(values, np.float64) for values in rounds])
    medians = [float(np.median(values)) for values in rounds]
    return Summary(
        min=float(samples.min()),
        median=float(np.median(samples)),
        p90=float(np.percentile(samples, 90)),
        num_samples=len(samples),
        spread=max(medians) / min(medians),
    )


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio_of(after: Rounds, before: Rounds, *, seed: int = 0) -> Ratio:
    """Return the ratio of the mean of the rounds' medians; the interval is bootstrapped.

    Rounds are drawn first and samples within them, since samples within a round are correlated.
    """
    rng = np.random.default_rng(seed)
    resampled = _resample(after, rng) / _resample(before, rng)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(_center(after) / _center(before), float(low), float(high))


def median_ratio(ratios: Sequence[float], *, seed: int = 0) -> Ratio:
    """Return the median of ratios of neighboring measurements; the interval is bootstrapped over them."""
    values = np.asarray(ratios, np.float64)
    samples = np.random.default_rng(seed).choice(values, (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(samples, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(np.median(values)), float(low), float(high))


def _center(rounds: Rounds) -> float:
    return float(np.mean([np.median(samples) for samples in rounds]))


def _resample(rounds: Rounds, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the center of each resample, ``(_RESAMPLES,)``."""
    drawn = np.stack([_resample_medians(np.asarray(samples, np.float64), len(rounds), rng) for samples in rounds])
    chosen = rng.integers(len(rounds), size=(len(rounds), _RESAMPLES))
    column = np.arange(len(rounds))[:, np.newaxis]
    centers: NDArray[np.float64] = drawn[chosen, column, np.arange(_RESAMPLES)].mean(axis=0)
    return centers


def _resample_medians(samples: NDArray[np.float64], times: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return medians of samples drawn with replacement, ``(times, _RESAMPLES)``."""
    medians: NDArray[np.float64] = np.median(
        samples[rng.integers(len(samples), size=(times, _RESAMPLES, len(samples)))], axis=-1
    )
    return medians
