"""Warnings that are logged at most once a minute, because clients can cause any number of them."""

from __future__ import annotations

import logging
import time

_INTERVAL_S = 60.0


class LogLimit:
    """A logger of repeated warnings."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next_at: dict[str, float] = {}

    def warning(self, message: str) -> None:
        """Log a message unless it was logged within the last minute."""
        now = time.monotonic()
        if now >= self._next_at.get(message, 0):
            self._next_at[message] = now + _INTERVAL_S
            self._logger.warning(message)
