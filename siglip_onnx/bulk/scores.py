"""Dot products of one query with many stored vectors, block by block."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..head import Floats

# About a full shard at once: with smaller blocks, threads contend for the interpreter lock.
_BLOCK_BYTES = 2 * 1024 * 1024
# The bits of a float32 that hold a float16's sign, exponent and fraction after an arithmetic shift right by 3.
_SIGN_EXPONENT_FRACTION = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_BIAS = np.float32(2.0**112)  # the float32 exponent counts from 127, the float16 one from 15


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
