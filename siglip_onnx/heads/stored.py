"""Find the images of the highest score among stored vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..bulk.search import Collection, Query
from ..errors import DataError
from ..head import sigmoid
from .score import NONE, SOFTMAX, ScoreHead


class Scored(NamedTuple):
    """An image of a collection and its score; the other fields are those of :class:`.Hit`."""

    path: str
    score: float
    missing: bool = False
    changed: bool = False
    truncated: bool = False


def search_by_head(
    collection: Collection, head: ScoreHead, label: str | None, count: int, *, threads: int | None = None
) -> list[Scored]:
    """Return the ``count`` images of the highest score; every stored vector is scored.

    Raises:
        DataError: the head does not suit the vectors, has no such label, or ends in a softmax over several labels.
        JobError: stored vectors cannot be read.
    """
    facts = collection.job.facts
    head.check(facts.embedding_dim, facts.embedding_space)
    column = head.column(label)
    if head.activation == SOFTMAX and len(head.labels) > 1:
        raise DataError(
            "The head ends in a softmax, by whose shares images cannot be compared; use one with a sigmoid."
        )
    length = float(np.linalg.norm(head.weights[column].astype(np.float64)))
    if length == 0:
        raise DataError(f"The weights of {head.labels[column]!r} are zero, so all images have the same score.")
    direction = (head.weights[column] / length).astype(np.float32)
    hits = collection.search(Query(direction, one_text=False), count, threads=threads)
    products = np.array([hit.similarity for hit in hits], np.float64) * length
    scores = (products + head.biases[column]).astype(np.float32)
    scores = sigmoid(scores) if head.activation != NONE else scores  # which keeps the order
    return [
        Scored(hit.path, float(score), hit.missing, hit.changed, hit.truncated)
        for hit, score in zip(hits, scores, strict=True)
    ]
