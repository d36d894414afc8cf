"""Show where in an image the evidence for a text lies, by occlusion: hide windows one after another, watch the logit.

This works with every model, because only answers are needed. It says how much the logit changes when a place is
blurred. It does not say what the model would answer about that place alone, nor why.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

from .bundle.manifest import POOLED
from .classifier import Classifier, FineTunedClassifier, match_labels
from .errors import OptionError
from .head import Floats, Match, match_texts
from .image.preprocess import Fit
from .model import SigLIP
from .system.workers import map_in_order

METHOD = "occlusion by blurred windows"
GRID = 16  # cells along each side of the result
_COARSE_SIDE, _COARSE_STARTS = 5, (0, 3, 6, 8, 11)  # windows, in cells: the first pass
_FINE_SIDE = 2  # the second pass ...
_NUM_FINE = 16  # ... in the windows, of each text, over which the first pass found most
_FINE_SHARE = 0.8  # of the fine windows in the result
_BLUR = 0.25  # radius of the blur, of the longer side
DRAWN_SIDE = 640  # of the longer side of a panel
MAX_PANELS = 24  # of a drawing
_RAISES, _LOWERS = (220, 30, 30), (30, 80, 230)
_STRONGEST = 0.65  # opacity
SOFTWARE = "siglip_onnx explain"  # in the drawing, by which an earlier one is recognized


class Window(NamedTuple):
    """A square of cells: its first row and column, and its side."""

    row: int
    column: int
    side: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The window's rows and columns of a grid."""
        return slice(self.row, self.row + self.side), slice(self.column, self.column + self.side)


@dataclass(frozen=True)
class Scorer:
    """What explains itself: a model together with the texts, or labels, to explain.

    Attributes:
        fit: resizes an RGB image to the size that the model takes.
        run: returns the logits f32 ``(L,)`` of a fitted image, from any number of threads.
        match: returns the match of each of these logits.
        columns: which ``M`` of the logits to explain.
        workers: how many runs may take place at once.
    """

    fit: Fit
    run: Callable[[Image.Image], Floats]
    match: Callable[[Floats], list[Match]]
    columns: Sequence[int]
    workers: int = 1


def score_with_model(model: SigLIP, texts: Sequence[str], template: str | Sequence[str] = "{}") -> Scorer:
    """Return the scorer of texts, or of some labels of a fine-tuned classifier: all of them if ``texts`` is empty.

    Raises:
        BundleError: the model lacks a tower.
        OptionError: a classifier does not have one of the labels.
        TextError: a text or template cannot be used.
    """
    vision = model.vision
    if isinstance(model, FineTunedClassifier):
        columns = _columns_of(texts, model.labels, model.bundle.manifest.model_name)
        return Scorer(vision.preprocess.fit, lambda fitted: model.run(fitted)[1], model.match, columns, vision.workers)
    vision.check_output(POOLED)
    return score_with_labels(model, texts, model.encode_labels(texts, template=template))


def score_with_labels(model: SigLIP, texts: Sequence[str], labels: Floats) -> Scorer:
    """Return the scorer of texts whose embeddings f32 ``(M, D)`` are known, of a model with both towers."""
    vision, biases = model.vision, model.biases(texts)

    def run(fitted: Image.Image) -> Floats:
        logits: Floats = model.logits(vision.run(fitted), labels, logit_bias=biases)[0]
        return logits

    match = partial(match_texts, texts=list(texts))
    return Scorer(vision.preprocess.fit, run, match, range(len(texts)), vision.workers)


def score_with_classifier(classifier: Classifier, texts: Sequence[str] = (), workers: int = 1) -> Scorer:
    """Return the scorer of some labels of a compiled classifier, or of all.

    Raises:
        OptionError: it does not have one of the labels.
    """
    labels, problem_type = classifier.labels, classifier.facts.problem_type
    columns = _columns_of(texts, labels, classifier.model_name)
    match = partial(match_labels, labels=labels, problem_type=problem_type)
    return Scorer(classifier.fit, classifier.run, match, columns, workers)


def _columns_of(texts: Sequence[str], labels: Sequence[str], name: str) -> Sequence[int]:
    if not texts:
        return range(len(labels))
    columns = {label: column for column, label in enumerate(labels)}
    if unknown := [text for text in texts if text not in columns]:
        raise OptionError(f"{name} has no label {unknown[0]!r}; it has {', '.join(labels)}.")
    return [columns[text] for text in texts]


