"""Exact search: compare a query of weighted texts and images with every stored vector; return the best matches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError, SiglipOnnxError
from ..head import Floats, compute_logits, l2_normalize, sigmoid
from ..image.decode import ImageSource
from ..model import SigLIP
from ..system.threads import available_threads
from ..system.workers import in_batches, map_in_order
from .job import Job, open_job

_SHARDS_AT_ONCE = 16
_SPARE = 16  # extra candidates, so that rounding to float32 cannot lose a result
# About a full shard at once: with smaller blocks, threads contend for the interpreter lock.
_BLOCK_BYTES = 2 * 1024 * 1024
# The bits of a float32 that hold a float16's sign, exponent and fraction after an arithmetic shift right by 3.
_SIGN_EXPONENT_FRACTION = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_BIAS = np.float32(2.0**112)  # the float32 exponent counts from 127, the float16 one from 15


class Term(NamedTuple):
    """A text or an image with its weight; a negative weight searches for its opposite."""

    weight: float
    text: str | None = None
    image: ImageSource | None = None


def encode_query(model: SigLIP, terms: Sequence[Term], *, template: str | Sequence[str] = "{}") -> Floats:
    """Return the unit vector f32 ``(D,)`` of the weighted sum of the terms' embeddings.

    Raises:
        SiglipOnnxError: there are no terms, or they cancel out.
        ImageError: an image cannot be read.
        TextError: a text cannot be tokenized.
    """
    texts = [term.text for term in terms if term.text is not None]
    text_embeddings = iter(model.encode_labels(texts, template=template))
    image_embeddings = iter(model.encode_images([term.image for term in terms if term.image is not None]))
    total = np.zeros(model.embedding_dim, np.float32)
    for term in terms:
        total += np.float32(term.weight) * next(image_embeddings if term.text is None else text_embeddings)
    if not np.isfinite(total).all() or np.linalg.norm(total) < 1e-6:
        raise SiglipOnnxError("The query is zero: it has no terms, or they cancel out; change its terms or weights.")
    if len(terms) == 1 and terms[0].weight > 0:
        total /= np.float32(terms[0].weight)
        return total
    unit: Floats = l2_normalize(total[np.newaxis])[0]
    return unit


def is_one_text(terms: Sequence[Term]) -> bool:
    """Say whether a query is that of one text, so that its logits and probabilities are those of ``classify``."""
    return len(terms) == 1 and terms[0].text is not None and terms[0].weight > 0


class Hit(NamedTuple):
    """One result: ``similarity`` is the cosine with the query, ``probability`` the sigmoid of the logit.

    Logit and probability have no meaning if the query is an image or a sum; see :func:`is_one_text`.
    """

    path: str
    similarity: float
    logit: float
    probability: float


class _Candidates(NamedTuple):
    """Shard and row of vectors, i64 ``(N,)`` each, and their scores f32 ``(N,)``."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: Floats


