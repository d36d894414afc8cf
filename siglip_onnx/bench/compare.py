"""Compare two documents: ratios of the times of each stage, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BenchmarkError
from .schema import END_TO_END, TEXT, VISION, Document
from .statistics import Ratio, ratio_of

COMPARED = (VISION, TEXT, END_TO_END)


@dataclass(frozen=True)
class Change:
    """One stage of one configuration: time after over time before, and the worst cosine on both sides."""

    name: str
    inputs: str
    stage: str
    ratio: Ratio
    cosine_before: float
    cosine_after: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 1, so that chance does not explain the change."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def slower_than(self, allowed: float) -> bool:
        """Say whether it is slower with 95 % confidence, and by more than the share ``allowed``, 0.1 for a tenth."""
        return self.ratio.low > 1 and self.ratio.value > 1 + allowed


def compare_documents(before: Document, after: Document, stages: Sequence[str] = COMPARED) -> list[Change]:
    """Return the change of every configuration and stage that both documents have.

    Raises:
        BenchmarkError: they share no configuration, or were measured with different numbers of threads.
    """
    changes = []
    for old in before.rows:
        new = after.row(old.name, old.inputs)
        if new is None:
            continue
        if new.threads != old.threads:
            raise BenchmarkError(
                f"{old.name} ran on {old.threads} threads before and on {new.threads} after; expected equal numbers. "
                "Measure both with the same --threads."
            )
        changes += [
            Change(old.name, old.inputs, stage, ratio_of(new.stages[stage], old.stages[stage]),
                   old.fidelity.cosine_min, new.fidelity.cosine_min)
            for stage in stages
            if stage in old.stages and stage in new.stages
        ]  # fmt: skip
    if not changes:
        raise BenchmarkError("The two results share no configuration; compare runs of the same variants.")
    return changes