@dataclass(frozen=True)
class Explanation:
    """What places contribute to the logits of texts.

    Attributes:
        matches: the ``M`` texts and their logits and probabilities on the whole image.
        effects: f32 ``(M, GRID, GRID)``: by how much the logit falls when a place is hidden; negative where it rises.
        num_runs: how often the model ran.
    """

    matches: list[Match]
    effects: Floats
    num_runs: int

    def strongest(self, number: int) -> tuple[float, float]:
        """Return the center, x and y as shares of width and height, of the cell that raises a text's logit most."""
        row, column = np.unravel_index(int(self.effects[number].argmax()), (GRID, GRID))
        return (float(column) + 0.5) / GRID, (float(row) + 0.5) / GRID

    def to_document(self) -> dict[str, Any]:
        """Return the result as JSON; ``probability`` is None for a regression."""
        return {
            "method": METHOD,
            "num_runs": self.num_runs,
            "grid": [GRID, GRID],
            "texts": [
                {
                    "text": match.text,
                    "logit": match.logit,
                    "probability": None if math.isnan(match.probability) else match.probability,
                    "strongest": dict(zip(("x", "y"), self.strongest(number), strict=True)),
                    "effects": [[round(float(value), 4) for value in row] for row in self.effects[number]],
                }
                for number, match in enumerate(self.matches)
            ],
        }


class Step(NamedTuple):
    """One run of the model is done: how many of how many; the last step has the explanation.

    ``total`` may grow once, after the first pass, if there are several texts.
    """

    done: int
    total: int
    explanation: Explanation | None = None


def explain(image: Image.Image, scorer: Scorer) -> Explanation:
    """Hide windows of an RGB image by blurring them, large ones first, small ones where these mattered.

    Args:
        image: an RGB image, as an ImageReader decodes it.
        scorer: the model and its texts, such as :func:`score_with_model` returns.
    """
    return explain_fitted(scorer.fit(image), scorer)


def explain_fitted(fitted: Image.Image, scorer: Scorer) -> Explanation:
    """Do the same with an image that was resized by ``scorer.fit``."""
    *_, last = explain_in_steps(fitted, scorer)
    return cast(Explanation, last.explanation)


def explain_in_steps(fitted: Image.Image, scorer: Scorer) -> Iterator[Step]:
    """Do the same as :func:`explain_fitted`, and yield after each run of the model.

    The work can be stopped there: no run is ahead of the steps if the scorer has one worker.
    """
    blurred = fitted.filter(ImageFilter.GaussianBlur(_BLUR * max(fitted.size)))

    def score(window: Window | None) -> Floats:
        return scorer.run(fitted if window is None else _hide(fitted, blurred, window))

    coarse, rows = _coarse_windows(), []
    windows: list[Window | None] = [None, *coarse]
    total = len(windows) + _NUM_FINE
    for logits in map_in_order(score, windows, scorer.workers):
        rows.append(logits)
        yield Step(len(rows), total)
    whole = rows[0]
    columns = list(scorer.columns)
    drops = np.array([(whole - row)[columns] for row in rows[1:]])
    first = [_spread(coarse, drops[:, number]) for number in range(len(columns))]
    chosen = [_choose_fine(each) for each in first]
    fine = list(dict.fromkeys(chain.from_iterable(chosen)))
    total = len(windows) + len(fine)
    fine_drops: dict[Window, Floats] = {}
    for window, logits in zip(fine, map_in_order(score, fine, scorer.workers), strict=True):
        fine_drops[window] = (whole - logits)[columns]
        if len(fine_drops) < len(fine):
            yield Step(len(windows) + len(fine_drops), total)
    effects = [
        _combine(each, own, np.array([fine_drops[window][number] for window in own]))
        for number, (each, own) in enumerate(zip(first, chosen, strict=True))
    ]
    matches = scorer.match(whole)
    explanation = Explanation([matches[column] for column in columns], np.array(effects, np.float32), total)
    yield Step(total, total, explanation)


def _coarse_windows() -> list[Window]:
    return [Window(row, column, _COARSE_SIDE) for row in _COARSE_STARTS for column in _COARSE_STARTS]