class Collection:
    """The vectors of a job, opened for search."""

    def __init__(self, job: Job) -> None:
        """Use the shards of a job that are done; ``num_unfinished`` counts the others."""
        self.job = job
        shards = job.shards()
        receipts = {shard: job.receipt(shard, read_files=False) for shard in shards}
        self.shards = [shard for shard, receipt in receipts.items() if receipt is not None]
        self.num_unfinished = len(shards) - len(self.shards)
        self.num_vectors = sum(receipt.counts.get("ok", 0) for receipt in receipts.values() if receipt is not None)

    def check_model(self, model: SigLIP) -> None:
        """Check that a model has the embedding space of the stored vectors.

        Raises:
            JobError: the embedding spaces differ.
        """
        facts = self.job.facts
        if model.embedding_space != facts.embedding_space:
            raise JobError(
                f"{self.job.path} holds vectors of the embedding space {facts.embedding_space} ({facts.model_name}, "
                f"variant {facts.variant}), but the model has the embedding space {model.embedding_space} "
                f"({model.bundle.manifest.model_name}, variant {model.variant}); they cannot be compared. Use the "
                "--model, --variant and --max-num-patches that were used to embed."
            )

    def search(self, query: Floats, count: int, *, threads: int | None = None) -> list[Hit]:
        """Return the ``count`` images nearest to a unit vector f32 ``(D,)``, best first; every vector is compared.

        Raises:
            JobError: stored vectors cannot be read.
        """
        search_shards = partial(self._search_shards, query=query, count=count + _SPARE)
        groups = list(in_batches(self.shards, _SHARDS_AT_ONCE))
        candidates = map_in_order(search_shards, groups, threads or available_threads())
        return self._rank(query, _best(candidates, count + _SPARE), count)

    def _rank(self, query: Floats, candidates: _Candidates, count: int) -> list[Hit]:
        """Return the best candidates, whose scores are computed again in full precision."""
        if not len(candidates.scores):
            return []
        stored = {shard: self.job.read_vectors(shard) for shard in set(candidates.shards.tolist())}
        rows = zip(candidates.shards.tolist(), candidates.rows.tolist(), strict=True)
        vectors = np.array([stored[shard][row] for shard, row in rows]).astype(np.float32)
        facts = self.job.facts
        scale, bias = facts.logit_scale, facts.logit_bias
        logits = compute_logits(vectors, query[np.newaxis], logit_scale=scale, logit_bias=bias)[:, 0]
        similarities = vectors.astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((candidates.rows, candidates.shards, -similarities))[:count]
        paths = self._paths(candidates.shards[order], candidates.rows[order])
        probabilities = sigmoid(logits)
        return [
            Hit(path, float(similarities[index]), float(logits[index]), float(probabilities[index]))
            for path, index in zip(paths, order, strict=True)
        ]

    def _search_shards(self, shards: Sequence[int], *, query: Floats, count: int) -> _Candidates:
        score = make_scorer(np.dtype(self.job.facts.dtype), query)
        candidates = []
        for shard in shards:
            scores = score(self.job.read_vectors(shard))
            rows = _top(scores, count)
            candidates.append(_Candidates(np.full(len(rows), shard, np.int64), rows, scores[rows]))
        return _best(candidates, count)

    def _paths(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[str]:
        paths = {shard: self.job.find_paths(shard, rows[shards == shard].tolist()) for shard in set(shards.tolist())}
        return [paths[shard][row] for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]


def open_collection(path: Path) -> Collection:
    """Open the folder of a job for search.

    Raises:
        JobError: it is not the folder of a job, or holds no vectors yet.
    """
    collection = Collection(open_job(path))
    if not collection.num_vectors:
        raise JobError(f"{path} holds no vectors yet; run siglip-onnx embed again, which resumes the job.")
    return collection


def _best(groups: Iterable[_Candidates], count: int) -> _Candidates:
    candidates = list(groups)
    if not candidates:
        return _Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    shards, rows, scores = (np.concatenate(column) for column in zip(*candidates, strict=True))
    top = _top(scores, count)
    return _Candidates(shards[top], rows[top], scores[top])


def _top(scores: Floats, count: int) -> NDArray[np.int64]:
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.argpartition(scores, -count)[-count:]


def make_scorer(vectors_dtype: np.dtype[Any], query: Floats) -> Callable[[NDArray[Any]], Floats]:
    """Return a function from vectors ``(N, D)`` of that type to their dot products with the query, f32 ``(N,)``.

    A scorer owns its buffer: create one per thread.
    """
    if vectors_dtype == np.float16 and len(query) % 2 == 0 and sys.byteorder == "little":
        return _HalfScorer(query)
    return _Scorer(query)


class _Scorer:
    def __init__(self, query: Floats) -> None:
        self._query = query
        self._rows = max(1, _BLOCK_BYTES // query.nbytes)

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        scores = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), self._rows):
            rows = slice(start, start + self._rows)
            # einsum, because BLAS would start threads of its own.
            np.einsum("nd,d->n", vectors[rows].astype(np.float32, copy=False), self._query, out=scores[rows])
        return scores


class _HalfScorer:
    """Scores float16 vectors without numpy's cast to float32, with which a search takes three times as long.

    Each pair of float16 numbers is read as one int32, in which the second number is the upper half. Shifting moves
    sign, exponent and fraction to the bits where a float32 has them. The result is exact, except that every number is
    too small by the constant factor ``_HALF_BIAS``, because the two formats count exponents from different values; the
    query is multiplied by that factor instead. Upper and lower halves are scored separately, each with its half of
    the query.
    """

    def __init__(self, query: Floats) -> None:
        scaled = query * _HALF_BIAS
        self._lower, self._upper = np.ascontiguousarray(scaled[0::2]), np.ascontiguousarray(scaled[1::2])
        self._rows = max(1, _BLOCK_BYTES // self._lower.nbytes)
        self._bits = np.empty((self._rows, len(self._lower)), np.int32)

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        pairs = np.ascontiguousarray(vectors).view(np.int32)
        scores = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), self._rows):
            rows = slice(start, start + self._rows)
            scores[rows] = self._score(pairs[rows])
        return scores

    def _score(self, pairs: NDArray[np.int32]) -> Floats:
        bits = self._bits[: len(pairs)]
        np.right_shift(pairs, 3, out=bits)
        np.bitwise_and(bits, _SIGN_EXPONENT_FRACTION, out=bits)
        upper = np.einsum("nd,d->n", bits.view(np.float32), self._upper)
        np.left_shift(pairs, 16, out=bits)
        np.right_shift(bits, 3, out=bits)
        np.bitwise_and(bits, _SIGN_EXPONENT_FRACTION, out=bits)
        scores: Floats = upper + np.einsum("nd,d->n", bits.view(np.float32), self._lower)
        return scores
