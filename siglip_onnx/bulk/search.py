"""Exact search: compare texts, images, vectors or weighted sums with every stored vector; return the best matches."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import DownloadError, JobError, ModelNotFoundError, OptionError
from ..head import Floats, compute_logits, l2_normalize, sigmoid
from ..hub.loading import load
from ..image.decode import ImageSource, as_images, is_single_image
from ..model import SigLIP
from ..system.files import make_absolute
from ..system.threads import MAX_THREADS, available_threads
from ..system.workers import in_batches, map_in_order
from .job import ERRORS, Job, open_job
from .listing import input_of, status_of
from .records import Row

_SHARDS_AT_ONCE = 16
_MAX_SCORE = 2.0  # of unit vectors; NaN and infinity in float16 look like numbers above 65,536
_UNIT_TOLERANCE = 1e-3  # of the length of a unit vector in float16 or float32
_STORED_TOLERANCE = 1e-2  # of the length of a stored vector that is not damaged
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


class Query(NamedTuple):
    """A unit vector f32 ``(D,)`` to search for, and whether it is that of one text: only then it has probabilities."""

    vector: Floats
    one_text: bool


def encode_query(model: SigLIP, terms: Sequence[Term], *, template: str | Sequence[str] = "{}") -> Query:
    """Return the weighted sum of the terms' embeddings, scaled to length 1.

    Raises:
        OptionError: there are no terms, or they cancel out.
        ImageError: an image cannot be read.
        TextError: a text cannot be tokenized.
    """
    texts = [term.text for term in terms if term.text is not None]
    text_embeddings = iter(model.encode_labels(texts, template=template) if texts else ())
    image_embeddings = iter(model.encode_images([term.image for term in terms if term.image is not None]))
    total = np.zeros(model.embedding_dim, np.float32)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        for term in terms:
            total += np.float32(term.weight) * next(image_embeddings if term.text is None else text_embeddings)
    if not np.isfinite(total).all() or np.linalg.norm(total) < 1e-6:
        raise OptionError(
            "The query is zero or not finite: it has no terms, they cancel out, or weights are too large; change its "
            "terms or weights."
        )
    if len(terms) == 1 and terms[0].weight > 0:
        return Query(total / np.float32(terms[0].weight), is_one_text(terms))
    return Query(l2_normalize(total[np.newaxis])[0], is_one_text(terms))


def is_one_text(terms: Sequence[Term]) -> bool:
    """Say whether a query is that of one text, so that its logits and probabilities are those of ``classify``."""
    return len(terms) == 1 and terms[0].text is not None and terms[0].weight > 0


class Hit(NamedTuple):
    """One result: ``similarity`` is the cosine with the query, ``probability`` the sigmoid of the logit.

    ``missing`` says that the file no longer exists, ``changed`` that it has another size or time than when it was
    embedded, ``truncated`` that its file ends early, and only a part of the image was embedded; ``duplicates`` are the
    paths of other files with the same bytes.
    Logit and probability are None if the query is an image or a sum, for which they would have no meaning.
    """

    path: str
    similarity: float
    logit: float | None
    probability: float | None
    missing: bool = False
    duplicates: tuple[str, ...] = ()
    changed: bool = False
    truncated: bool = False


class _MayBeMissing(Protocol):
    @property
    def missing(self) -> bool: ...


AnyHit = TypeVar("AnyHit", bound=_MayBeMissing)


class _Candidates(NamedTuple):
    """Shard and row of vectors, i64 ``(N,)`` each, and their scores f32 ``(N,)``."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: Floats


