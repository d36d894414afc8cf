"""Keeps Pillow's warnings from the caller while this package decodes, without touching what the host filters."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_decoding = threading.local()


class _WhileDecoding:
    """Stands for a pattern in a warning filter: it matches in threads that decode for us, and nowhere else.

    ``warnings.catch_warnings`` changes the filters of all threads, and so cannot be used by a library that decodes in
    many. A filter's patterns are asked by their ``match`` alone, so one that looks at its thread is enough.
    """

    def match(self, _text: str) -> bool:
        return getattr(_decoding, "depth", 0) > 0


_FILTER: Any = ("ignore", None, Warning, _WhileDecoding(), 0)


@contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """Ignore warnings raised in this thread meanwhile: what matters of a picture is raised, logged or returned."""
    if _FILTER not in warnings.filters:  # a host that restores filters takes it away; it is inert elsewhere
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    _decoding.depth = getattr(_decoding, "depth", 0) + 1
    try:
        yield
    finally:
        _decoding.depth -= 1
