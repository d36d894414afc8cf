"""Draw results as PNG and SVG, transparent and legible on light and dark pages. Needs matplotlib.

python benchmarks/plots.py RESULTS.json FOLDER
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib as mpl
from checkpoint_costs import Cost, find_costs
from lead import main_rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from siglip_onnx.bench import schema
from siglip_onnx.bench.schema import DECODE, HEAD, PREPROCESS, TEXT, TOKENIZE, VISION, Document, Mode, Row
from siglip_onnx.bench.tables import SAME_ANSWER, format_measurement, start_memory_mb, start_seconds
from siglip_onnx.hub.published import PAPER, PUBLISHED, PublishedCheckpoint
from siglip_onnx.system.files import atomic_path

INK = "#767676"  # 4.5 to 1 on white, 4.2 to 1 on the black of dark pages
OURS, PEERS = "#d9622b", "#3f7fc1"
STAGE_COLORS = {
    "decode + preprocess": ((DECODE, PREPROCESS), "#3b9b6d"),
    "vision tower": ((VISION,), "#d9622b"),
    "text tower": ((TEXT,), "#3f7fc1"),
    "tokenize + head": ((TOKENIZE, HEAD), "#a05fb5"),
}
# Positions of a point's name, in typographic points from it, the nearest first.
_OFFSETS = [(right, up) for far in range(0, 120, 3) for right in (8, -8) for up in {far, -far}]
FAMILY_COLORS = {"SigLIP": "#3f7fc1", "SigLIP 2": "#d9622b", "SigLIP 2 NaFlex": "#3b9b6d"}
_ENGINE = "siglip_onnx"
_SMALLEST_LOSS = 1e-7  # what f32 arithmetic in another order costs; exact zeros have no logarithm
_STYLE: Any = {
    "svg.hashsalt": "siglip_onnx", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": INK, "grid.alpha": 0.25, "grid.linewidth": 0.6,
}  # fmt: skip


class Label(NamedTuple):
    """The name of a point of a plot."""

    text: str
    point: tuple[float, float]
    color: str
    weight: str


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def main(results: Path, folder: Path) -> None:
    """Draw every plot of some results."""
    for path in draw_plots(schema.read_document(results), folder):
        click.echo(path, err=True)


def draw_plots(document: Document, folder: Path) -> list[Path]:
    """Write every plot that the document has samples for, and return the files.

    The SVG names the results that it was drawn from; see :func:`fingerprint`.
    """
    plots: dict[str, Callable[[Document], Figure]] = {
        "speed_and_fidelity": draw_pareto,
        "latency_by_stage": draw_stages,
        "start_and_memory": draw_starts,
    }
    if document.throughput:
        plots["throughput"] = draw_throughput
    source = fingerprint(document.to_json())
    return [path for name, draw in plots.items() for path in _save(partial(draw, document), folder / name, source)]


def draw_models(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plot of the published checkpoints, and return its files."""
    return _save(
        partial(draw_checkpoints, find_costs(results)), folder / "checkpoints", fingerprint(json.dumps(results))
    )


def _save(draw: Callable[[], Figure], path: Path, source: str) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        figure = draw()
        for kind, metadata in (("svg", {"Date": None, "Description": source}), ("png", {})):
            written.append(path.with_suffix(f".{kind}"))
            with atomic_path(written[-1]) as part:
                figure.savefig(part, transparent=True, dpi=144, bbox_inches="tight", metadata=metadata)
    return written


def fingerprint(results: str) -> str:
    """Return the SHA-256 of the results' JSON, which identifies them."""
    return f"results sha256 {hashlib.sha256(results.encode()).hexdigest()}"


def draw_pareto(document: Document) -> Figure:
    """Vision latency against the loss of the worst image's embedding, both logarithmic; the best are top left."""
    rows = main_rows(document)
    figure, axes = _figure(5.2)
    points = [(row.summary(VISION).median, max(_SMALLEST_LOSS, 1 - row.fidelity.vision_cosine_min)) for row in rows]
    for (x, y), row in zip(points, rows, strict=True):
        axes.plot(x, y, "o", color=_color(row), markersize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.75 * min(x for x, _ in points), 1.9 * max(x for x, _ in points))
    axes.set_ylim(5 * max(y for _, y in points), _SMALLEST_LOSS / 10)  # upwards is better
    _plain_ticks(axes.xaxis, [x for x, _ in points])
    axes.axhline(1 - SAME_ANSWER, color=INK, linewidth=0.8, linestyle=":")
    axes.text(axes.get_xlim()[1], 1 - SAME_ANSWER, f"cosine {SAME_ANSWER}", ha="right", va="bottom", fontsize=8)
    axes.set_xlabel(f"vision tower, one image, median ms ({rows[0].threads} threads)")
    axes.set_ylabel("1 - cosine to the reference, worst image")
    axes.grid(visible=True, which="major")
    labels = [Label(row.name, point, _color(row), _weight(row.name)) for row, point in zip(rows, points, strict=True)]
    line = axes.transData.transform((1, 1 - SAME_ANSWER))[1]
    inside = axes.get_window_extent(_renderer(figure))
    _label_points(figure, axes, labels, [Bbox.from_extents(inside.x0, line - 3, inside.x1, line + 3)])
    return figure


