"""Everything that documents say of measured figures, from benchmarks/results/: run it with `make report`.

Writes the README's tables between their marks, docs/benchmarks.md and the plots in docs/plots/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from fresh import RESULTS, ROOT

from siglip_onnx.bench.schema import (
    DECODE,
    END_TO_END,
    PREPROCESS,
    TEXT,
    VISION,
    Document,
    Row,
    read_document,
)
from siglip_onnx.bench.statistics import ratio_of
from siglip_onnx.bench.tables import (
    NEAR,
    Table,
    describe_mode,
    explain,
    markdown,
    speed_table,
    stage_table,
    start_memory_mb,
    start_seconds,
    three_digits,
    throughput_table,
)

README, DETAILS, PLOTS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots"
SUITE, NO_VNNI, QUANTIZATION = (RESULTS / f"{name}.json" for name in ("base_multilingual", "base_multilingual_no_vnni",
                                                                      "quantization"))  # fmt: skip
ENGINE = "siglip_onnx"
AHEAD = 1.15


@click.command(help=__doc__)
def main() -> None:
    """Write everything."""
    from siglip_onnx.bench.plots import draw_plots  # noqa: PLC0415 - tables need no matplotlib

    document = read_document(SUITE)
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    DETAILS.write_text(details(document), encoding="utf-8")
    for path in draw_plots(document, PLOTS):
        click.echo(path, err=True)


def with_tables(text: str) -> str:
    """Return the README's text with every table as the results have it."""
    for mark, table in readme_parts().items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def readme_parts() -> dict[str, str]:
    """Return what stands between the README's marks."""
    return {
        "benchmarks": summary(read_document(SUITE)),
        "no_vnni": describe_no_vnni(json.loads(NO_VNNI.read_text(encoding="utf-8"))),
        "quantization": quantization_table(json.loads(QUANTIZATION.read_text(encoding="utf-8"))),
    }


def summary(document: Document) -> str:
    """Return the README's part: the table, who is ahead, and what whole commands take."""
    return "\n\n".join(
        [
            markdown(summary_table(document)),
            "\n".join(f"* {line}" for line in [*verdicts(document), *describe_commands(document)]),
            explain(document),
        ]
    )


def summary_table(document: Document) -> Table:
    """Return medians by configuration, the fastest vision tower first."""
    header = ("median", "vision ms", "text ms", "end to end ms", "cosine min, vision / text", "start s", "memory MB",
              "on disk MB")  # fmt: skip
    rows = sorted(main_rows(document), key=lambda row: row.summary(VISION).median)
    return header, [summary_cells(row) for row in rows]


def summary_cells(row: Row) -> list[str]:
    """Return a line of :func:`summary_table`; this engine's are bold."""
    ours = row.name.startswith(ENGINE)
    times = (row.summary(stage) for stage in (VISION, TEXT, END_TO_END))
    fidelity = row.fidelity
    return [
        f"**{row.name}**" if ours else row.name,
        *(f"{three_digits(time.median)}{' unstable' if time.unstable else ''}" for time in times),
        f"{fidelity.vision_cosine_min:.5f} / {fidelity.text_cosine_min:.5f}",
        f"{start_seconds(row):.2f}",
        f"{start_memory_mb(row):.0f}",
        f"{row.size_bytes / 1e6:.0f}",
    ]


def main_rows(document: Document) -> list[Row]:
    """Return the rows of the inputs that every configuration was measured on."""
    return [row for row in document.rows if row.inputs == document.rows[0].inputs]


