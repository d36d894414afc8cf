"""Write docs/benchmarks.md: every table, plot and limit, and how each backend was set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_onnx.bench.run import engine_name
from siglip_onnx.bench.schema import SAME_IMAGE, TEXT, VISION, Document, Row
from siglip_onnx.bench.statistics import Rounds, ratio_of
from siglip_onnx.bench.tables import (
    Table,
    explain,
    format_measurement,
    markdown,
    speed_table,
    stage_table,
    start_table,
    throughput_table,
)

INT8 = engine_name("int8")
PEAKS = (("instructions, all threads", "instructions"), ("instructions, one thread", "instructions_one_thread"),
         ("one large product in onnxruntime, all threads", "large_gemm"))  # fmt: skip

OTHERS = """\
* `benchmarks/accuracy.py DATASET --model MODEL`: zero-shot top-1 and top-5 on a folder per class, and the loss against
  fp32 with its interval; with `--checkpoint` also for PyTorch and other backends. `benchmarks/draw_demo_set.py` draws a
  data set for the demo model ([results](../benchmarks/results/accuracy_demo.json)).
* `benchmarks/quantization.py`: size and loss of each variant on weights with outliers
  ([results](../benchmarks/results/quantization.json)).
* `benchmarks/parity.py`: all published shapes against PyTorch ([results](../benchmarks/results/parity.json)).
* `benchmarks/bulk.py`: bulk jobs, killed and with faulty inputs ([results](../benchmarks/results/bulk.json)).
* `benchmarks/web.py`: the web server, and its overload ([results](../benchmarks/results/web.json))."""


def benchmarks_page(document: Document, no_vnni: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md."""
    settings = document.settings
    parts = [
        "# Benchmarks",
        "`make report` writes this page from [the results](../benchmarks/results/base_multilingual.json), which hold "
        "every sample; `make bench` measures again. [CONTRIBUTING.md](../CONTRIBUTING.md#benchmarks) explains how to "
        "measure your own model and machine, and how to add a backend.",
        "The checkpoint has the shapes of google/siglip-base-patch16-256-multilingual and random weights, which prove "
        "parity, speed and memory, not accuracy. Every backend ran on the same checkpoint and images in one run.",
        explain(document),
        f"At least {settings['min_samples']} samples or {settings['min_seconds']:g} s for each stage over all rounds; "
        f"{settings['images']} images, {settings['texts']} texts. The whole run took {document.seconds:.0f} s.",
    ]
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## Single images: {inputs}", markdown(speed_table(document, inputs)),
                  markdown(stage_table(document, inputs)), markdown(start_table(document, inputs))]  # fmt: skip
    parts += describe_repeats(document)
    parts += [
        *(plot(name, alt) for name, alt in (
            ("speed_and_fidelity", "Speed against fidelity"), ("latency_by_stage", "Latency by stage"),
            ("start_and_memory", "Start and memory"))),
        "## Ratios",
        f"Time of each backend as a multiple of that of {INT8}: the fastest call of a round over the fastest call of "
        "the same round, since neighboring measurements share the state of the machine. The median of the rounds, and "
        "their range.",
        markdown(ratio_table(document)),
        "## Throughput", markdown(throughput_table(document)), plot("throughput", "Throughput"),
        "## Whole commands", markdown(command_table(document.processes)),
        "## CPUs without VNNI",
        "Measured with [an earlier version](../benchmarks/results/base_multilingual_no_vnni.json), on the same shapes.",
        markdown(no_vnni_table(no_vnni)),
        "## Limit", limit_text(document),
        "## Setup of each backend", markdown(setup_table(document)),
        "## Other measurements", OTHERS,
        *(["## Not measured", "\n".join(f"* {name}: {reason}" for name, reason in document.absent.items())]
          if document.absent else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main_rows(document: Document) -> list[Row]:
    """Return the rows of the inputs that every configuration was measured on."""
    return [row for row in document.rows if row.inputs == document.rows[0].inputs]


def describe_repeats(document: Document) -> list[str]:
    """Return the time of one image repeated, which a cache would shorten, against that of distinct images."""
    return [
        f"With one image repeated, the vision tower of {row.name} takes {ratio.value:.3f} times as long as with "
        f"distinct images (95 % interval {ratio.low:.3f} - {ratio.high:.3f})."
        for row in document.rows
        if SAME_IMAGE in row.stages and (ratio := ratio_of(row.stages[SAME_IMAGE], row.stages[VISION]))
    ]


def ratio_table(document: Document) -> Table:
    """Return each backend's fastest calls over those of the int8 variant, round by round; the nearest first."""
    engine = next(row for row in main_rows(document) if row.name == INT8)
    ratios = {
        row.name: [paired_ratios(row.stages[stage], engine.stages[stage]) for stage in (VISION, TEXT)]
        for row in main_rows(document)
        if row is not engine
    }
    lines = [
        [name, *(f"{np.median(rounds):.2f} ({min(rounds):.2f} - {max(rounds):.2f})" for rounds in stages)]
        for name, stages in sorted(ratios.items(), key=lambda item: float(np.median(item[1][0])))
    ]
    return ("", "vision", "text"), lines


def paired_ratios(rounds: Rounds, reference: Rounds) -> list[float]:
    """Return the ratio of the fastest calls of each round."""
    return [min(samples) / min(others) for samples, others in zip(rounds, reference, strict=True)]


def plot(name: str, alt: str) -> str:
    """Return the Markdown of a plot."""
    return f"![{alt}](plots/{name}.svg)"


def command_table(processes: Mapping[str, Any]) -> Table:
    """Return seconds and memory of whole commands."""
    header = ("command, int8", "min s", "median s", "peak MB")
    return header, [
        [name, f"{runs['min_seconds']:.2f}", f"{runs['median_seconds']:.2f}", f"{runs['peak_memory_mb']:.0f}"]
        for name, runs in processes.items()
    ]


def no_vnni_table(results: Mapping[str, Any]) -> Table:
    """Return this engine and optimum's graphs on a CPU without VNNI."""
    towers, fidelity = results["towers"], results["fidelity"]
    lines = [
        [f"{tower} tower", *(f"{towers[f'{tower} {variant}{origin}']['median_ms']:.0f}" for variant, origin in
                             (("fp32", ""), ("int8", ""), ("fp32", " of optimum"), ("int8", " of optimum"))),
         f"{fidelity[f'{tower}_int8_min_cosine_to_fp32']:.5f}"]
        for tower in ("vision", "text")
    ]  # fmt: skip
    return ("median ms", "fp32", "int8", "optimum fp32", "optimum int8", "int8: cosine min to fp32"), lines


def limit_text(document: Document) -> str:
    """Return both peaks, the operations, and each tower's share."""
    limit = document.limit
    peaks = [
        [name, *(f"{limit[key][kind] / 1e9:.0f}" if kind in limit[key] else "" for kind in ("int8", "fp32"))]
        for name, key in PEAKS
    ]
    rows = {row.name: row for row in main_rows(document)}
    shares = [
        [f"{tower}, {variant}", f"{counted['linear'] / 1e9:.1f}", f"{counted['other'] / 1e9:.2f}",
         format_measurement(counted[f"{variant}_ms"]), format_measurement(fastest),
         f"{counted[f'{variant}_ms'] / fastest:.0%}"]
        for tower, counted in limit["towers"].items()
        for variant in ("int8", "fp32")
        if (row := rows.get(engine_name(variant))) and (fastest := row.summary(tower).min)
    ]  # fmt: skip
    return "\n\n".join(
        [
            "Measured by `benchmarks/limit.py`: dot products of 8 bits and fused multiply-adds in f32 from registers, "
            "and one large product through onnxruntime. A tower's limit is its linear layers at the int8 (or f32) peak "
            "and the rest, attention and patch embedding, at the f32 peak. It ignores LayerNorm, GELU, softmax, "
            "quantization and memory.",
            markdown((("10^9 operations per second", "int8", "f32"), peaks)),
            markdown((("tower", "linear GOP", "other GOP", "limit ms", "fastest run ms", "share"), shares)),
        ]
    )


def setup_table(document: Document) -> Table:
    """Return the setup of each configuration, its packages, and the seconds of its conversion."""
    seconds = document.settings.get("conversion_seconds", {})
    return ("", "setup", "packages", "conversion s"), [
        [row.name, row.about, ", ".join(f"{name} {version}" for name, version in row.packages.items()),
         f"{seconds[row.name]:.0f}" if row.name in seconds else ""]
        for row in main_rows(document)
    ]  # fmt: skip
