"""The errors of this package; each message says what was found, what was expected, and what to do.

Where an error is also one of Python's own kinds, a ValueError, OSError or FileNotFoundError, it inherits from that too.
"""

from __future__ import annotations

import re

# Control characters, which end a line or begin an escape of the terminal; changes of direction, which reorder what
# follows; and surrogates, which stand for bytes of a name that are not Unicode.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return a text that is safe to print in one line, whatever names of files and models it holds.

    A byte that is not Unicode, an escape and a line feed look as in Python: ``\xe9``, ``\x1b``, ``\n``.
    """
    return _UNSAFE.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, without its full stop."""
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")


class SiglipOnnxError(Exception):
    """The base class of all errors of this package; ``exit_code`` is the exit code of the command line.

    Messages are safe to print: see :func:`printable`.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(argument) if isinstance(argument, str) else argument for argument in arguments))


class OptionError(SiglipOnnxError, ValueError):
    """An argument has a value that is not possible, or that contradicts another argument."""


class ImageError(SiglipOnnxError, ValueError):
    """An image that cannot be read, is empty, too large, or of an unsupported type.

    ``status`` is one of ``STATUSES``. ``index`` is the position of the image among several, None for a single one.
    """

    STATUSES = ("decode_error", "too_large", "unsupported", "io_error", "truncated")

    def __init__(self, message: str = "", *, status: str = "decode_error", index: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.index = index

    def at(self, index: int) -> ImageError:
        """Return the same error, of the same class, whose message begins with the position among several images."""
        return type(self)(f"images[{index}]: {self}", status=self.status, index=index)


class ImageFileError(ImageError, OSError):
    """The file of an image cannot be opened or read; its ``status`` is ``"io_error"``."""

    def __init__(self, message: str = "", *, status: str = "io_error", index: int | None = None) -> None:
        super().__init__(message, status=status, index=index)


class ImageNotFoundError(ImageFileError, FileNotFoundError):
    """The file of an image does not exist."""


class TextError(SiglipOnnxError, ValueError):
    """A text that cannot be tokenized, or an empty list of texts."""


class DataError(SiglipOnnxError):
    """A set of labelled or captioned images cannot be read, or does not suit the task."""


class JobError(SiglipOnnxError):
    """The folder of a bulk job belongs to another job, is damaged, in use, or cannot be written."""


class JobNotFoundError(JobError, FileNotFoundError):
    """A folder that should hold the vectors of a bulk job holds none."""


class ProviderError(SiglipOnnxError, ValueError):
    """A requested execution provider is not available."""


class MissingExtraError(SiglipOnnxError):
    """A package of an optional extra is not installed."""


class ModelNotFoundError(SiglipOnnxError, FileNotFoundError):
    """There is no model or folder of that name."""

    exit_code = 4


class BundleError(SiglipOnnxError):
    """A model folder is not a bundle, or is incomplete, damaged, or of a newer format."""

    exit_code = 4


class CacheError(SiglipOnnxError, OSError):
    """The cache folder cannot be read or written."""

    exit_code = 4


class DownloadError(SiglipOnnxError, OSError):
    """A model cannot be downloaded: offline, not found, interrupted, or a failed checksum."""

    exit_code = 4


class UploadError(SiglipOnnxError, OSError):
    """A model cannot be uploaded: offline, not permitted, or interrupted."""

    exit_code = 4


class AccuracyError(SiglipOnnxError):
    """An exported variant is too far from fp32."""


class CheckpointError(SiglipOnnxError):
    """A checkpoint cannot be exported: another family, or parts that are missing or have another shape."""

    exit_code = 4


class BenchmarkError(SiglipOnnxError):
    """A benchmark cannot be run, read or compared, or its outputs are wrong."""
