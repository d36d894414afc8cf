"""Write docs/benchmarks.md: every table, plot and limit, and how each backend was set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lead import FLOOR, STEADY, describe_unfaithful, explain_losses, lead_table, main_rows, ratio_table

from siglip_onnx.bench.run import engine_name
from siglip_onnx.bench.schema import SAME_IMAGE, VISION, Document
from siglip_onnx.bench.statistics import ratio_of
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

NOT_MEASURED = {
    "LiteRT": "ai-edge-litert 2.3 and litert-torch 0.10 convert the vision tower in fp32, which takes about as long as "
              "fp32 here; their recipe for dynamic int8 makes a graph that LiteRT refuses (batch_matmul of int8).",
    "ncnn": "pnnx and ncnn 1.0.20261020 convert the vision tower, which takes more than twice as long as fp32 here; "
            "ncnn has no int8 for attention.",
}  # fmt: skip

OTHERS = """\
* `benchmarks/accuracy.py DATASET --model MODEL`: zero-shot top-1 and top-5 on a folder per class, and the loss against
  fp32 with its interval; with `--checkpoint` also for PyTorch and other backends. `benchmarks/draw_demo_set.py` draws a
  data set for the demo model ([results](../benchmarks/results/accuracy_demo.json)).
* `benchmarks/quantization.py`: size and loss of each variant on weights with outliers
  ([results](../benchmarks/results/quantization.json)).
* `benchmarks/classifier.py CHECKPOINT`: a classifier fine-tuned on drawn images; labels of int8 against those of fp32
  ([results](../benchmarks/results/classifier_demo.json)).
* `benchmarks/models.py`: time, memory and size of all published shapes in int8
  ([results](../benchmarks/results/models.json), [table](checkpoints.md#time-and-memory)).
* `benchmarks/parity.py`: all published shapes against PyTorch ([results](../benchmarks/results/parity.json)).
* `benchmarks/start.py`: whole commands of two commits in alternating runs
  ([results](../benchmarks/results/start.json)).
* `benchmarks/texts_in_bulk.py`: texts per second of many texts, of OpenVINO and of another commit in alternating runs
  ([results](../benchmarks/results/texts_in_bulk.json)).
* `benchmarks/bulk.py`: bulk jobs, killed and with faulty inputs ([results](../benchmarks/results/bulk.json)).
* `benchmarks/explain.py`: how often `explain` finds the named one of two drawn objects, and how many runs of the vision
  tower it takes ([results](../benchmarks/results/explain.json)).
* `benchmarks/web.py`: the web server, and its overload ([results](../benchmarks/results/web.json))."""


def benchmarks_page(document: Document, with_amx: Document) -> str:
    """Return docs/benchmarks.md; ``with_amx`` was measured on a CPU with AMX."""
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
        *lead_sections(document),
        "## On a CPU with AMX",
        "A CPU with AMX computes bf16 much faster, and another engine and variant are the best there. The machine was "
        "less steady, and the start was measured without the package's bytecode, which an installation has "
        "([results](../benchmarks/results/base_multilingual_amx.json)).",
        markdown(lead_table(with_amx)),
    ]
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## Single images: {inputs}", markdown(speed_table(document, inputs)),
                  markdown(stage_table(document, inputs)), markdown(start_table(document, inputs))]  # fmt: skip
    parts += describe_repeats(document)
    parts += [
        *(plot(name, alt) for name, alt in (
            ("speed_and_fidelity", "Speed against fidelity"), ("latency_by_stage", "Latency by stage"),
            ("start_and_memory", "Start and memory"))),
        "## Throughput", markdown(throughput_table(document)), plot("throughput", "Throughput"),
        "## Whole commands", markdown(command_table(document.processes)),
        "## Limit", limit_text(document),
        "## Setup of each backend", markdown(setup_table(document)),
        "## Other measurements", OTHERS,
        "## Not measured",
        "\n".join(f"* {name}: {reason}" for name, reason in {**NOT_MEASURED, **document.absent}.items()),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def lead_sections(document: Document) -> list[str]:
    """Return the sections of ratios, if each row was measured next to a baseline."""
    if document.baseline is None:
        return []
    losses = explain_losses(document)
    return [
        "## Lead and loss",
        f"This engine's best variant and engine against the best peer, both among those whose worst cosine of any "
        f"embedding to PyTorch fp32 is at least {FLOOR}. The ratio is how many times as much the peer takes, above 1 "
        "a lead: the median over the rounds, with a 95 % interval (bootstrap)." + describe_unfaithful(document),
        markdown(lead_table(document)),
        *(["Missed:\n\n" + "\n".join(losses)] if losses else []),
        "## Ratios",
        f"Each backend as a multiple of {INT8}, which was measured beside it in every round, since neighboring "
        "measurements share the state of the machine: the fastest call of each stage, the start of the process and "
        "its peak memory. The median of the rounds, with a 95 % interval (bootstrap). A row is stable if no interval "
        f"is wider than {STEADY:.0%} of its ratio. The row of {INT8} itself shows how equal two measurements of the "
        "same are.",
        markdown(ratio_table(document)),
    ]


def describe_repeats(document: Document) -> list[str]:
    """Return the time of one image repeated, which a cache would shorten, against that of distinct images."""
    return [
        f"With one image repeated, the vision tower of {row.name} takes {ratio.value:.3f} times as long as with "
        f"distinct images (95 % interval {ratio.low:.3f} - {ratio.high:.3f})."
        for row in document.rows
        if SAME_IMAGE in row.stages and (ratio := ratio_of(row.stages[SAME_IMAGE], row.stages[VISION]))
    ]


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
            "quantization and memory. Where the product is faster than the instructions, onnxruntime uses others, "
            "those of AMX, of which this limit knows nothing.",
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
