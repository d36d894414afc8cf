"""Compare siglip-onnx fit with zero-shot and scikit-learn, by the number of images per class, on drawn images.

    python benchmarks/few_shot.py [RESULTS.json]

Twenty classes that the demo model's texts cannot name, shapes in four styles, and twenty that they name, shapes in ten
colors with noise. Both solvers choose their strength by the same folds, except with one image per class.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from result_files import ROOT, write_results
from sklearn.linear_model import LogisticRegression

import siglip_onnx
from siglip_onnx.evaluate.metrics import Bools, Interval
from siglip_onnx.head import Floats
from siglip_onnx.heads.few_shot import STRENGTHS, Head, fit_few_shot
from siglip_onnx.heads.folds import make_folds, splits
from siglip_onnx.heads.regression import softmax_loss

sys.path.insert(0, str(ROOT / "scripts"))
from demo_world.captions import name_en
from demo_world.drawing import draw
from demo_world.evaluation import ALL_PAIRS
from demo_world.scene import Scene
from demo_world.styles import STYLED_SHAPES, STYLES, class_names, draw_styled

ONE_SHOT_STRENGTH = 30.0  # of scikit-learn; from 10 to 1000 its accuracy is the same within a percentage point
NOISE = 120  # levels, at most
_RESAMPLES = 2000


class Classes(NamedTuple):
    """Unit embeddings ``(classes, images, D)`` of images to fit and to test, and the texts' classifier."""

    fitted: Floats
    tested: Floats
    texts: Head


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path), required=False)
@click.option("--draws", default=10, show_default=True, help="Choices of the images to fit.")
@click.option("--pool", default=40, show_default=True, help="Images per class from which these are chosen.")
@click.option("--test-images", default=40, show_default=True, help="Test images per class.")
@click.option("--shots", multiple=True, type=int, default=(1, 2, 4, 8, 16), show_default=True)
def main(results: Path | None, draws: int, pool: int, test_images: int, shots: tuple[int, ...]) -> None:
    """Embed, fit, compare, and print the accuracies from 0 to 1 with their 95 % intervals."""
    model, rows = siglip_onnx.load("demo"), []
    for kind, embed in (("texts cannot name them", embed_styled), ("texts name them", embed_named)):
        classes = embed(model, pool, test_images)
        rows += [{"classes": kind, "shots": count} | compare(classes, count, draws) for count in shots]
    document = {"model": "demo", "variant": model.variant, "draws": draws, "pool": pool, "test_images": test_images,
                "rows": rows}  # fmt: skip
    click.echo(json.dumps(document, indent=2))
    if results is not None:
        write_results(results, document)


def embed_styled(model: siglip_onnx.SigLIP, pool: int, test_images: int) -> Classes:
    """Draw and embed shapes in styles that the model was never shown."""
    rng = np.random.default_rng(0)
    images = [
        [draw_styled(style, shape, rng) for _ in range(pool + test_images)]
        for style in STYLES for shape in STYLED_SHAPES
    ]  # fmt: skip
    return _embed(model, images, class_names(), pool)


def embed_named(model: siglip_onnx.SigLIP, pool: int, test_images: int) -> Classes:
    """Draw and embed colored shapes, under noise, so that not every answer is right."""
    rng, pairs = np.random.default_rng(1), ALL_PAIRS[::5]
    images = [
        [_add_noise(draw(Scene(*pair, count=1, dark=number % 2), rng, canvas=96), rng)
         for number in range(pool + test_images)]
        for pair in pairs
    ]  # fmt: skip
    return _embed(model, images, [name_en(*pair) for pair in pairs], pool)


def _add_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    levels = np.asarray(image) + rng.normal(0, rng.uniform(0, NOISE), (*image.size, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _embed(model: siglip_onnx.SigLIP, images: list[list[Image.Image]], names: list[str], pool: int) -> Classes:
    vectors = np.array([model.encode_images(each) for each in images])
    texts = Head(model.encode_texts(names).astype(np.float64), model.biases(names), float(np.exp(model.logit_scale)))
    return Classes(vectors[:, :pool], vectors[:, pool:], texts)


def compare(classes: Classes, shots: int, draws: int) -> dict[str, Any]:
    """Return the accuracies of both solvers and of the texts alone, and the paired differences."""
    num_classes, test_images, width = classes.tested.shape
    tested, right = classes.tested.reshape(-1, width), np.repeat(np.arange(num_classes), test_images)
    truth = np.repeat(np.eye(num_classes, dtype=bool), shots, axis=0)
    hits: dict[str, list[Bools]] = {"zero_shot": [], "fit": [], "scikit_learn": []}
    for draw_number in range(draws):
        rng = np.random.default_rng(draw_number)
        fitted = np.concatenate([each[rng.choice(len(each), shots, replace=False)] for each in classes.fitted])
        few_shot = fit_few_shot(fitted, truth, classes.texts, one_label=True)
        hits["zero_shot"].append(classes.texts.logits(tested).argmax(axis=1) == right)
        hits["fit"].append(few_shot.head.logits(tested).argmax(axis=1) == right)
        hits["scikit_learn"].append(predict_with_scikit_learn(fitted, truth, tested) == right)
    values = {name: np.array(rows, np.float64) for name, rows in hits.items()}
    differences = {f"fit_minus_{name}": values["fit"] - values[name] for name in ("zero_shot", "scikit_learn")}
    return {name: asdict(interval_of(each)) for name, each in (values | differences).items()}


def predict_with_scikit_learn(fitted: Floats, truth: Bools, tested: Floats) -> NDArray[np.int64]:
    """Return the answers of a logistic regression without texts, its strength chosen by the log loss of our folds."""
    labels, best = truth.argmax(axis=1), ONE_SHOT_STRENGTH
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few images
        if truth.sum(axis=0).max() > 1:
            folds, losses = make_folds([(int(label),) for label in labels]), []
            for strength in STRENGTHS:
                logits = np.empty(truth.shape)
                for part, rest in splits(folds):
                    held = LogisticRegression(C=strength, max_iter=300).fit(fitted[part], labels[part])
                    logits[rest] = held.decision_function(fitted[rest])
                losses.append(softmax_loss(logits, truth)[0])
            best = STRENGTHS[int(np.argmin(losses))]
        answers: NDArray[np.int64] = LogisticRegression(C=best, max_iter=300).fit(fitted, labels).predict(tested)
    return answers


def interval_of(values: NDArray[np.float64]) -> Interval:
    """Return the mean of ``(draws, test images)`` with the interval of a bootstrap over both."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        weights = np.bincount(rng.integers(values.shape[1], size=values.shape[1]), minlength=values.shape[1])
        means.append((values[rng.integers(len(values), size=len(values))] @ weights).mean() / values.shape[1])
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(*(round(float(number), 4) for number in (values.mean(), low, high)))


if __name__ == "__main__":
    main()
