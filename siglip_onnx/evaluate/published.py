"""Published scores of checkpoints, by benchmark and protocol; ``published.json`` has them, in percent, with sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PUBLISHED_SCORES = Path(__file__).with_name("published.json")
BENCHMARKS = ("imagenet", "coco", "flickr30k", "xm3600")
TOLERANCE = 0.3  # percentage points, within one protocol


@dataclass(frozen=True)
class PublishedScore:
    """A score that was published for a checkpoint, in percent."""

    metric: str
    value: float
    source: str


def find_published(checkpoint: str, benchmark: str, protocol: str) -> dict[str, PublishedScore]:
    """Return the published scores of a checkpoint by metric; the name may have an owner: ``google/...``.

    Metrics: ``top1``; ``text_to_image`` and ``image_to_text``, recall at 1, after a language and a colon where the
    score is that of one: ``ja:text_to_image``.
    """
    document = json.loads(PUBLISHED_SCORES.read_text(encoding="utf-8"))
    name = checkpoint.rpartition("/")[2].lower()
    scores: Mapping[str, float] = document["scores"].get(name, {}).get(benchmark, {}).get(protocol, {})
    source = document["sources"].get(protocol, "")
    return {metric: PublishedScore(metric, value, source) for metric, value in scores.items()}
