"""The towers of the published checkpoints, and what each checkpoint costs, from benchmarks/results/models.json.

A tower that was not measured is estimated from the measured one of the same kind that is nearest: its time in
proportion to the counted operations, its memory in proportion to the weights without the token table, of which only the
rows in use are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from operations import count_operations
from result_files import RESULTS

from siglip_onnx.bench.machine import BUSY
from siglip_onnx.bench.tables import format_measurement, markdown
from siglip_onnx.config import TEXT, VISION, NaflexVisionConfig, SiglipConfig
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.hub.published import BASE, GIANT, LARGE, OPEN_CLIP, PUBLISHED, SO400M, PublishedCheckpoint, Width

RESULTS_FILE = RESULTS / "models.json"
NAFLEX_PATCHES = (128, 256, 576)
# Operations of linear layers in the time of one in fp32. In base_multilingual.json those take 1.5 ns per 1000, with all
# that is not counted, and the peak of fp32 is 4.5 ns per 1000.
FP32_OPERATION = 3.0
_WIDTHS = {BASE: "base", LARGE: "large", SO400M: "so400m", GIANT: "giant"}
_HEADER = ("google/...", "ImageNet", "XM3600 text to image", "one image, ms", "one text, ms", "images per second",
           "memory, MB", "disk, MB")  # fmt: skip
_PATCHES_HEADER = ("NaFlex, one image", "patches", "ms", "images per second")


class Tower(NamedTuple):
    """One tower of one or several checkpoints; ``config`` has only this tower, ``operations`` are those of int8."""

    name: str
    kind: str
    config: SiglipConfig
    operations: float

    @property
    def table_mb(self) -> float:
        """Megabytes of a text tower's token table in int8, with a scale for each row."""
        return 0.0 if self.config.text is None else self.vocab_size * (self.config.text.hidden_size + 4) / 1e6

    @property
    def vocab_size(self) -> int:
        """Rows of a text tower's table; 0 for a vision tower."""
        return 0 if self.config.text is None else self.config.text.vocab_size

    @property
    def default_size(self) -> int:
        """Tokens of a text, or patches of an image; of a NaFlex model, those that it takes by default."""
        if self.config.text is not None:
            return self.config.text.max_position_embeddings
        return 0 if self.config.vision is None else self.config.vision.num_patches


class TowerCost(NamedTuple):
    """The fastest and the median call, images per second, memory beside that of the process before, and disk."""

    min_ms: float
    median_ms: float
    per_second: float
    memory_mb: float
    disk_mb: float
    estimated: bool = False


class Cost(NamedTuple):
    """What a checkpoint costs: its towers, and the memory of a process that has answered with both."""

    vision: TowerCost
    text: TowerCost
    memory_mb: float

    @property
    def estimated(self) -> bool:
        """Whether a tower was not measured."""
        return self.vision.estimated or self.text.estimated

    @property
    def disk_mb(self) -> float:
        """Megabytes of both towers."""
        return self.vision.disk_mb + self.text.disk_mb


def towers_of(checkpoint: PublishedCheckpoint) -> tuple[Tower, Tower]:
    """Return the vision tower and the text tower of a checkpoint; equal names mean equal shapes."""
    config = checkpoint.config
    vision, text = config.both()
    operations = {
        kind: counted["linear"] + FP32_OPERATION * counted["other"]
        for kind, counted in count_operations(config).items()
    }
    size = "NaFlex" if isinstance(vision, NaflexVisionConfig) else f"{vision.image_size}"
    text_width = SO400M if checkpoint.width == GIANT else checkpoint.width
    to = "" if text.embedding_dim == text.hidden_size else f" to {text.embedding_dim}"
    return (
        Tower(f"vision {_width(checkpoint.width)} {size}/{vision.patch_size}", VISION, replace(config, text=None),
              operations[VISION]),
        Tower(f"text {_width(text_width)} {text.vocab_size}x{text.max_position_embeddings}{to}", TEXT,
              replace(config, vision=None), operations[TEXT]),
    )  # fmt: skip


def _width(width: Width) -> str:
    return _WIDTHS.get(width) or "x".join(map(str, width))


