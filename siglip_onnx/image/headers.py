"""Read bytes of a file's header at a position, and refuse bombs."""

from __future__ import annotations

from typing import IO

from ..errors import ImageError

_FARTHEST = 1 << 62  # the largest position that a file can seek to


def read_at(file: IO[bytes], position: int, count: int) -> bytes:
    """Return up to ``count`` bytes from a position, none beyond the end of the file."""
    if position >= _FARTHEST:
        return b""
    file.seek(position)
    return file.read(count)


def bomb(name: str, what: str) -> ImageError:
    """Return the error of a file whose header promises far more work than its pixels are worth."""
    return ImageError(
        f"{name} has {what}, which is disproportionately expensive to decode; re-save it.", status="too_large"
    )
