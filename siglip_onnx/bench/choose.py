"""Choose how a model runs on this machine: variant, engine, threads and workers, at a floor of fidelity.

All candidates answer the same samples while they are timed; those whose answers are too far from the reference's are
left out. The nearly fastest are measured again, in reverse order, before one is chosen.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from ..bundle.folder import Bundle
from ..bundle.manifest import DEFAULT_ORDER, FEATURES, LOGITS, POOLED
from ..config import TEXT, VISION
from ..demo import IMAGES_PATH
from ..errors import BenchmarkError, SiglipOnnxError
from ..head import Floats
from ..hub.choice import Choice
from ..image.decode import ImageSource
from ..model import SigLIP
from ..options import RuntimeOptions
from ..session import CPU_PROVIDER, OPENVINO
from ..system.extras import is_installed
from ..system.threads import available_threads
from ..verify.accuracy import REFERENCE
from ..verify.samples import SAMPLE_TEXTS, draw_scene, quiet_samples
from .backend import Inputs
from .fidelity import cosines
from .machine import has_bf16
from .timer import Limits, time_calls

Report = Callable[[str], None]
NUM_SAMPLES = 8  # of images, and of texts
_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
_CLOSE = 1.25  # a candidate that takes this many times as long as the fastest is measured again
_FIRST_SHARE = 0.6  # of the time, after which no further candidate is tried
_RATE_SECONDS = 1.0
_LIMITS = Limits(rounds=1, min_samples=2 * NUM_SAMPLES, min_seconds=1.0)


@dataclass(frozen=True)
class Engine:
    """A provider, its options, and what tables call both."""

    name: str
    provider: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One way to run the model, and what was measured of it.

    ``ms`` are medians of one image or text by tower, ``cosine_min`` is the worst cosine to the reference of any sample,
    ``images_per_s`` includes decoding. ``problem`` says why it was not measured.
    """

    variant: str
    engine: Engine
    threads: int
    workers: int = 1
    ms: Mapping[str, float] = field(default_factory=dict)
    cosine_min: float | None = None
    images_per_s: float | None = None
    problem: str = ""

    def latency_ms(self) -> float:
        """Return the time of one image, or of a text where the model has no vision tower; infinity if unmeasured."""
        return self.ms.get(VISION, self.ms.get(TEXT, float("inf")))

    def options(self) -> RuntimeOptions:
        """Return the options with which the model runs so."""
        settings = dict(self.engine.settings)
        provider = (self.engine.provider, settings) if settings else self.engine.provider
        threads = self.threads if self.workers == 1 else None
        return RuntimeOptions(self.variant, (provider,), threads=threads, workers=self.workers)


@dataclass(frozen=True)
class Samples:
    """The inputs of both towers, by tower, and the output of each that is compared."""

    inputs: Mapping[str, Sequence[Inputs]]
    outputs: Mapping[str, str]


