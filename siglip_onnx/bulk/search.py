"""Exact search: every stored vector is compared with the query, and the best are named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError
from ..head import Floats, compute_logits, sigmoid
from ..model import SigLIP
from ..system.threads import available_threads
from ..system.workers import in_batches, map_in_order
from .job import Job, open_job
from .scores import make_scorer

_SHARDS_AT_ONCE = 16
_SPARE = 16  # candidates beyond those asked for, so that rounding to float32 cannot lose one


class Hit(NamedTuple):
    """One found picture: ``similarity`` is the cosine with the query, ``probability`` the sigmoid of the logit."""

    path: str
    similarity: float
    logit: float
    probability: float


class Candidates(NamedTuple):
    """Places of vectors: i64 ``(N,)`` each, and f32 scores."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: Floats


class Collection:
    """The vectors of a job, opened for search."""

    def __init__(self, job: Job) -> None:
        """Take the shards of a job that are done; the others are counted in ``num_unfinished``."""
        self.job = job
        shards = job.shards()
        receipts = {shard: job.receipt(shard, read_files=False) for shard in shards}
        self.shards = [shard for shard, receipt in receipts.items() if receipt is not None]
        self.num_unfinished = len(shards) - len(self.shards)
        self.num_vectors = sum(receipt.counts.get("ok", 0) for receipt in receipts.values() if receipt is not None)

    def check_model(self, model: SigLIP) -> None:
        """Refuse a model whose vectors are of another space.

        Raises:
            JobError: they are.
        """
        facts = self.job.facts
        if model.embedding_space != facts.embedding_space:
            raise JobError(
                f"{self.job.path} holds vectors of the embedding space {facts.embedding_space} ({facts.model_name}, "
                f"variant {facts.variant}), but the model makes those of {model.embedding_space} "
                f"({model.bundle.manifest.model_name}, variant {model.variant}); they cannot be compared. Give the "
                "same --model, --variant and --max-num-patches as to embed."
            )

    def search(self, query: Floats, count: int, *, threads: int | None = None) -> list[Hit]:
        """Return the ``count`` pictures nearest to a unit vector f32 ``(D,)``, best first, by comparing with all.

        Raises:
            JobError: stored vectors cannot be read.
        """
        find = partial(self._best_of, query=query, count=count + _SPARE)
        groups = list(in_batches(self.shards, _SHARDS_AT_ONCE))
        found = list(map_in_order(find, groups, threads or available_threads()))
        return self.rank(query, _best(found, count + _SPARE), count)

    def rank(self, query: Floats, candidates: Candidates, count: int) -> list[Hit]:
        """Return the best of some candidates, their scores computed anew with full precision."""
        if not len(candidates.scores):
            return []
        stored = {shard: self.job.read_vectors(shard) for shard in set(candidates.shards.tolist())}
        places = zip(candidates.shards.tolist(), candidates.rows.tolist(), strict=True)
        vectors = np.array([stored[shard][row] for shard, row in places]).astype(np.float32)
        facts = self.job.facts
        scale, bias = facts.logit_scale, facts.logit_bias
        logits = compute_logits(vectors, query[np.newaxis], logit_scale=scale, logit_bias=bias)[:, 0]
        similarities = vectors.astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((candidates.rows, candidates.shards, -similarities))[:count]
        paths = self._paths(candidates.shards[order], candidates.rows[order])
        probabilities = sigmoid(logits)
        return [
            Hit(path, float(similarities[place]), float(logits[place]), float(probabilities[place]))
            for path, place in zip(paths, order, strict=True)
        ]

    def _best_of(self, shards: Sequence[int], *, query: Floats, count: int) -> Candidates:
        score = make_scorer(np.dtype(self.job.facts.dtype), query)
        found = []
        for shard in shards:
            scores = score(self.job.read_vectors(shard))
            rows = _top(scores, count)
            found.append(Candidates(np.full(len(rows), shard, np.int64), rows, scores[rows]))
        return _best(found, count)

    def _paths(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[str]:
        names = {shard: self.job.find_paths(shard, rows[shards == shard].tolist()) for shard in set(shards.tolist())}
        return [names[shard][row] for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]


def open_collection(path: Path) -> Collection:
    """Open the folder of a job for search.

    Raises:
        JobError: it is none, or holds no vectors yet.
    """
    collection = Collection(open_job(path))
    if not collection.num_vectors:
        raise JobError(f"{path} holds no vectors yet; run siglip-onnx embed again, which goes on where it stopped.")
    return collection


def _best(found: Iterable[Candidates], count: int) -> Candidates:
    together = list(found)
    if not together:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    shards, rows, scores = (np.concatenate(column) for column in zip(*together, strict=True))
    top = _top(scores, count)
    return Candidates(shards[top], rows[top], scores[top])


def _top(scores: Floats, count: int) -> NDArray[np.int64]:
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.argpartition(scores, -count)[-count:]