def draw_checkpoints(costs: Mapping[str, Cost]) -> Figure:
    """Published accuracy against the time of one image: ImageNet above, XM3600 of the same protocol below."""
    figure = Figure(figsize=(8, 9.6))
    panels: Sequence[Any] = figure.subplots(2, 1, sharex=True)
    titles = ("ImageNet, zero-shot top-1, percent", "XM3600, text to image, recall@1, percent")
    values = {name: cost.vision.min_ms for name, cost in costs.items()}
    for axes, title, accuracies in zip(panels, titles, _accuracies(), strict=True):
        axes.set_xscale("log")
        axes.set_xlim(0.75 * min(values.values()), 2.5 * max(values.values()))
        axes.margins(y=0.1)
        axes.set_ylabel(title)
        axes.grid(visible=True, which="major")
        labels = []
        for checkpoint, accuracy in accuracies.items():
            point, color = (values[checkpoint.name], accuracy), FAMILY_COLORS[checkpoint.family]
            filled = "none" if costs[checkpoint.name].vision.estimated else color
            axes.plot(*point, "o", color=color, markerfacecolor=filled, markersize=5)
            labels.append(Label(_short_name(checkpoint), point, color, "normal"))
        _label_points(figure, axes, labels, [])
    _plain_ticks(panels[1].xaxis, list(values.values()))
    panels[1].set_xlabel("vision tower in int8, one image, fastest call, ms (hollow: estimated)")
    _color_key(figure, panels[0], FAMILY_COLORS)
    figure.subplots_adjust(hspace=0.08)
    return figure


def _accuracies() -> tuple[dict[PublishedCheckpoint, float], dict[PublishedCheckpoint, float]]:
    """Return ImageNet and XM3600 of each checkpoint that has them; XM3600 of one protocol only."""
    imagenet, recall = {}, {}
    for checkpoint in PUBLISHED:
        if (accuracy := checkpoint.accuracy) is not None:
            imagenet[checkpoint] = accuracy.imagenet
            if accuracy.xm3600_text_to_image is not None and accuracy.protocol == PAPER:
                recall[checkpoint] = accuracy.xm3600_text_to_image
    return imagenet, recall


def _short_name(checkpoint: PublishedCheckpoint) -> str:
    """Return the name without what its color says, such as ``base-16-256``."""
    return checkpoint.name.partition("-")[2].replace("patch", "").replace("-opt", "")


