"""Results as tables: cells for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from .machine import describe_briefly
from .schema import END_TO_END, STAGES, TEXT, VISION, Document, Row
from .statistics import Summary

Table = tuple[Sequence[str], list[list[str]]]
NEAR = 0.999  # the smallest cosine of answers that count as the same
_CSV = ("inputs", "name", "stage", "round", "sample", "milliseconds", "vision_cosine_min", "text_cosine_min",
        "logit_error_max", "reference")  # fmt: skip


def speed_table(document: Document, inputs: str | None = None) -> Table:
    """Return a row per configuration: times, fidelity, start, memory, size."""
    header = (
        "", "vision ms", "text ms", "end to end ms", "cosine min, vision / text", "logit error max", "start s",
        "memory MB", "on disk MB",
    )  # fmt: skip
    rows = [row for row in document.rows if inputs in (None, row.inputs)]
    return header, [speed_cells(row) for row in rows]


def speed_cells(row: Row) -> list[str]:
    """Return one line of :func:`speed_table`: min / median / p90, unstable ones marked."""
    fidelity = row.fidelity
    return [
        row.name,
        *(describe_summary(row.summary(stage)) for stage in (VISION, TEXT, END_TO_END)),
        f"{fidelity.vision_cosine_min:.5f} / {fidelity.text_cosine_min:.5f}",
        f"{fidelity.logit_error_max:.2g}",
        f"{start_seconds(row):.2f}",
        f"{start_memory_mb(row):.0f}",
        f"{row.size_bytes / 1e6:.0f}",
    ]


def stage_table(document: Document, inputs: str | None = None) -> Table:
    """Return the medians of every stage, in milliseconds."""
    rows = [row for row in document.rows if inputs in (None, row.inputs)]
    lines = [[row.name, *(three_digits(row.summary(stage).median) for stage in STAGES)] for row in rows]
    return ("median ms", *STAGES), lines


def start_table(document: Document, inputs: str | None = None) -> Table:
    """Return what a process does before its first answer: medians, and the largest memory."""
    rows = [row for row in document.rows if inputs in (None, row.inputs)]
    lines = [
        [
            row.name,
            *(
                f"{statistics.median(getattr(start, part) for start in row.starts):.2f}"
                for part in ("import_s", "load_s", "first_answer_s")
            ),
            f"{start_memory_mb(row):.0f}",
        ]
        for row in rows
    ]
    return ("seconds", "import", "load", "process start to first answer", "peak memory MB"), lines


def throughput_table(document: Document) -> Table:
    """Return pictures per second, decoding included."""
    modes = sorted({(one.workers, one.threads, one.batch) for one in document.throughput})
    names = list(dict.fromkeys(one.name for one in document.throughput))
    found = {(one.name, one.workers, one.threads, one.batch): one for one in document.throughput}
    lines = []
    for name in names:
        cells = [found.get((name, *mode)) for mode in modes]
        worst = min(one.vision_cosine_min for one in cells if one is not None)
        lines.append([name, *("" if one is None else describe_rate(one.summary) for one in cells), f"{worst:.5f}"])
    return ("pictures per second", *(describe_mode(*mode) for mode in modes), "cosine min"), lines


def describe_mode(workers: int, threads: int, batch: int) -> str:
    """Return a mode in words."""
    together = f", {batch} together" if batch > 1 else ""
    if workers > 1:
        return f"{workers} workers of {count(threads, 'thread')}{together}"
    return f"{count(threads, 'thread')}{together}"


def describe_summary(summary: Summary) -> str:
    """Return ``min / median / p90``; a stage whose rounds disagree is marked."""
    values = " / ".join(three_digits(value) for value in (summary.min, summary.median, summary.p90))
    return f"{values} unstable" if summary.unstable else values


def describe_rate(summary: Summary) -> str:
    """Return the median rate; one whose rounds disagree is marked."""
    return f"{three_digits(summary.median)}{' unstable' if summary.unstable else ''}"


def start_seconds(row: Row) -> float:
    """Return the median seconds from the start of a process to its first answer."""
    return statistics.median(start.first_answer_s for start in row.starts)


def start_memory_mb(row: Row) -> float:
    """Return the most memory a process had by its first answer of both towers."""
    return max(start.peak_memory_mb for start in row.starts)


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    header, rows = table
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document_markdown(document: Document) -> str:
    """Return every table of a document, and what a reader must know to judge them."""
    parts = []
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## {inputs}", markdown(speed_table(document, inputs))]
        parts += [markdown(stage_table(document, inputs)), markdown(start_table(document, inputs))]
    if document.throughput:
        parts.append(markdown(throughput_table(document)))
    parts += [f"* {name}: {reason}" for name, reason in document.absent.items()]
    return "\n\n".join([f"# {document.model}", *parts, explain(document)])


def explain(document: Document) -> str:
    """Return the foot of the tables."""
    settings = document.settings
    references = sorted({row.fidelity.reference for row in document.rows})
    return (
        f"Single calls on distinct pictures, {settings['rounds']} rounds in alternating order, a fresh process for "
        'each; "unstable" says that rounds differ by more than 10 %. Three values are min / median / p90. Cosines and '
        f"logit errors are to {' and '.join(references)}, of the answers given while they were timed. Start: process "
        "start to the first answer of both towers; memory: its peak by then. "
        f"{describe_briefly(dict(document.machine))}"
    )


def to_csv(document: Document) -> str:
    """Return every sample, with its configuration's fidelity beside it."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(_CSV)
    for row in document.rows:
        fidelity = (row.fidelity.vision_cosine_min, row.fidelity.text_cosine_min, row.fidelity.logit_error_max,
                    row.fidelity.reference)  # fmt: skip
        writer.writerows(
            (row.inputs, row.name, stage, turn + 1, number + 1, ms, *fidelity)
            for stage, rounds in row.stages.items()
            for turn, samples in enumerate(rounds)
            for number, ms in enumerate(samples)
        )
    return lines.getvalue()


def three_digits(value: float) -> str:
    """Return a positive value with about three significant digits: ``0.0312``, ``4.15``, ``43.1``, ``335``."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.{2 if value < 10 else 1}f}"


def count(number: int, thing: str) -> str:
    """Return ``1 thread`` or ``2 threads``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
