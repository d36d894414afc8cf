"""Lead and loss: ratios of neighboring measurements, and this engine's best rows against the best faithful peers.

Each row was measured next to the baseline, this engine's int8 variant, in every round. The ratio of a row to it is that
of the fastest calls of both, and the ratio of two rows is that of their ratios in the same round. A row is faithful if
no embedding has a cosine below ``FLOOR`` to PyTorch fp32.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

from siglip_onnx.bench.quiet import QUIET_CPUS
from siglip_onnx.bench.run import engine_name
from siglip_onnx.bench.schema import END_TO_END, TEXT, VISION, Document, Row
from siglip_onnx.bench.statistics import Ratio, median_ratio
from siglip_onnx.bench.tables import SAME_ANSWER, Table, format_measurement
from siglip_onnx.errors import BenchmarkError

START, MEMORY = "start", "peak memory"
TARGETS = {VISION: 1.10, TEXT: 1.10, END_TO_END: 1.10, START: 2.0, MEMORY: 1.8}
UNITS = {START: "s", MEMORY: "MB"}
FLOOR = SAME_ANSWER
STEADY = 0.10  # the widest interval of a stable ratio, as a share of it
MIN_ROUNDS = 3  # before a ratio can be called stable
_OURS = engine_name("").strip()


@dataclass(frozen=True)
class Lead:
    """This engine's best row, the best faithful peer, and how many times as much the peer takes."""

    quantity: str
    ours: Row
    peer: Row
    ratio: Ratio

    @property
    def verdict(self) -> str:
        """Whether the target is met; by the median only, where the interval reaches below it."""
        target = TARGETS[self.quantity]
        if self.ratio.value < target:
            return "missed"
        return "met" if self.ratio.low >= target else "met, but the interval reaches below"


def main_rows(document: Document) -> list[Row]:
    """Return the rows of the inputs that every configuration was measured on."""
    return [row for row in document.rows if row.inputs == document.rows[0].inputs]


def values_of(row: Row, quantity: str) -> list[float]:
    """Return a quantity of each round: the fastest call of a stage in ms, the start in s, or the peak memory in MB."""
    if quantity == START:
        return [start.first_answer_s for start in row.starts]
    if quantity == MEMORY:
        return [start.peak_memory_mb for start in row.starts]
    return [min(samples) for samples in row.stages[quantity]]


def ratios_of(document: Document, row: Row, quantity: str) -> list[float]:
    """Return each round's ratio to the baseline that was measured next to it.

    Raises:
        BenchmarkError: the document has no baseline beside this row.
    """
    values, beside = values_of(row, quantity), _beside(document, row, quantity)
    return [value / other for value, other in zip(values, beside, strict=True)]


def _beside(document: Document, row: Row, quantity: str) -> list[float]:
    """Return the baseline's values next to those of a row."""
    if document.baseline is None or len(row.baseline_rounds) != len(row.starts):
        raise BenchmarkError(f"{row.name} was measured without a baseline beside it. Measure again.")
    values = values_of(document.baseline, quantity)
    return [values[number] for number in row.baseline_rounds]


def best_row(document: Document, quantity: str, *, ours: bool) -> Row:
    """Return the best faithful row of this engine, or of the peers, by the median of its ratios.

    Raises:
        BenchmarkError: there is none.
    """
    rows = [
        row
        for row in main_rows(document)
        if row.name.startswith(_OURS) == ours and row.fidelity.cosine_min >= FLOOR
    ]  # fmt: skip
    if not rows:
        raise BenchmarkError(f"No row of {'this engine' if ours else 'a peer'} has a worst cosine of {FLOOR}.")
    compared = values_of if document.baseline is None else partial(ratios_of, document)
    return min(rows, key=lambda row: statistics.median(compared(row, quantity)))


def find_lead(document: Document, quantity: str) -> Lead:
    """Return this engine's lead in a quantity; below 1 it is a loss."""
    ours, peer = (best_row(document, quantity, ours=side) for side in (True, False))
    pairs = zip(ratios_of(document, peer, quantity), ratios_of(document, ours, quantity), strict=False)
    return Lead(quantity, ours, peer, median_ratio([theirs / own for theirs, own in pairs]))


def lead_table(document: Document) -> Table:
    """Return the lead in each quantity, its target, and whether that is met."""
    lines = []
    for quantity, target in TARGETS.items():
        lead = find_lead(document, quantity)
        both = (f"{row.name}, {_typical(row, quantity)}" for row in (lead.ours, lead.peer))
        lines.append([quantity, *both, f"**{format_ratio(lead.ratio)}**", f"{target:.2f}", lead.verdict])
    return ("", "our best", "best faithful peer", "ratio", "target", ""), lines


