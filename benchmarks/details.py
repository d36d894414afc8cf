"""docs/benchmarks.md: every table, how each peer was set up, and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verdicts import ENGINE, main_rows

from siglip_onnx.bench.schema import SAME_PICTURE, VISION, Document
from siglip_onnx.bench.statistics import ratio_of
from siglip_onnx.bench.tables import (
    Table,
    explain,
    markdown,
    speed_table,
    stage_table,
    start_table,
    three_digits,
    throughput_table,
)


def details(document: Document) -> str:
    """Return docs/benchmarks.md: every table, how each peer was set up, and the limit."""
    settings = document.settings
    parts = [
        "# Benchmarks",
        "Written by `make report` from [results](../benchmarks/results/base_multilingual.json), which hold every "
        "sample; `make bench` measures them again. How to measure your own model and machine, and how to add a "
        "backend, stands in [CONTRIBUTING.md](../CONTRIBUTING.md#benchmarks).",
        explain(document),
        f"At least {settings['min_samples']} samples or {settings['min_seconds']:g} s for each stage over all rounds; "
        f"{settings['pictures']} pictures, {settings['texts']} texts. The whole run took {document.seconds:.0f} s.",
    ]
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## One picture at a time: {inputs}", markdown(speed_table(document, inputs)),
                  markdown(stage_table(document, inputs)), markdown(start_table(document, inputs))]  # fmt: skip
    parts += describe_repeats(document)
    parts += [
        *(plot(name, alt) for name, alt in (
            ("speed_and_fidelity", "Speed against fidelity"), ("latency_by_stage", "Latency by stage"),
            ("start_and_memory", "Start and memory"))),
        "## Many pictures", markdown(throughput_table(document)), plot("throughput", "Throughput"),
        "## Whole commands", markdown(command_table(document.processes)),
        "## The limit", limit_text(document),
        "## How each was set up", markdown(setup_table(document)),
        *(["## Absent", "\n".join(f"* {name}: {reason}" for name, reason in document.absent.items())]
          if document.absent else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def describe_repeats(document: Document) -> list[str]:
    """Return whether one picture again and again is faster than distinct ones, as a cache would make it."""
    return [
        f"One picture again and again takes {row.name} {ratio.value:.3f} times ({ratio.low:.3f} - {ratio.high:.3f}) as "
        "long in the vision tower as distinct ones: nothing is remembered."
        for row in document.rows
        if SAME_PICTURE in row.stages and (ratio := ratio_of(row.stages[SAME_PICTURE], row.stages[VISION]))
    ]


def plot(name: str, alt: str) -> str:
    """Return the Markdown of a plot."""
    return f"![{alt}](plots/{name}.svg)"


def command_table(processes: Mapping[str, Any]) -> Table:
    """Return seconds and memory of whole commands."""
    header = ("command, int8", "min s", "median s", "peak MB")
    return header, [
        [name, f"{found['min_seconds']:.2f}", f"{found['median_seconds']:.2f}", f"{found['peak_memory_mb']:.0f}"]
        for name, found in processes.items()
    ]


def limit_text(document: Document) -> str:
    """Return both peaks, the operations, and each tower's share."""
    limit = document.limit
    peaks = [
        [name, *(f"{limit[key][kind] / 1e9:.0f}" if kind in limit[key] else "" for kind in ("int8", "fp32"))]
        for name, key in (("instructions, all threads", "instructions"), ("instructions, one thread",
                          "instructions_one_thread"), ("one large product in onnxruntime, all threads", "large_gemm"))
    ]  # fmt: skip
    shares = []
    for tower, found in limit["towers"].items():
        for variant in ("int8", "fp32"):
            row = document.row(f"{ENGINE} {variant}", document.rows[0].inputs)
            if row is not None:
                fastest = row.summary(tower).min
                shares.append([f"{tower}, {variant}", f"{found['linear'] / 1e9:.1f}", f"{found['other'] / 1e9:.2f}",
                               three_digits(found[f"{variant}_ms"]), three_digits(fastest),
                               f"{found[f'{variant}_ms'] / fastest:.0%}"])  # fmt: skip
    return "\n\n".join(
        [
            "Measured by `benchmarks/limit.py`: dot products of 8 bits and fused multiply-adds in f32 from registers, "
            "and one large product through onnxruntime. A tower's limit is its linear layers at the int8 (or f32) peak "
            "and the rest, attention and patch embedding, at the f32 peak; LayerNorm, GELU, softmax and quantizing "
            "cost nothing there, and memory is infinitely fast.",
            markdown((("10^9 operations per second", "int8", "f32"), peaks)),
            markdown((("tower", "linear GOP", "other GOP", "limit ms", "fastest run ms", "share"), shares)),
        ]
    )


def setup_table(document: Document) -> Table:
    """Return how each configuration was set up, its packages, and the seconds its conversion took."""
    seconds = document.settings.get("conversion_seconds", {})
    return ("", "set up", "computed by", "conversion s"), [
        [row.name, row.about, ", ".join(f"{name} {found}" for name, found in row.packages.items()),
         f"{seconds[row.name]:.0f}" if row.name in seconds else ""]
        for row in main_rows(document)
    ]  # fmt: skip