class Collection:
    """The vectors of a job, opened for search."""

    def __init__(self, job: Job, model: SigLIP | str | os.PathLike[str] | None = None) -> None:
        """Use the shards of a job that are done; ``num_unfinished`` counts the others.

        ``model`` embeds texts and images of queries; by default it is loaded by the name that the job recorded.
        """
        self.job = job
        self._model = model
        shards = job.shards()
        receipts = {shard: job.receipt(shard, read_files=False) for shard in shards}
        self._receipts = {shard: receipt for shard, receipt in receipts.items() if receipt is not None}
        self.shards = list(self._receipts)
        self.num_unfinished = len(shards) - len(self.shards)
        self.num_vectors = sum(receipt.num_vectors for receipt in self._receipts.values())

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

    @cached_property
    def model(self) -> SigLIP:
        """The model that embeds the queries, which is loaded at first use.

        Raises:
            JobError: the model has another embedding space.
            ModelNotFoundError, DownloadError: the recorded name is not that of a model that can be loaded.
        """
        facts, model = self.job.facts, self._model
        if not isinstance(model, SigLIP):
            try:
                model = load(
                    model or facts.name_model(),
                    variant=facts.variant,
                    background=facts.background,
                    max_num_patches=facts.max_num_patches,
                    fast_decode=facts.fast_decode,
                    offline=model is None,  # the folder may come from elsewhere: what it names is not downloaded
                )
            except (ModelNotFoundError, DownloadError) as error:
                raise type(error)(f"{error} Give the model of the vectors: open_collection(path, model=...)") from error
        self.check_model(model)
        return model

    @cached_property
    def vectors(self) -> NDArray[Any]:
        """All vectors as one array ``(N, D)`` in memory, float32 or float16, of length 1; their hashes are checked.

        Raises:
            JobError: stored vectors cannot be read, are damaged, hold NaN or infinity, or were changed since opening.
        """
        for shard in self.shards:
            if self.job.receipt(shard, read_files=True) is None:
                raise self._damaged(f"holds shard {shard}, whose files differ from its receipt")
        vectors = np.empty((self.num_vectors, self.job.facts.embedding_dim), self.job.facts.dtype)
        start = 0
        for shard in self.shards:  # one at a time: a shard that is mapped into memory keeps a file open
            stored = self.read_vectors(shard)
            vectors[start : start + len(stored)] = stored
            start += len(stored)
        self._check_same(self.shards)
        return vectors

    @cached_property
    def rows(self) -> list[Row]:
        """What is known of the image of each vector, in the order of ``vectors``.

        Raises:
            JobError: stored rows cannot be read.
        """
        rows = [row for shard in self.shards for row in self.read_rows(shard)]
        self._check_same(self.shards)
        return rows

    def read_vectors(self, shard: int) -> NDArray[Any]:
        """Return the vectors of a shard ``(N, D)``, as many as its receipt states; see :meth:`.Job.read_vectors`.

        Raises:
            JobError: they cannot be read, hold NaN or infinity, or are of another number.
        """
        vectors = self.job.read_vectors(shard)
        self._check_count(shard, len(vectors), "vectors")
        return vectors

    def read_rows(self, shard: int) -> list[Row]:
        """Return the rows that have a vector, in the order of :meth:`read_vectors`.

        Raises:
            JobError: they cannot be read, or are of another number than the shard's receipt states.
        """
        rows = [row for row in self.job.read_rows(shard) if row.row is not None]
        self._check_count(shard, len(rows), "rows of images")
        return rows

    def _check_same(self, shards: Iterable[int]) -> None:
        """Check that shards that were read are those that were opened, so that rows and vectors belong together."""
        if any(self.job.receipt(shard, read_files=False) != self._receipts[shard] for shard in shards):
            raise JobError(f"{self.job.path} was changed after it was opened. Open it again.")

    def _check_count(self, shard: int, count: int, name: str) -> None:
        expected = self._receipts[shard].num_vectors
        if count != expected:
            self._check_same([shard])
            raise self._damaged(f"holds {count:,} {name} in shard {shard}, expected {expected:,}")

    def _damaged(self, problem: str) -> JobError:
        return JobError(f"{self.job.path} {problem}. Run the embed command again; it rewrites damaged shards.")

    @property
    def paths(self) -> list[str]:
        """The path of the image of each vector, in the order of ``vectors``."""
        return [row.path for row in self.rows]

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.num_vectors

    def __repr__(self) -> str:
        """Return the folder, the number of vectors and their embedding space."""
        return f"Collection({str(self.job.path)!r}, {self.num_vectors} vectors of {self.job.facts.embedding_space})"

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is one query, although it is an iterable of str
        self, query: Query | ImageSource, k: int = 10, *, threads: int | None = None, fold_duplicates: bool = False
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        query: Iterable[Query | ImageSource],
        k: int = 10,
        *,
        threads: int | None = None,
        fold_duplicates: bool = False,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: Query | ImageSource | Iterable[Query | ImageSource],
        k: int = 10,
        *,
        threads: int | None = None,
        fold_duplicates: bool = False,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the ``k`` images nearest to a query, best first; every vector is compared.

        Args:
            query: a text, an image (a ``Path``, not a str), or a vector ``(D,)`` of floats. A vector counts as the
                embedding of one text if its length is 1; sums have another length, and are scaled. For an image's
                vector or a scaled sum, give ``Query(vector, one_text=False)``. Several queries, or an array
                ``(N, D)``, give one list each.
            k: number of results.
            threads: by default as many as the process may use.
            fold_duplicates: return one result for several files with the same bytes.

        Raises:
            OptionError: ``k`` or ``threads`` is not a number above 0, a query is of another type, or a vector is zero,
                not finite, or of another width.
            JobError: stored vectors cannot be read, or the model has another embedding space.
            ImageError, TextError: a query cannot be embedded.
        """
        if isinstance(k, bool) or not hasattr(k, "__index__") or (count := operator.index(k)) < 1:
            raise OptionError(f"k is {k!r}, expected a whole number above 0.")
        queries: list[Query | ImageSource]
        if isinstance(query, Query):
            single, queries = True, [query]
        elif _is_vector(query):
            single, queries = query.ndim < 2, list(np.atleast_2d(query))
        else:
            several: Any = query  # Query objects and images may be mixed
            single, queries = is_single_image(several), list(as_images(several))
        threads = available_threads() if threads is None else threads
        if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise OptionError(f"threads is {threads!r}, expected a number from 1 to {MAX_THREADS}.")
        encoded = [self._encode(each) for each in queries]
        answers = [self._search(each, count, threads, fold_duplicates=fold_duplicates) for each in encoded]
        return answers[0] if single else answers

    def _encode(self, query: Query | ImageSource) -> Query:
        """Return the unit vector f32 ``(D,)`` of a text, an image or a vector."""
        if isinstance(query, str):
            return Query(self.model.encode_texts([query])[0], one_text=True)
        if not isinstance(query, Query) and not _is_vector(query):
            if not is_single_image(query):
                raise OptionError(f"A query cannot be a {type(query).__name__}; give a text, an image or a vector.")
            return Query(self.model.encode_images(query)[0], one_text=False)
        vector, one_text = query if isinstance(query, Query) else (query, True)
        vector = vector.astype(np.float32)
        length = float(np.linalg.norm(vector))
        if vector.shape != (self.job.facts.embedding_dim,) or not np.isfinite(length) or not length > 0:
            raise OptionError(
                f"A query vector has shape {vector.shape} and length {length:g}, expected "
                f"({self.job.facts.embedding_dim},) and a finite length above 0."
            )
        if abs(length - 1) < _UNIT_TOLERANCE:
            return Query(vector, one_text)
        return Query(l2_normalize(vector[np.newaxis])[0], one_text=False)

    def _search(self, query: Query, count: int, threads: int, *, fold_duplicates: bool) -> list[Hit]:
        """Return the best results for a unit vector."""
        if not fold_duplicates:
            return [_look_for_file(hit, row) for hit, row in self._nearest(query, count, threads)[:count]]
        number = count
        while True:
            ranked = self._nearest(query, number, threads)
            groups = _group_by_content(ranked)
            # With one group more than needed, the members of the others are complete.
            if len(groups) > count or len(ranked) < number:
                return [_fold(group) for group in groups[:count]]
            number *= 4

    def _nearest(self, query: Query, count: int, threads: int) -> list[tuple[Hit, Row]]:
        """Return at least ``count`` images with their rows, if there are so many, best first."""
        search_shards = partial(self._search_shards, query=query.vector, count=count + _SPARE)
        groups = list(in_batches(self.shards, _SHARDS_AT_ONCE))
        candidates = map_in_order(search_shards, groups, threads)
        return self._rank(query, _best(candidates, count + _SPARE))

    def _rank(self, query: Query, candidates: _Candidates) -> list[tuple[Hit, Row]]:
        """Return the candidates in order, with scores that are computed again in full precision."""
        if not len(candidates.scores):
            return []
        shards = sorted(set(candidates.shards.tolist()))
        vectors = np.empty((len(candidates.rows), self.job.facts.embedding_dim), np.float32)
        for shard in shards:  # one at a time: a shard that is mapped into memory keeps a file open
            chosen = candidates.shards == shard
            vectors[chosen] = self.read_vectors(shard)[candidates.rows[chosen]]
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        if not (np.abs(lengths - 1) < _STORED_TOLERANCE).all():  # neither is NaN
            raise self._damaged("holds vectors whose length is not 1")
        facts = self.job.facts
        scale, bias = facts.logit_scale, facts.logit_bias
        logits = np.full(len(vectors), np.nan, np.float32)
        if scale is not None and bias is not None:
            logits = compute_logits(vectors, query.vector[np.newaxis], logit_scale=scale, logit_bias=bias)[:, 0]
        similarities = vectors.astype(np.float64) @ query.vector.astype(np.float64)
        order = np.lexsort((candidates.rows, candidates.shards, -similarities))
        rows_of_hits = self._rows(candidates.shards[order], candidates.rows[order])
        self._check_same(shards)
        probabilities = sigmoid(logits)
        return [
            (
                Hit(row.path, float(similarities[index]), float(logits[index]), float(probabilities[index]))
                if query.one_text
                else Hit(row.path, float(similarities[index]), None, None),
                row,
            )
            for row, index in zip(rows_of_hits, order, strict=True)
        ]

    def _search_shards(self, shards: Sequence[int], *, query: Floats, count: int) -> _Candidates:
        score, largest = make_scorer(np.dtype(self.job.facts.dtype), query), _MAX_SCORE * float(np.linalg.norm(query))
        candidates = []
        for shard in shards:
            vectors = self.job.layout.read(self.job.path, shard)
            self._check_count(shard, len(vectors), "vectors")
            # Scores show NaN and infinity as well as the vectors do, but for a fraction of the time.
            with np.errstate(all="ignore"):
                scores = score(vectors)
            if not (np.abs(scores) < largest).all():
                raise self.job.not_finite(shard)
            rows = _top(scores, count)
            candidates.append(_Candidates(np.full(len(rows), shard, np.int64), rows, scores[rows]))
        return _best(candidates, count)

    def _rows(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Row]:
        by_shard = {shard: self.job.find_rows(shard, rows[shards == shard].tolist()) for shard in set(shards.tolist())}
        return [by_shard[shard][row] for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]


def open_collection(path: str | os.PathLike[str], model: SigLIP | str | os.PathLike[str] | None = None) -> Collection:
    """Open a folder that ``siglip-onnx embed`` wrote, for search.

    Args:
        path: the folder.
        model: the model that made the vectors, or its name or folder, for queries of texts and images; by default it is
            loaded by the name that the folder recorded.

    Raises:
        JobError: it is not the folder of a job, or holds no vectors.
    """
    if isinstance(model, str | os.PathLike) and Path(model).is_dir():
        model = make_absolute(Path(model))
    collection = Collection(open_job(make_absolute(Path(path))), model)
    if not collection.num_vectors:
        raise JobError(
            f"{path} holds no vectors; run siglip-onnx embed again if it did not finish, otherwise see {ERRORS}, which "
            "says why its images have none."
        )
    return collection


def find_existing(find: Callable[[int], Sequence[AnyHit]], count: int) -> list[AnyHit]:
    """Return the best ``count`` results whose files still exist, of a function that returns the best N."""
    wanted = count
    while True:
        hits = find(wanted)
        kept = [hit for hit in hits if not hit.missing]
        if len(kept) >= count or len(hits) < wanted:
            return kept[:count]
        wanted *= 2


def _group_by_content(ranked: Sequence[tuple[Hit, Row]]) -> list[list[Hit]]:
    """Return the hits in groups of the same bytes, in the order of the best hit of each."""
    groups: dict[str, list[Hit]] = {}
    for hit, row in ranked:
        groups.setdefault(row.sha256 or hit.path, []).append(_look_for_file(hit, row))
    return list(groups.values())


def _fold(group: Sequence[Hit]) -> Hit:
    """Return one hit for several files with the same bytes, the first one that exists."""
    best = min(group, key=lambda hit: (hit.missing, hit.changed))
    others = (hit for hit in group if hit is not best and not hit.missing and not hit.changed)
    return best._replace(duplicates=() if best.missing else tuple(hit.path for hit in others))


def _look_for_file(hit: Hit, row: Row) -> Hit:
    hit = hit._replace(truncated=row.truncated)
    status = status_of(row.path)
    if status is None:
        return hit._replace(missing=True)
    return hit._replace(changed=row.size_bytes is not None and input_of(row.path, status) != row.input)


def _is_vector(query: object) -> TypeGuard[NDArray[Any]]:
    """Say whether a query is a vector or several, and not the pixels of an image, which are integers."""
    return isinstance(query, np.ndarray) and query.dtype.kind == "f"


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