def is_busy(result: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    """Say whether other programs used the CPUs while a tower was measured."""
    return result["other_cpus"] is not None and result["other_cpus"] > BUSY * machine["threads"]


def find_costs(results: Mapping[str, Any]) -> dict[str, Cost]:
    """Return the cost of every published checkpoint.

    Raises:
        BenchmarkError: no vision tower or no text tower was measured.
    """
    sizes_mb = {
        tower: checkpoint.sizes_mb["int8"][tower.kind] for checkpoint in PUBLISHED for tower in towers_of(checkpoint)
    }
    measured = {tower: size for tower, size in sizes_mb.items() if tower.name in results["towers"]}
    base_mb = min((results["towers"][tower.name]["base_memory_mb"] for tower in measured), default=0.0)
    costs = {}
    for checkpoint in PUBLISHED:
        vision, text = (
            _read_cost(results["towers"][tower.name])
            if tower in measured
            else _estimate(tower, sizes_mb[tower], measured, results["towers"])
            for tower in towers_of(checkpoint)
        )
        costs[checkpoint.name] = Cost(vision, text, base_mb + vision.memory_mb + text.memory_mb)
    return costs


def _read_cost(result: Mapping[str, Any]) -> TowerCost:
    latency, grown = result["latency_ms"], result["memory_mb"] - result["base_memory_mb"]
    return TowerCost(latency["min"], latency["median"], result.get("per_second", 0.0), grown, result["disk_mb"])


def _estimate(
    tower: Tower, size_mb: float, measured: Mapping[Tower, float], results: Mapping[str, Any]
) -> TowerCost:  # fmt: skip
    weights_mb = {other: size - other.table_mb for other, size in measured.items() if other.kind == tower.kind}
    if not weights_mb:
        raise BenchmarkError(f"No {tower.kind} tower was measured. Run benchmarks/models.py first.")
    own_mb = size_mb - tower.table_mb
    by_time = min(weights_mb, key=lambda other: abs(math.log(tower.operations / other.operations)))
    by_memory = min(weights_mb, key=lambda other: abs(math.log(own_mb / weights_mb[other])))
    time, memory = _read_cost(results[by_time.name]), _read_cost(results[by_memory.name])
    slower = tower.operations / by_time.operations
    return TowerCost(
        time.min_ms * slower, time.median_ms * slower, time.per_second / slower,
        memory.memory_mb * own_mb / weights_mb[by_memory], size_mb, estimated=True,
    )  # fmt: skip


def packaged_costs(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``siglip_onnx/hub/published_costs.json``."""
    return {
        "measured_on": describe_machine_of(results),
        "checkpoints": {
            name: {
                "image_ms": round(cost.vision.min_ms, 1),
                "text_ms": round(cost.text.min_ms, 1),
                "images_per_second": float(f"{cost.vision.per_second:.3g}"),
                "memory_mb": round(cost.memory_mb),
                "disk_mb": round(cost.disk_mb),
                "estimated": cost.estimated,
            }
            for name, cost in find_costs(results).items()
        },
    }


def describe_machine_of(results: Mapping[str, Any]) -> str:
    """Return a clause that names the machine, its int8 instructions and onnxruntime, and other programs if any ran."""
    machine = results["machine"]
    flags = [flag for flag in machine["cpu_flags"] if flag in ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm")]
    text = (
        f"{machine['cpu']}, {machine['threads']} cores, {' and '.join(flags) or 'no fast int8 instructions'}, "
        f"onnxruntime {machine['packages']['onnxruntime']}"
    )
    busy = [result for result in results["towers"].values() if is_busy(result, machine)]
    if busy:
        loads = [result["load_average"][0] for result in busy]
        text += (
            f", which was busy with other programs (load averages {min(loads):.1f} to {max(loads):.1f}), so that a "
            "quiet one is faster"
        )
    return text


def costs_text(results: Mapping[str, Any]) -> str:
    """Return the part of docs/checkpoints.md on cost: a table, the fastest first, and one of NaFlex."""
    costs = find_costs(results)
    fastest_first = sorted(PUBLISHED, key=lambda checkpoint: costs[checkpoint.name].vision.min_ms)
    best = front(fastest_first)
    lines = [_cost_cells(checkpoint, costs[checkpoint.name], checkpoint.name in best) for checkpoint in fastest_first]
    return "\n\n".join(
        [
            f"int8, measured on {describe_machine_of(results)}; yours will differ. One image: the vision tower, "
            "fastest / median call. One text: the tokenizer and the text tower. Images per second: one thread on each "
            "core. Memory: the peak of a process that has loaded both towers and answered. **Bold**: no checkpoint "
            "above has a higher accuracy on ImageNet."
            + _explain_estimates(costs.values())
            + (f" {results['settings']['note']}" if "note" in results["settings"] else ""),
            markdown((_HEADER, lines)),
            "![Published accuracy against the time of one image](plots/checkpoints.svg)",
            *_patches_tables(results),
        ]
    )


def front(fastest_first: Iterable[PublishedCheckpoint]) -> set[str]:
    """Return the names of those that are more accurate on ImageNet than all faster ones."""
    names, highest = set(), 0.0
    for checkpoint in fastest_first:
        if checkpoint.accuracy is not None and checkpoint.accuracy.imagenet > highest:
            highest = checkpoint.accuracy.imagenet
            names.add(checkpoint.name)
    return names


def _explain_estimates(costs: Iterable[Cost]) -> str:
    if not any(cost.estimated for cost in costs):
        return ""
    return (
        " ~: not measured, but estimated from the nearest measured tower by counted operations and by weights; may be "
        "a third off."
    )


def _cost_cells(checkpoint: PublishedCheckpoint, cost: Cost, is_best: bool) -> list[str]:
    accuracy = checkpoint.accuracy
    mark = "\\*" if accuracy is not None and accuracy.protocol == OPEN_CLIP else ""
    recall = accuracy.xm3600_text_to_image if accuracy is not None else None
    image, text = cost.vision, cost.text
    about = ["~" if part.estimated else "" for part in (image, text)]
    return [
        f"**{checkpoint.name}**" if is_best else checkpoint.name,
        f"{accuracy.imagenet}{mark}" if accuracy is not None else "",
        f"{recall}{mark}" if recall is not None else "",
        f"{about[0]}{format_measurement(image.min_ms)} / {format_measurement(image.median_ms)}",
        f"{about[1]}{format_measurement(text.min_ms)} / {format_measurement(text.median_ms)}",
        f"{about[0]}{format_measurement(image.per_second)}",
        f"{'~' if cost.estimated else ''}{cost.memory_mb:.0f}",
        f"{cost.disk_mb:.0f}",
    ]


def _patches_tables(results: Mapping[str, Any]) -> list[str]:
    """Return the table of the numbers of patches of NaFlex models, if one was measured."""
    lines = []
    for checkpoint in PUBLISHED:
        vision, _ = towers_of(checkpoint)
        for patches, part in results["towers"].get(vision.name, {}).get("by_patches", {}).items():
            latency = part["latency_ms"]
            lines.append([
                checkpoint.name, patches,
                f"{format_measurement(latency['min'])} / {format_measurement(latency['median'])}",
                format_measurement(part["per_second"]),
            ])  # fmt: skip
    return [markdown((_PATCHES_HEADER, lines))] if lines else []
