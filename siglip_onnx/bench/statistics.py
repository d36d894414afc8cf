"""What samples say: min, median, p90, whether rounds agree, and how sure a ratio is. numpy only."""

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
    samples = np.concatenate([np.asarray(one, np.float64) for one in rounds])
    medians = [float(np.median(one)) for one in rounds]
    return Summary(
        min=float(samples.min()),
        median=float(np.median(samples)),
        p90=float(np.percentile(samples, 90)),
        num_samples=len(samples),
        spread=max(medians) / min(medians),
    )


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def ratio_of(after: Rounds, before: Rounds, *, seed: int = 0) -> Ratio:
    """Return the ratio of the mean of the rounds' medians; the interval is bootstrapped.

    Rounds are drawn first and samples within them, since samples of one round share the mood of the machine.
    """
    rng = np.random.default_rng(seed)
    resampled = _resample(after, rng) / _resample(before, rng)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(_centre(after) / _centre(before), float(low), float(high))


def bootstrap_mean(values: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """Return the mean of ``values`` ``(N,)`` with its interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(values.mean()), float(low), float(high))


def _centre(rounds: Rounds) -> float:
    return float(np.mean([np.median(one) for one in rounds]))


def _resample(rounds: Rounds, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the centre of each resample, ``(_RESAMPLES,)``."""
    drawn = np.stack([_resample_medians(np.asarray(one, np.float64), len(rounds), rng) for one in rounds])
    chosen = rng.integers(len(rounds), size=(len(rounds), _RESAMPLES))
    place = np.arange(len(rounds))[:, np.newaxis]
    centres: NDArray[np.float64] = drawn[chosen, place, np.arange(_RESAMPLES)].mean(axis=0)
    return centres


def _resample_medians(samples: NDArray[np.float64], times: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return medians of samples drawn with replacement, ``(times, _RESAMPLES)``."""
    medians: NDArray[np.float64] = np.median(
        samples[rng.integers(len(samples), size=(times, _RESAMPLES, len(samples)))], axis=-1
    )
    return medians