def explain_losses(document: Document) -> list[str]:
    """Return for each missed target what the results say of its reason."""
    leads = [find_lead(document, quantity) for quantity in TARGETS]
    return [f"* {lead.quantity}: {_reason(document, lead)}" for lead in leads if lead.verdict == "missed"]


def _reason(document: Document, lead: Lead) -> str:
    ours, peer, quantity = lead.ours, lead.peer, lead.quantity
    if quantity == START:
        steps = (
            [statistics.median(getattr(start, step) for start in row.starts) for step in ("import_s", "load_s")]
            for row in (ours, peer)
        )
        (our_import, our_load), (its_import, its_load) = steps
        return (
            f"{ours.name} imports for {our_import:.2f} s and loads for {our_load:.2f} s, {peer.name} for "
            f"{its_import:.2f} s and {its_load:.2f} s."
        )
    if quantity == MEMORY:
        sizes = (f"{row.size_bytes / 1e6:.0f} MB of {row.name}" for row in (ours, peer))
        return f"both have the files that they run in memory, {' and '.join(sizes)}."
    if quantity == END_TO_END:
        share = sum(ours.summary(stage).min for stage in (VISION, TEXT)) / ours.summary(END_TO_END).min
        return f"the towers are {share:.0%} of it, so that it is decided by them."
    own_ms, its_ms, limit_ms = (
        ours.summary(quantity).min, peer.summary(quantity).min, document.limit["towers"][quantity]["int8_ms"],
    )  # fmt: skip
    return (
        f"{ours.name} takes {format_measurement(own_ms)} ms, {peer.name} {format_measurement(its_ms)} ms. The limit of "
        f"int8 arithmetic, below, is {format_measurement(limit_ms)} ms, with which the ratio would be "
        f"{its_ms / limit_ms:.2f}."
    )


def ratio_table(document: Document) -> Table:
    """Return each row's ratios to the baseline, the fastest vision tower first, and why some are not stable."""
    rows = sorted(main_rows(document), key=lambda row: statistics.median(ratios_of(document, row, VISION)))
    lines = []
    for row in rows:
        ratios = {quantity: median_ratio(ratios_of(document, row, quantity)) for quantity in TARGETS}
        lines.append([row.name, *map(format_ratio, ratios.values()), explain_unsteady(document, row, ratios)])
    return ("", *TARGETS, "stable"), lines


def explain_unsteady(document: Document, row: Row, ratios: dict[str, Ratio]) -> str:
    """Return "yes", or which ratio has the widest interval, and why."""
    width = {quantity: (ratio.high - ratio.low) / ratio.value for quantity, ratio in ratios.items()}
    widest = max(width, key=lambda quantity: width[quantity])
    if len(row.starts) < MIN_ROUNDS:
        return f"not known after {len(row.starts)} rounds"
    if width[widest] <= STEADY:
        return "yes"
    beside = () if document.baseline is None else [document.baseline.other_cpus[each] for each in row.baseline_rounds]
    used = max((cpus for cpus in (*row.other_cpus, *beside) if cpus is not None), default=0.0)
    if used >= QUIET_CPUS:
        return f"no, {widest}: other programs used up to {used:.2f} CPUs"
    own, other = _spread(values_of(row, widest)), _spread(_beside(document, row, widest))
    if own >= other:
        return f"no, {widest}: its rounds differ by {own:.0%}"
    return f"no, {widest}: the baseline beside it differs by {other:.0%}"


def describe_unfaithful(document: Document) -> str:
    """Return a sentence on rows that are faster than the fastest faithful one, and how far off they are."""
    rows = main_rows(document)
    fastest = min(row.summary(VISION).min for row in rows if row.fidelity.cosine_min >= FLOOR)
    left_out = [
        f"{row.name}, {format_measurement(row.summary(VISION).min)} ms, worst cosine {row.fidelity.cosine_min:.4f}"
        for row in rows
        if row.fidelity.cosine_min < FLOOR and row.summary(VISION).min < fastest
    ]
    return f" Faster, but not as faithful: {'; '.join(left_out)}." if left_out else ""


def format_ratio(ratio: Ratio) -> str:
    """Return a ratio and its interval."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} - {ratio.high:.2f})"


def _typical(row: Row, quantity: str) -> str:
    return f"{format_measurement(statistics.median(values_of(row, quantity)))} {UNITS.get(quantity, 'ms')}"


def _spread(values: list[float]) -> float:
    """Return by which share the largest value is above the smallest."""
    return max(values) / min(values) - 1
