"""Dot products of one query with many stored vectors, block by block."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..head import Floats

# A full shard at once: in smaller blocks, threads would wait more for each other than for memory.
_BLOCK_BYTES = 2 * 1024 * 1024
# Where a float16's sign, exponent and fraction come to lie in a float32 after an arithmetic shift by 3.
_SIGN_EXPONENT_FRACTION = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_BIAS = np.float32(2.0**112)  # the float32 exponent counts from 127, the float16 one from 15


def make_scorer(vectors_dtype: np.dtype[Any], query: Floats) -> Callable[[NDArray[Any]], Floats]:
    """Return what takes vectors ``(N, D)`` of that type and gives their dot products with the query, f32 ``(N,)``.

    A scorer owns its buffer: make one per thread.
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
            # einsum, for BLAS would bring threads of its own.
            np.einsum("nd,d->n", vectors[rows].astype(np.float32, copy=False), self._query, out=scores[rows])
        return scores


class _HalfScorer:
    """Takes pairs of float16 as one int32 and moves their bits where a float32 has them.

    That is exact and five times as fast as numpy's cast. The exponents come out too small by a constant, which is
    made good in the query. Each pair's second number is in the upper half, so that the query is split the same way.
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