def draw_stages(document: Document) -> Figure:
    """Median time of each stage for one image and one text."""
    rows = sorted(main_rows(document), key=lambda row: -_total(row))
    figure, axes = _figure(0.6 + 0.27 * len(rows))
    left = [0.0] * len(rows)
    for stages, color in STAGE_COLORS.values():
        widths = [sum(row.summary(stage).median for stage in stages) for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=color, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for number, end in enumerate(left):
        axes.text(end + 0.01 * max(left), number, format_measurement(end), va="center")
    _name_rows(axes, rows)
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel("one image and one text, median ms of each stage")
    _color_key(figure, axes, {name: color for name, (_, color) in STAGE_COLORS.items()})
    return figure


def draw_starts(document: Document) -> Figure:
    """Time from process start to the first answer, and peak memory by then."""
    rows = sorted(main_rows(document), key=lambda row: -start_seconds(row))
    figure = Figure(figsize=(8, 0.6 + 0.27 * len(rows)))
    panels: Sequence[Any] = figure.subplots(1, 2, sharey=True)
    values = ([start_seconds(row) for row in rows], [start_memory_mb(row) for row in rows])
    titles = ("process start to first answer, s", "peak memory by then, MB")
    for axes, lengths, title in zip(panels, values, titles, strict=True):
        axes.barh(range(len(rows)), lengths, color=[_color(row) for row in rows], height=0.7)
        for number, value in enumerate(lengths):
            axes.text(value + 0.015 * max(lengths), number, format_measurement(value), va="center")
        axes.set_xlim(0, 1.2 * max(lengths))
        axes.set_xlabel(title)
    _name_rows(panels[0], rows)
    panels[1].tick_params(axis="y", length=0)
    figure.subplots_adjust(wspace=0.08)
    return figure


def draw_throughput(document: Document) -> Figure:
    """Images per second, decoding included, for each way to use the threads."""
    modes = sorted({rate.mode for rate in document.throughput}, key=_mode_order)
    names = list(dict.fromkeys(rate.name for rate in document.throughput))
    rates = {(rate.name, rate.mode): rate.summary.median for rate in document.throughput}
    figure, axes = _figure(4.6)
    for name in names:
        points = [(number, rates[name, mode]) for number, mode in enumerate(modes) if (name, mode) in rates]
        axes.plot(*zip(*points, strict=True), "o-", color=_name_color(name), markersize=5, linewidth=1.2)
    axes.set_xticks(range(len(modes)), [str(mode).replace(", ", ",\n") for mode in modes])
    axes.set_ylabel("images per second, decoding included")
    axes.set_ylim(0, None)
    axes.set_xlim(-0.2, len(modes) - 0.95)
    axes.grid(visible=True, axis="y")
    ends = [(name, rates[name, modes[-1]]) for name in names]
    for (name, _), height in zip(ends, _spread([rate for _, rate in ends], axes.get_ylim()[1] / 20), strict=True):
        axes.text(len(modes) - 0.93, height, name, color=_name_color(name), va="center", fontweight=_weight(name))
    return figure


def _total(row: Row) -> float:
    return sum(row.summary(stage).median for stages, _ in STAGE_COLORS.values() for stage in stages)


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, height))
    return figure, figure.subplots()


def _color(row: Row) -> str:
    return _name_color(row.name)


def _name_color(name: str) -> str:
    return OURS if name.startswith(_ENGINE) else PEERS


def _weight(name: str) -> str:
    return "bold" if name.startswith(_ENGINE) else "normal"


def _mode_order(mode: Mode) -> tuple[int, int, int]:
    return mode.threads * mode.workers, mode.batch, mode.workers


def _name_rows(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", length=0)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight(_weight(row.name))


def _color_key(figure: Figure, axes: Any, colors: dict[str, str]) -> None:
    """Write the names in their colors over the axes, one after the other."""
    x = 0.0
    for name, color in colors.items():
        word = axes.text(x, 1.02, name, color=color, transform=axes.transAxes, fontweight="bold", va="bottom")
        box = word.get_window_extent(_renderer(figure)).transformed(axes.transAxes.inverted())
        x = box.x1 + 0.03


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Mark 1, 2 and 5 of each power of ten in plain numbers."""
    low, high = math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in (1, 2, 5)]
    left, right = sorted(axis.get_view_interval())
    shown = [tick for tick in ticks if left <= tick <= right]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def _label_points(figure: Figure, axes: Any, labels: Sequence[Label], taken: Sequence[Bbox]) -> None:
    """Name each point beside it, where its name covers neither another name, nor a point, nor what is ``taken``."""
    renderer = _renderer(figure)
    pixels = [axes.transData.transform(label.point) for label in labels]
    used = [*taken, *(Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels)]
    inside = axes.get_window_extent(renderer)
    for label in sorted(labels, key=lambda label: label.weight != "bold"):
        word = axes.annotate(
            label.text, label.point, (0, 0), textcoords="offset points", va="center", fontsize=8, color=label.color,
            fontweight=label.weight, arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
        for right, up in _OFFSETS:
            word.set_position((right, up))
            word.set_horizontalalignment("left" if right > 0 else "right")
            word.update_positions(renderer)
            box = Text.get_window_extent(word, renderer)  # without the line to its point
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not any(box.overlaps(other) for other in used):
                break
        used.append(box)


def _renderer(figure: Figure) -> Any:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return the values moved apart to at least ``gap``, in their order."""
    order = sorted(range(len(values)), key=lambda number: values[number])
    placed: dict[int, float] = {}
    for number in order:
        placed[number] = max([values[number], *(height + gap for height in placed.values())])
    return [placed[number] for number in range(len(values))]


if __name__ == "__main__":
    main()
