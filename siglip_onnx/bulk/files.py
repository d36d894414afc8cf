"""Read an input's bytes; never blocks on pipes, sockets or devices."""

from __future__ import annotations

import os
import stat

from ..errors import ImageError
from ..options import ImageLimits

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def read_file(path: str, limits: ImageLimits) -> bytes:
    """Read a whole file at once, so that the bytes that are hashed are the bytes that are decoded.

    Raises:
        ImageError: the path is not a regular file, cannot be read, or has more bytes than allowed.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
                raise ImageError(f"{path} is a {kind}; expected an image file.", status="io_error")
            limits.check_bytes(status.st_size, path)
            content = file.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        problem = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} cannot be read: {problem}.", status="io_error") from error
    limits.check_bytes(len(content), path)
    return content