def verdicts(document: Document) -> list[str]:
    """Return who is ahead in which column, among those whose worst cosine counts as the same answer."""
    rows = [row for row in main_rows(document) if row.fidelity.cosine_min >= NEAR]
    columns = {
        "vision": lambda row: row.summary(VISION).median,
        "text": lambda row: row.summary(TEXT).median,
        "end to end": lambda row: row.summary(END_TO_END).median,
        "start": start_seconds,
        "memory": start_memory_mb,
        "size on disk": lambda row: row.size_bytes,
    }
    ours = [row for row in rows if row.name.startswith(ENGINE)]
    peers = [row for row in rows if not row.name.startswith(ENGINE)]
    lines, wins = [], []
    for column, value in columns.items():
        best, rival = min(ours, key=value), min(peers, key=value)
        if value(best) <= value(rival):
            wins.append(f"{column} ({best.name.removeprefix(ENGINE).strip()}, {value(rival) / value(best):.2f} times "
                        f"ahead of {rival.name})")  # fmt: skip
        else:
            lines.append(f"{rival.name} is ahead of this engine in {column}: "
                         f"{three_digits(value(rival))} to {three_digits(value(best))}.")  # fmt: skip
    nearer = [row.name for row in rows if not row.name.startswith(ENGINE) and loses_less(row, ours)]
    return [
        f"Of all configurations with every cosine at least {NEAR}, this engine is first in {'; '.join(wins)}."
        if wins else f"Of all configurations with every cosine at least {NEAR}, this engine is first in nothing.",
        *lines,
        *([f"Nearer to PyTorch fp32 than int8 here, and slower: {', '.join(nearer)}."] if nearer else []),
        *small_leads(rows),
        *faster_but_farther(document, ours),
    ]  # fmt: skip


def loses_less(row: Row, ours: Sequence[Row]) -> bool:
    """Say whether a peer is nearer to the reference than this engine's fastest variant."""
    fastest = min(ours, key=lambda one: one.summary(VISION).median)
    return 1 - row.fidelity.cosine_min < 1 - fastest.fidelity.cosine_min and row.fidelity.cosine_min < 1 - 1e-6


def small_leads(rows: Sequence[Row]) -> list[str]:
    """Name peers that this engine's fastest vision tower is not ahead of by what is aimed at, with the interval."""
    ours = min((row for row in rows if row.name.startswith(ENGINE)), key=lambda row: row.summary(VISION).median)
    lines = []
    for row in rows:
        lead = ratio_of(row.stages[VISION], ours.stages[VISION])
        if not row.name.startswith(ENGINE) and lead.value < AHEAD:
            lines.append(
                f"The aim of {AHEAD} times {row.name}'s vision tower is not reached: {lead.value:.2f} "
                f"({lead.low:.2f} - {lead.high:.2f})."
            )
    return lines


def faster_but_farther(document: Document, ours: Sequence[Row]) -> list[str]:
    """Name peers whose vision tower is faster, but not the same answer."""
    fastest = min(row.summary(VISION).median for row in ours)
    return [
        f"{row.name} runs the vision tower faster ({three_digits(row.summary(VISION).median)} to "
        f"{three_digits(fastest)} ms), at a cosine of {row.fidelity.vision_cosine_min:.3f}."
        for row in main_rows(document)
        if not row.name.startswith(ENGINE) and row.fidelity.cosine_min < NEAR and row.summary(VISION).median < fastest
    ]


def describe_commands(document: Document) -> list[str]:
    """Return what whole commands take, what an export costs, workers give and fast decode saves."""
    commands = document.processes
    classify = commands["classify, one picture and two texts"]
    cached = commands["classify, texts known from the cache"]
    text = commands["embed one text (text tower alone)"]
    export = commands.get("export to fp32 and int8")
    lines = [
        f"The whole `classify` command with int8, one picture and two texts, took "
        f"{classify['median_seconds']:.2f} s and at most {classify['peak_memory_mb']:.0f} MB; with the texts known from the cache "
        f"{cached['median_seconds']:.2f} s and {cached['peak_memory_mb']:.0f} MB; `embed` of one text "
        f"{text['median_seconds']:.2f} s and {text['peak_memory_mb']:.0f} MB."
    ]
    if export:
        lines.append(
            f"Exporting fp32 and int8 took {export['median_seconds']:.0f} s and {export['peak_memory_mb']:.0f} MB."
        )
    return [*lines, *describe_workers(document), *describe_fast_decode(document), *describe_limit(document)]


def describe_workers(document: Document) -> list[str]:
    """Return what workers give."""
    rates = {(one.workers, one.threads, one.batch): one.summary.median for one in document.throughput
             if one.name == f"{ENGINE} int8"}  # fmt: skip
    if not rates:
        return []
    said = ", ".join(f"{describe_mode(*mode)} {three_digits(rate)}" for mode, rate in sorted(rates.items()))
    return [f"Pictures per second with int8, decoding included: {said}."]


