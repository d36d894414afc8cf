"""Measure `explain`: how often it finds the named one of two drawn objects, and how long it takes.

    python benchmarks/explain.py [RESULTS.json] [--model MODEL]

The quality is that of the demo model, whose drawn images have known objects; the time is that of MODEL, for one text.
Explanations and plain runs of the vision tower are timed alternately.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image, ImageDraw
from result_files import ROOT, write_results

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.explain import explain, score_with_model

sys.path.insert(0, str(ROOT / "scripts"))
from demo_world.captions import name_en, name_ja
from demo_world.drawing import _background, _draw_shape, _place_pair, _tint
from demo_world.lexicon import TRAINED_PAIRS
from demo_world.scene import Relation

SIZE = 192
Point = tuple[float, float]


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path), required=False)
@click.option("--model", default="demo", show_default=True, help="The model to time.")
@click.option("--cases", type=click.IntRange(1), default=500, show_default=True, help="Drawn images.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed explanations.")
def main(results: Path | None, model: str, cases: int, repeats: int) -> None:
    """Measure and print the results."""
    measured: dict[str, Any] = {
        "machine": describe_machine(), "cases": cases, "found": share_found(cases), "time": measure_time(model, repeats)
    }  # fmt: skip
    click.echo(json.dumps(measured, indent=2))
    if results is not None:
        write_results(results, measured)


def draw_two(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, int]], list[Point], float]:
    """Return an image of two objects, their colors and shapes, their centers, and their radius."""
    image = _background(int(rng.integers(2)), rng, SIZE)
    centers, radius = _place_pair(Relation(int(rng.integers(2))), rng)
    numbers = rng.choice(len(TRAINED_PAIRS), 2, replace=False)
    pairs = [TRAINED_PAIRS[number] for number in numbers]
    for (color, shape), center in zip(pairs, centers, strict=True):
        _draw_shape(ImageDraw.Draw(image), shape, _tint(color, rng), center, radius, rng, SIZE)
    return image, pairs, list(centers), radius


def share_found(cases: int) -> dict[str, float]:
    """Return by language how often the strongest place lies within the radius of the named object."""
    model, rng = siglip_onnx.load("demo", workers=2), np.random.default_rng(0)
    found = {"en": 0, "ja": 0}
    for number in range(cases):
        image, pairs, centers, radius = draw_two(rng)
        named = number % 2
        texts = [name_en(*pairs[named]), name_ja(*pairs[named])]
        explanation = explain(image, score_with_model(model, texts))
        for row, language in enumerate(found):
            x, y = explanation.strongest(row)
            found[language] += math.hypot(x - centers[named][0], y - centers[named][1]) <= radius
    return {language: count / cases for language, count in found.items()}


def measure_time(name: str, repeats: int) -> dict[str, Any]:
    """Return the seconds of an explanation of one text and those of as many plain runs, and the ratio of both.

    The ratio is that of the processor's time, which depends least on what else the machine does.
    """
    model = siglip_onnx.load(name)
    image = model.vision.reader.read(IMAGES_PATH / "red_star.png").rgb
    scorer = score_with_model(model, ["a red star"])
    fitted = scorer.fit(image)
    num_runs = explain(image, scorer).num_runs  # also warms up
    explained: list[Times] = []
    plain: list[Times] = []
    for _ in range(repeats):
        explained.append(_time(lambda: explain(image, scorer)))
        plain.append(_time(lambda: [scorer.run(fitted) for _ in range(num_runs)]))
    return {
        "model": model.bundle.manifest.model_name,
        "variant": model.variant,
        "repeats": repeats,
        "num_runs": num_runs,
        "explain_s": _summary([times.wall for times in explained]),
        "plain_runs_s": _summary([times.wall for times in plain]),
        "ratio": statistics.median(one.cpu / other.cpu for one, other in zip(explained, plain, strict=True)),
    }


class Times(NamedTuple):
    """Seconds, and those of all threads of this process on a processor."""

    wall: float
    cpu: float


def _time(work: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def _summary(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values)}


if __name__ == "__main__":
    main()