def _choose_fine(effects: Floats) -> list[Window]:
    """Return the fine windows over which the effects ``(GRID, GRID)`` of one text are largest."""
    starts = range(0, GRID, _FINE_SIDE)
    windows = [Window(row, column, _FINE_SIDE) for row in starts for column in starts]
    means = np.array([effects[window.place].mean() for window in windows])
    return [windows[number] for number in np.argsort(-means, kind="stable")[:_NUM_FINE]]


def _hide(image: Image.Image, blurred: Image.Image, window: Window) -> Image.Image:
    """Return the image with a window blurred."""
    row, column, side = window
    box = (
        column * image.width // GRID,
        row * image.height // GRID,
        (column + side) * image.width // GRID,
        (row + side) * image.height // GRID,
    )
    hidden = image.copy()
    if box[2] > box[0] and box[3] > box[1]:  # an image of fewer pixels than cells
        hidden.paste(blurred.crop(box), box[:2])
    return hidden


def _spread(windows: Sequence[Window], drops: Floats) -> Floats:
    """Return for each cell the mean drop of the windows over it, those weighted most whose center is near."""
    totals, weights = np.zeros((GRID, GRID), np.float32), np.zeros((GRID, GRID), np.float32)
    for window, drop in zip(windows, drops, strict=True):
        across = 1 - np.abs((np.arange(window.side) + 0.5) / window.side * 2 - 1)
        weight = np.outer(across, across).astype(np.float32)
        totals[window.place] += drop * weight
        weights[window.place] += weight
    return (totals / np.maximum(weights, 1e-6)).astype(np.float32)


def _combine(first: Floats, fine: Sequence[Window], drops: Floats) -> Floats:
    """Return coarse and fine effects as one map; where there are no fine windows, only the coarse share counts."""
    return (first * (1 - _FINE_SHARE) + _spread(fine, drops) * _FINE_SHARE).astype(np.float32)


def draw_explanation(image: Image.Image, explanation: Explanation) -> bytes:
    """Return a PNG: for each text a panel with what raises its logit in red, what lowers it in blue, and the number.

    The colors of a panel are relative to the text's own strongest effect, which is printed. Of more than
    :data:`MAX_PANELS` texts, those of the highest logits are drawn.
    """
    logits = [match.logit for match in explanation.matches]
    drawn = sorted(sorted(range(len(logits)), key=lambda number: -logits[number])[:MAX_PANELS])
    panels = [_panel(image, explanation, number) for number in drawn]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place % columns * width, place // columns * height))
    buffer = io.BytesIO()
    facts = PngInfo()
    facts.add_text("Software", SOFTWARE)
    sheet.save(buffer, "PNG", optimize=True, pnginfo=facts)
    return buffer.getvalue()


def _panel(image: Image.Image, explanation: Explanation, number: int) -> Image.Image:
    scale = DRAWN_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    effects, match = explanation.effects[number], explanation.matches[number]
    strongest = float(np.abs(effects).max())
    shares: NDArray[np.float32] = effects / max(strongest, 1e-6)
    smooth = np.asarray(Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    shown = image.resize(size).convert("L").convert("RGB")  # gray, so that the colors mean effects only
    for color, strength in ((_RAISES, smooth), (_LOWERS, -smooth)):
        opacity = (strength.clip(0, 1) * _STRONGEST * 255).astype(np.uint8)
        shown.paste(Image.new("RGB", size, color), mask=Image.fromarray(opacity))
    font = ImageFont.load_default(18)
    lines = [
        _drawable(match.text, number),
        f"logit {match.logit:.2f}, raised by {effects.max():.2f}, lowered by {-effects.min():.2f}",
    ]
    panel = Image.new("RGB", (max(size[0], 420) + 10, size[1] + 60), "white")
    panel.paste(shown, (5, 5))
    for line, text in enumerate(lines):
        ImageDraw.Draw(panel).text((8, size[1] + 10 + 22 * line), text, "black", font)
    return panel


def _drawable(text: str, number: int) -> str:
    """Return a text that Pillow's built-in font can draw, or its number."""
    short = text if len(text) <= 40 else text[:37] + "..."
    return short if all(ord(character) < 0x250 for character in short) else f"text {number + 1}"
