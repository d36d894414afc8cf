"""Choose among the published checkpoints by accuracy, language, memory and time; loads neither numpy nor a model.

The costs are those of int8 on one machine, from ``benchmarks/models.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OptionError, SiglipOnnxError
from ..system.json_files import read_json_object
from .published import ENGLISH, PAPER, PUBLISHED, PublishedCheckpoint

COSTS = Path(__file__).with_name("published_costs.json")  # written by benchmarks/report.py
MULTILINGUAL = "multilingual"
_CODE = re.compile("[a-z]{2,3}(-[a-z0-9]{2,8})*")


class Cost(NamedTuple):
    """What a checkpoint costs in int8 on the measured machine.

    Milliseconds of one image and of one text, images per second on all cores, megabytes of memory with both towers
    loaded, and of disk. ``estimated``: a tower of this shape was not measured.
    """

    image_ms: float
    text_ms: float
    images_per_second: float
    memory_mb: int
    disk_mb: int
    estimated: bool


class Limits(NamedTuple):
    """What a checkpoint may cost at most; None if it does not matter."""

    memory_mb: int | None = None
    image_ms: int | None = None

    def excess(self, cost: Cost) -> float:
        """Return the largest cost relative to its limit; at most 1 if the checkpoint fits."""
        ratios = [cost.memory_mb / self.memory_mb] if self.memory_mb else []
        return max([*ratios, cost.image_ms / self.image_ms] if self.image_ms else ratios, default=0.0)

    def __str__(self) -> str:
        parts = [f"{self.memory_mb} MB of memory"] if self.memory_mb else []
        return " and ".join([*parts, f"{self.image_ms} ms for one image"] if self.image_ms else parts)


class Recommendation(NamedTuple):
    """A checkpoint that fits, its accuracy in percent, None if it has no comparable one, and its cost."""

    checkpoint: PublishedCheckpoint
    accuracy: float | None
    cost: Cost


def measured_on() -> str:
    """Return the machine that the costs were measured on."""
    return str(_read_costs()["measured_on"])


def is_multilingual(languages: Sequence[str]) -> bool:
    """Say whether languages, codes such as ``en`` and ``ja`` or the word ``multilingual``, are more than English.

    Raises:
        OptionError: one is not such a code.
    """
    for language in languages:
        if language != MULTILINGUAL and not _CODE.fullmatch(language.lower()):
            raise OptionError(
                f"The language {language!r} is not known, expected {MULTILINGUAL!r} or codes such as en or ja."
            )
    return any(language.lower().split("-")[0] != "en" for language in languages)


def recommend(limits: Limits, *, multilingual: bool) -> list[Recommendation]:
    """Return the checkpoints that fit, the most accurate first; of equally accurate ones the faster first.

    Accuracy is zero-shot top-1 on ImageNet, or, for ``multilingual``, recall@1 of text to image on XM3600 in the
    protocol of the SigLIP 2 paper; checkpoints without this figure come last. Those without any figure, of medical
    images, are left out.

    Raises:
        SiglipOnnxError: none fits; the message names the nearest.
    """
    candidates = [
        Recommendation(checkpoint, _accuracy(checkpoint, multilingual), cost_of(checkpoint))
        for checkpoint in PUBLISHED
        if checkpoint.accuracy is not None and not (multilingual and checkpoint.vocab_size == ENGLISH)
    ]
    fitting = [candidate for candidate in candidates if limits.excess(candidate.cost) <= 1]
    if not fitting:
        nearest = min(candidates, key=lambda candidate: limits.excess(candidate.cost))
        raise SiglipOnnxError(
            f"No checkpoint fits {limits}. The nearest is {nearest.checkpoint.name} with {nearest.cost.memory_mb} MB "
            f"and {nearest.cost.image_ms:g} ms, {'estimated from' if nearest.cost.estimated else 'according to'} "
            f"measurements on {measured_on()}. Allow more, or try it on your machine."
        )
    return sorted(fitting, key=lambda each: (-(each.accuracy or 0.0), each.cost.image_ms, each.cost.memory_mb))


def cost_of(checkpoint: PublishedCheckpoint) -> Cost:
    """Return the cost of a published checkpoint."""
    return Cost(**_read_costs()["checkpoints"][checkpoint.name])


def _accuracy(checkpoint: PublishedCheckpoint, multilingual: bool) -> float | None:
    accuracy = checkpoint.accuracy
    if accuracy is None or not multilingual:
        return accuracy and accuracy.imagenet
    return accuracy.xm3600_text_to_image if accuracy.protocol == PAPER else None


@cache
def _read_costs() -> dict[str, Any]:
    return read_json_object(COSTS)
