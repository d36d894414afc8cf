"""What the results say in words: who is ahead in what, and where this engine is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from siglip_onnx.bench.schema import DECODE, END_TO_END, PREPROCESS, TEXT, VISION, Document, Row
from siglip_onnx.bench.statistics import ratio_of
from siglip_onnx.bench.tables import NEAR, describe_mode, start_memory_mb, start_seconds, three_digits

ENGINE = "siglip_onnx"
AHEAD = 1.15  # how far the vision tower is to be ahead of every peer that gives the same answer


def _median(stage: str) -> Callable[[Row], float]:
    return lambda row: row.summary(stage).median


COLUMNS: Mapping[str, Callable[[Row], float]] = {
    "vision": _median(VISION),
    "text": _median(TEXT),
    "end to end": _median(END_TO_END),
    "start": start_seconds,
    "memory": start_memory_mb,
    "size on disk": lambda row: row.size_bytes,
}


def main_rows(document: Document) -> list[Row]:
    """Return the rows of the inputs that every configuration was measured on."""
    return [row for row in document.rows if row.inputs == document.rows[0].inputs]


def is_ours(row: Row) -> bool:
    """Say whether a row is this engine's."""
    return row.name.startswith(ENGINE)


def verdicts(document: Document) -> list[str]:
    """Return who is ahead in each column, among those whose worst cosine counts as the same answer, and the rest."""
    rows = [row for row in main_rows(document) if row.fidelity.cosine_min >= NEAR]
    ours, peers = [row for row in rows if is_ours(row)], [row for row in rows if not is_ours(row)]
    first, losses = [], []
    for column, value in COLUMNS.items():
        best, rival = min(ours, key=value), min(peers, key=value)
        if value(best) <= value(rival):
            first.append(f"{column} ({best.name.removeprefix(ENGINE).strip()}, {value(rival) / value(best):.2f} times "
                         f"ahead of {rival.name})")  # fmt: skip
        else:
            losses.append(f"{rival.name} is ahead of this engine in {column}, {value(best) / value(rival):.2f} times.")
    said = "; ".join(first) or "nothing"
    return [
        f"Of all configurations with every cosine at least {NEAR}, this engine is first in {said}.",
        *losses,
        *small_leads(rows),
        *faster_but_farther(document, ours),
        *nearer_but_slower(ours, peers),
    ]


def small_leads(rows: Sequence[Row]) -> list[str]:
    """Name peers that this engine's fastest vision tower is not as far ahead of as is aimed at, with the interval."""
    ours = min((row for row in rows if is_ours(row)), key=COLUMNS["vision"])
    missed = []
    for row in rows:
        value = COLUMNS["vision"](row) / COLUMNS["vision"](ours)
        if not is_ours(row) and value < AHEAD:
            lead = ratio_of(row.stages[VISION], ours.stages[VISION])
            missed.append((value, lead.low, lead.high, row.name))
    if not missed:
        return [f"The vision tower is at least {AHEAD} times ahead of every peer that gives the same answer."]
    said = ", ".join(f"{name} {value:.2f} ({low:.2f} - {high:.2f})" for value, low, high, name in sorted(missed))
    return [
        f"The aim, a vision tower {AHEAD} times ahead of every peer that gives the same answer, is missed; times of "
        f"{ours.name}, with 95 % intervals: {said}."
    ]


def faster_but_farther(document: Document, ours: Sequence[Row]) -> list[str]:
    """Name peers whose vision tower is faster, but gives another answer."""
    fastest = min(map(COLUMNS["vision"], ours))
    return [
        f"{row.name} runs the vision tower in {three_digits(row.summary(VISION).median)} ms, faster than this engine "
        f"({three_digits(fastest)}), with a worst cosine of {row.fidelity.vision_cosine_min:.4f}."
        for row in main_rows(document)
        if not is_ours(row) and row.fidelity.cosine_min < NEAR and row.summary(VISION).median < fastest
    ]


def nearer_but_slower(ours: Sequence[Row], peers: Sequence[Row]) -> list[str]:
    """Name peers of fewer bits than fp32 that lose less than this engine's fastest variant."""
    best = min(ours, key=COLUMNS["vision"])
    rounding = 1e-6
    nearer = [row for row in peers if best.fidelity.cosine_min < row.fidelity.cosine_min < 1 - rounding]
    said = ", ".join(f"{row.name} ({row.fidelity.cosine_min:.5f})" for row in nearer)
    return [f"Nearer to PyTorch fp32 than {best.name} ({best.fidelity.cosine_min:.5f}): {said}."] if nearer else []


def describe_commands(document: Document) -> list[str]:
    """Return what whole commands take, what an export costs, workers give and fast decode saves."""
    commands = document.processes
    classify = commands["classify, one picture and two texts"]
    cached = commands["classify, texts known from the cache"]
    text = commands["embed one text (text tower alone)"]
    export = commands.get("export to fp32 and int8")
    lines = [
        f"The whole `classify` command with int8, one picture and two texts, took {_cost(classify)}; with the texts "
        f"known from the cache {_cost(cached)}; `embed` of one text {_cost(text)}."
    ]
    if export:
        lines.append(f"Exporting fp32 and int8 took {_cost(export)}.")
    return [*lines, *describe_workers(document), *describe_fast_decode(document), *describe_limit(document)]


def _cost(found: Mapping[str, float]) -> str:
    return f"{found['median_seconds']:.2f} s and {found['peak_memory_mb']:.0f} MB"


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
        f"{three_digits(times[0])} ms; the worst cosine is {fast.fidelity.vision_cosine_min:.5f} instead of "
        f"{exact.fidelity.vision_cosine_min:.5f}."
    ]


def describe_limit(document: Document) -> list[str]:
    """Return the share of the hardware's arithmetic that each tower uses, and that onnxruntime's kernels can."""
    row = document.row(f"{ENGINE} int8", document.rows[0].inputs)
    if not document.limit or row is None:
        return []
    shares = ", ".join(
        f"{tower} {found['int8_ms'] / row.summary(tower).min:.0%} (limit {three_digits(found['int8_ms'])} ms)"
        for tower, found in document.limit["towers"].items()
    )
    instructions, product = (document.limit[key].get("int8") for key in ("instructions", "large_gemm"))
    kernels = f"; one large int8 product in onnxruntime {product / instructions:.0%}" if instructions else ""
    return [
        f"Share of what this CPU's arithmetic allows, fastest int8 run: {shares}{kernels}. See "
        "[docs/benchmarks.md](docs/benchmarks.md#the-limit)."
    ]