def describe_fast_decode(document: Document) -> list[str]:
    """Return what fast decode saves on large pictures, and what it loses."""
    fast = document.row(f"{ENGINE} int8, fast decode")
    exact = document.row(f"{ENGINE} int8", fast.inputs) if fast else None
    if fast is None or exact is None:
        return []
    times = [sum(row.summary(stage).median for stage in (DECODE, PREPROCESS)) for row in (exact, fast)]
    return [
        f"`--fast-decode` prepares a 12-megapixel JPEG in {three_digits(times[1])} instead of "
        f"{three_digits(times[0])} ms; the worst cosine is {fast.fidelity.vision_cosine_min:.5f} instead of {exact.fidelity.vision_cosine_min:.5f}."
    ]


def describe_limit(document: Document) -> list[str]:
    """Return the share of the hardware's arithmetic that each tower uses."""
    row = document.row(f"{ENGINE} int8", document.rows[0].inputs)
    if not document.limit or row is None:
        return []
    shares = [f"{tower} {found['int8_ms'] / row.summary(tower).min:.0%} ({three_digits(found['int8_ms'])} ms)"
              for tower, found in document.limit["towers"].items()]  # fmt: skip
    return [f"Share of what the arithmetic of this CPU allows, fastest int8 run: {', '.join(shares)}; see "
            "[docs/benchmarks.md](docs/benchmarks.md)."]  # fmt: skip


def details(document: Document) -> str:
    """Return docs/benchmarks.md: every table, how each peer was set up, and the limit."""
    settings = document.settings
    parts = [
        "# Benchmarks",
        "Written by `make report` from [results](../benchmarks/results/base_multilingual.json), which hold every "
        "sample; `make bench` measures them again. How to measure your own model and machine, and how to add a backend, stands "
        "in [CONTRIBUTING.md](../CONTRIBUTING.md#benchmarks).",
        explain(document),
        f"At least {settings['min_samples']} samples or {settings['min_seconds']:g} s for each stage over all rounds; "
        f"{settings['pictures']} pictures, {settings['texts']} texts. The whole run took {document.seconds:.0f} s.",
    ]
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## One picture at a time: {inputs}", markdown(speed_table(document, inputs)),
                  markdown(stage_table(document, inputs))]  # fmt: skip
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
            "and one large product through onnxruntime. A tower's limit is its linear layers at the int8 (or f32) peak and "
            "the rest, attention and patch embedding, at the f32 peak; LayerNorm, GELU, softmax and quantizing cost "
            "nothing there, and memory is infinitely fast.",
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


def describe_no_vnni(results: Mapping[str, Any]) -> str:
    """Return what was measured on a CPU without VNNI, before the suite: this engine beside optimum's graphs."""
    towers, fidelity = results["towers"], results["fidelity"]
    lines = [
        [f"{tower} tower", *(f"{towers[f'{tower} {variant}{origin}']['median_ms']:.0f}" for variant, origin in
                             (("fp32", ""), ("int8", ""), ("fp32", " of optimum"), ("int8", " of optimum"))),
         f"{fidelity[f'{tower}_int8_min_cosine_to_fp32']:.5f}"]
        for tower in ("vision", "text")
    ]  # fmt: skip
    header = ("median ms", "fp32", "int8", "fp32, optimum's graph", "int8, optimum's graph", "int8: cosine min to fp32")
    return markdown((header, lines))


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return what each variant loses on each kind of weights."""
    kinds = results["weights"]
    lines = []
    for variant in ("int8", "int8, not equalized", "fp16", "q4"):
        size = kinds["plain"][variant].get("megabytes")
        cells = [
            f"{one[variant]['vision_cosine_min']:.4f} / {one[variant]['text_cosine_min']:.4f}" for one in kinds.values()
        ]
        lines.append([variant, "" if size is None else f"{size:.0f}", *cells])
    return markdown((("smallest cosine to fp32, vision / text", "MB", *kinds), lines))


if __name__ == "__main__":
    main()
