"""From an input's path to its bytes and its picture; what is no file is never waited for."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass

from PIL import Image

from ..errors import ImageError
from ..image import load_image

MAX_BYTES = 512_000_000
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True)
class Content:
    """A file's bytes and their hash: what is decoded is what was hashed, whoever writes to the file meanwhile."""

    content: bytes
    sha256: str


@dataclass(frozen=True)
class Picture:
    rgb: Image.Image
    truncated: bool


class PictureReader:
    """Reads and decodes one picture after the other."""

    def __init__(self, *, allow_truncated: bool = False) -> None:
        """With ``allow_truncated`` a file that ends early is taken as far as it goes."""
        self._allow_truncated = allow_truncated

    def read(self, path: str) -> Content:
        """Read a file as a whole.

        Raises:
            ImageError: it is no file, cannot be read, or is too large.
        """
        try:
            # Without O_NONBLOCK, opening a pipe waits for a writer.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
                raise ImageError(f"It is a {kind}; expected a picture file.", status="io_error")
            if found.st_size > MAX_BYTES:
                raise ImageError(f"It has {found.st_size:,} bytes, more than the {MAX_BYTES:,} allowed.", status="too_large")
            try:
                content = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise _unreadable(error) from error
        return Content(content, hashlib.sha256(content).hexdigest())

    def decode(self, found: Content) -> Picture:
        """Decode a picture to RGB.

        Raises:
            ImageError: it is no readable picture.
        """
        return Picture(load_image(found.content), False)


def _unreadable(error: Exception) -> ImageError:
    return ImageError(f"It cannot be read: {getattr(error, 'strerror', None) or error}.", status="io_error")
