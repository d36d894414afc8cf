"""Read bytes of a file's header at a position, and refuse bombs."""

from __future__ import annotations

import io
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


def is_cut_webp(file: IO[bytes]) -> bool:
    """Say whether a file is a WebP that ends before its stated length."""
    header = read_at(file, 0, 12)
    is_webp = header[:4] == b"RIFF" and header[8:] == b"WEBP"
    return is_webp and 8 + int.from_bytes(header[4:8], "little") > file.seek(0, io.SEEK_END)