def choose(
    bundle: Bundle, variants: Sequence[str], *, min_cosine: float, seconds: float, report: Report
) -> tuple[Choice, list[Trial]]:
    """Measure a model's variants on all engines; return the choice, and everything that was measured.

    Args:
        bundle: the model.
        variants: those to measure.
        min_cosine: the floor of fidelity, to fp32, or to the first of the bundle's best variants.
        seconds: about how long to measure. The reference and the default variant are always measured; other candidates
            for which no time is left are named in their ``problem``.
        report: called with a line of progress for each candidate.

    Raises:
        BenchmarkError: nothing could be measured.
    """
    began, threads = time.monotonic(), available_threads()
    default = next(variant for variant in DEFAULT_ORDER if variant in bundle.manifest.variants)
    order = (REFERENCE, "fp16", *DEFAULT_ORDER)
    reference = next(variant for variant in order if variant in bundle.manifest.variants)
    pairs = [(engine, variant) for engine in engines() for variant in DEFAULT_ORDER if variant in variants]
    samples = _prepare(bundle, reference)
    first = Trial(reference, engines()[0], threads)
    expected, first = _measure(bundle, first, samples, None)
    if first.problem:
        raise BenchmarkError(f"{bundle.path} cannot be measured: {first.problem}")
    trials = [first] if (first.engine, reference) in pairs else []
    report(_describe(first))
    for engine, variant in pairs:
        trial = Trial(variant, engine, threads)
        if (engine, variant) == (first.engine, reference):
            continue
        is_default = variant == default and engine == first.engine  # without which no choice would be an improvement
        if not is_default and time.monotonic() - began > _FIRST_SHARE * seconds:
            trial = replace(trial, problem="no time was left; raise --seconds")
        else:
            _, trial = _measure(bundle, trial, samples, expected)
        trials.append(trial)
        report(_describe(trial))
    good = [trial for trial in trials if trial.cosine_min is not None and trial.cosine_min >= min_cosine]
    if not good:
        raise BenchmarkError(
            f"No variant of {bundle.path} reaches a cosine of {min_cosine} to {reference}; the best of those measured "
            f"has {max((trial.cosine_min or 0 for trial in trials), default=0):.5f}. Lower --min-cosine, or measure "
            f"{reference} too."
        )
    limit = _CLOSE * min(trial.latency_ms() for trial in good)
    close = [trial for trial in good if trial.latency_ms() <= limit]
    for trial in reversed(close if len(close) > 1 else []):
        if time.monotonic() - began < seconds:
            _, again = _measure(bundle, trial, samples, expected)
            ms = {tower: min(value, again.ms.get(tower, value)) for tower, value in trial.ms.items()}
            trials[trials.index(trial)] = good[good.index(trial)] = replace(trial, ms=ms)
    best = min(good, key=Trial.latency_ms)
    if time.monotonic() - began < seconds:
        trials += _other_threads(bundle, best, samples, expected, report)
    fastest = min((trial for trial in trials if _is_same(trial, best)), key=Trial.latency_ms)
    rated = [replace(fastest, workers=threads)]  # the default
    if time.monotonic() - began < seconds:
        rated = _rate_workers(bundle, fastest, samples, report)
        trials += rated
    most = max(rated, key=lambda trial: trial.images_per_s or 0)
    choice = Choice(
        model=bundle.manifest.model_name,
        variant=fastest.variant,
        provider=fastest.engine.provider,
        settings=fastest.engine.settings,
        threads=fastest.threads,
        workers=most.workers,
        measured={
            **{f"{tower}_ms": round(ms, 3) for tower, ms in fastest.ms.items()},
            "cosine_min": round(best.cosine_min or 0, 6),
            **({} if most.images_per_s is None else {"images_per_s": round(most.images_per_s, 2)}),
        },
    )
    return choice, trials


def engines() -> list[Engine]:
    """Return the engines that are installed; OpenVINO with bf16 too, where the CPU has that."""
    found = [Engine("onnxruntime", CPU_PROVIDER)]
    if is_installed("openvino"):
        found.append(Engine("OpenVINO", OPENVINO))
        if has_bf16():
            found.append(Engine("OpenVINO bf16", OPENVINO, _BF16))
    return found


def _prepare(bundle: Bundle, variant: str) -> Samples:
    """Return the samples: as many drawings as scenes, and texts in several languages."""
    manifest, inputs, outputs = bundle.manifest, {}, {}
    with SigLIP(bundle, RuntimeOptions(variant)) as model, quiet_samples(SAMPLE_TEXTS):
        if VISION in manifest.towers:
            outputs[VISION] = next(name for name in (POOLED, FEATURES, LOGITS) if name in manifest.vision_outputs)
            inputs[VISION] = [model.vision.prepare(image) for image in _images()]
        if TEXT in manifest.towers:
            outputs[TEXT] = POOLED
            inputs[TEXT] = [{"input_ids": row[np.newaxis]} for row in model.tokenize(SAMPLE_TEXTS)[::2]]
    return Samples(inputs, outputs)


@cache
def _images() -> tuple[ImageSource, ...]:
    half = NUM_SAMPLES // 2
    return (*sorted(IMAGES_PATH.glob("*.png"))[:half], *map(draw_scene, range(half)))


