"""The time that the images of one request may take to decode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RequestError


class DecodingTime:
    """The seconds that the images of one request have taken to decode, and those that they may take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._used_s = limit_s, 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add the time of the block, in which one image is decoded or refused.

        Raises:
            RequestError: the images before it took all the time.
        """
        if self._used_s > self._limit_s:
            raise RequestError(
                422, "limit_exceeded", f"The images before this one took more than the {self._limit_s:g} seconds that "
                "the images of one request may take to decode. Send it in another request, or smaller images.",
            )  # fmt: skip
        started = time.perf_counter()
        try:
            yield
        finally:
            self._used_s += time.perf_counter() - started
