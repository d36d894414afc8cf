"""Results as tables, for a terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..errors import BenchmarkError, printable
from .machine import describe_briefly, describe_busy
from .schema import END_TO_END, STAGES, TEXT, VISION, Document, Row
from .statistics import Summary

Table = tuple[Sequence[str], list[list[str]]]
SAME_ANSWER = 0.999  # the smallest cosine of answers that count as the same


def rows_of(document: Document, inputs: str | None) -> list[Row]:
    """Return the rows of one kind of inputs, or all."""
    return [row for row in document.rows if inputs in (None, row.inputs)]


def speed_table(document: Document, inputs: str | None = None) -> Table:
    """Return a row per configuration: times, fidelity, start, memory, size."""
    header = (
        "", "vision ms", "text ms", "end to end ms", "cosine min, vision / text", "logit error max", "start s",
        "memory MB", "on disk MB",
    )  # fmt: skip
    return header, [
        [
            row.name,
            *(
                describe_summary(row.summary(stage), mark=document.baseline is None)
                for stage in (VISION, TEXT, END_TO_END)
            ),
            f"{row.fidelity.vision_cosine_min:.5f} / {row.fidelity.text_cosine_min:.5f}",
            f"{row.fidelity.logit_error_max:.2g}",
            f"{start_seconds(row):.2f}",
            f"{start_memory_mb(row):.0f}",
            f"{row.size_bytes / 1e6:.0f}",
        ]
        for row in rows_of(document, inputs)
    ]


def stage_table(document: Document, inputs: str | None = None) -> Table:
    """Return the medians of every stage, in milliseconds."""
    rows = rows_of(document, inputs)
    return ("median ms", *STAGES), [
        [row.name, *(format_measurement(row.summary(stage).median) for stage in STAGES)] for row in rows
    ]


def start_table(document: Document, inputs: str | None = None) -> Table:
    """Return the steps of a process before its first answer: medians, and the largest memory."""
    lines = []
    for row in rows_of(document, inputs):
        steps = ([getattr(start, step) for start in row.starts] for step in ("import_s", "load_s", "first_answer_s"))
        lines.append([row.name, *(f"{statistics.median(step):.2f}" for step in steps), f"{start_memory_mb(row):.0f}"])
    return ("seconds", "import", "load", "process start to first answer", "peak memory MB"), lines


def throughput_table(document: Document) -> Table:
    """Return images per second, decoding included: a row per configuration, a column per mode."""
    modes = sorted({rate.mode for rate in document.throughput})
    names = dict.fromkeys(rate.name for rate in document.throughput)
    rates = {(rate.name, rate.mode): rate for rate in document.throughput}
    lines = []
    for name in names:
        cells = [rates.get((name, mode)) for mode in modes]
        worst = min(rate.vision_cosine_min for rate in cells if rate is not None)
        lines.append([name, *("" if rate is None else describe_rate(rate.summary) for rate in cells), f"{worst:.5f}"])
    return ("images per second", *map(str, modes), "cosine min"), lines


def describe_summary(summary: Summary, *, mark: bool) -> str:
    """Return ``min / median / p90``; with ``mark``, a stage whose rounds differ is marked."""
    values = " / ".join(format_measurement(value) for value in (summary.min, summary.median, summary.p90))
    return f"{values} unstable" if mark and summary.unstable else values


def describe_rate(summary: Summary) -> str:
    """Return the median rate; it is marked if the rounds differ."""
    return f"{format_measurement(summary.median)}{' unstable' if summary.unstable else ''}"


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
    return "\n".join(f"| {' | '.join(map(printable, line))} |" for line in lines)


def document_markdown(document: Document) -> str:
    """Return every table of a document, and the notes that a reader needs to judge them."""
    parts = []
    for inputs in dict.fromkeys(row.inputs for row in document.rows):
        parts += [f"## {printable(inputs)}", markdown(speed_table(document, inputs))]
        parts += [markdown(stage_table(document, inputs)), markdown(start_table(document, inputs))]
    if document.throughput:
        parts.append(markdown(throughput_table(document)))
    parts += [printable(f"* {name}: {reason}") for name, reason in document.absent.items()]
    return "\n\n".join([f"# {printable(document.model)}", *parts, explain(document)])


def explain(document: Document) -> str:
    """Return the notes below the tables."""
    try:
        rounds, machine = document.settings["rounds"], describe_briefly(document.machine) + describe_quiet(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(
            f"The settings or the machine of the results are incomplete or damaged ({error!r}). Measure again."
        ) from error
    references = sorted({row.fidelity.reference for row in document.rows})
    unstable = '; "unstable" marks rounds whose medians differ by more than 10 %' if document.baseline is None else ""
    return printable(
        f"Single calls on distinct images, {rounds} rounds in alternating order, a fresh process for each. "
        f"Three values are min / median / p90{unstable}. Cosines "
        f"and logit errors compare the timed answers with {' and '.join(references)}. Start: from the start of the "
        f"process to the first answer of both towers; memory: its peak by then. {machine}"
        f"{document.settings.get('quiet', '')}"
    )


def describe_quiet(document: Document) -> str:
    """Return a sentence on other programs during the measurement, or on the load before it where that is not known."""
    rows = [*document.rows, *([document.baseline] if document.baseline else [])]
    cpus = [cpus for row in rows for cpus in row.other_cpus if cpus is not None]
    if not cpus:
        return describe_busy(document.machine)
    return f" Other programs used {statistics.median(cpus):.2f} CPUs in the median process, {max(cpus):.2f} at most."


def format_measurement(value: float) -> str:
    """Return a positive value with about three significant digits: ``0.0312``, ``4.15``, ``43.1``, ``335``."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.{2 if value < 10 else 1}f}"