def _measure(
    bundle: Bundle, trial: Trial, samples: Samples, expected: Mapping[str, Sequence[Floats]] | None
) -> tuple[dict[str, list[Floats]], Trial]:
    """Return the answers of a candidate, one per sample, and its times and worst cosine; or its problem."""
    answers: dict[str, list[Floats]] = {}
    ms: dict[str, float] = {}
    try:
        with SigLIP(bundle, trial.options()) as model:
            for tower, inputs in samples.inputs.items():
                session, output = getattr(model, tower).session, samples.outputs[tower]

                def run(each: Inputs, session: Any = session, output: str = output) -> Floats:
                    values: Floats = session.run(output, each)
                    return values

                times, answers[tower] = time_calls(run, inputs, _LIMITS)
                ms[tower] = statistics.median(times)
        worst = 1.0 if expected is None else _worst(answers, expected)
    except SiglipOnnxError as error:
        return {}, replace(trial, problem=str(error))
    if not np.isfinite(worst):
        return {}, replace(trial, problem="it returned NaN or infinity")
    return answers, replace(trial, ms=ms, cosine_min=worst)


def _worst(answers: Mapping[str, Sequence[Floats]], expected: Mapping[str, Sequence[Floats]]) -> float:
    pairs = [pair for tower, rows in answers.items() for pair in zip(rows, expected[tower], strict=True)]
    return float(np.min([cosines(one.reshape(1, -1), other.reshape(1, -1)) for one, other in pairs]))


def _is_same(trial: Trial, other: Trial) -> bool:
    return (trial.variant, trial.engine) == (other.variant, other.engine)


def _other_threads(
    bundle: Bundle, best: Trial, samples: Samples, expected: Mapping[str, Sequence[Floats]], report: Report
) -> list[Trial]:
    """Measure the best candidate with half of the threads, which are the cores where each runs two, and with one."""
    counts = {count for count in (1, best.threads // 2) if 1 <= count < best.threads}
    trials = [_measure(bundle, replace(best, threads=count), samples, expected)[1] for count in sorted(counts)]
    for trial in trials:
        report(_describe(trial))
    return trials


def _rate_workers(bundle: Bundle, fastest: Trial, samples: Samples, report: Report) -> list[Trial]:
    """Measure images per second, or texts, with one worker and with one per CPU."""
    trials = []
    for workers in sorted({1, available_threads()}):
        trial = replace(fastest, workers=workers, threads=fastest.threads if workers == 1 else 1, ms={})
        with SigLIP(bundle, trial.options()) as model, quiet_samples(SAMPLE_TEXTS):
            trial = replace(trial, images_per_s=_rate(model, samples, max(NUM_SAMPLES, 2 * workers)))
        trials.append(trial)
        report(_describe(trial))
    return trials


def _rate(model: SigLIP, samples: Samples, count: int) -> float:
    """Return inputs per second in passes over ``count`` of them, after a first one, which loads the graph."""

    def one_pass() -> None:
        if VISION in samples.inputs:
            images = [_images()[number % NUM_SAMPLES] for number in range(count)]
            deque(model.vision.outputs(samples.outputs[VISION], images), maxlen=0)
        else:
            model.encode_texts([SAMPLE_TEXTS[number % len(SAMPLE_TEXTS)] for number in range(count)])

    one_pass()
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < _RATE_SECONDS:
        one_pass()
        done += count
    return done / (time.perf_counter() - began)


def _describe(trial: Trial) -> str:
    """Return a candidate and its result as a line of progress."""
    how = f"{trial.variant}, {trial.engine.name}, {trial.threads} threads, {trial.workers} workers"
    if trial.problem:
        return f"{how}: {trial.problem}"
    if trial.images_per_s is not None:
        return f"{how}: {trial.images_per_s:.1f} per second"
    times = ", ".join(f"{tower} {ms:.1f} ms" for tower, ms in trial.ms.items())
    return f"{how}: {times}, cosine {trial.cosine_min:.5f}"
