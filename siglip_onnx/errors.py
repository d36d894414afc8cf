"""The errors of this package; each message says what was found, what was expected, and what to do."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, without its full stop."""
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")


class SiglipOnnxError(Exception):
    """The base class of all errors of this package; ``exit_code`` is the exit code of the command line."""

    exit_code = 1


class ImageError(SiglipOnnxError):
    """An image that cannot be read, is empty, too large, or of an unsupported type.

    ``status`` is one of ``STATUSES``.
    """

    STATUSES = ("decode_error", "too_large", "unsupported", "io_error", "truncated")

    def __init__(self, message: str = "", *, status: str = "decode_error") -> None:
        super().__init__(message)
        self.status = status


class TextError(SiglipOnnxError):
    """A text that cannot be tokenized, or an empty list of texts."""


class JobError(SiglipOnnxError):
    """The folder of a bulk job belongs to another job, is damaged, in use, or cannot be written."""


class ProviderError(SiglipOnnxError):
    """A requested execution provider is not available."""


class MissingExtraError(SiglipOnnxError):
    """A package of an optional extra is not installed."""


class ModelNotFoundError(SiglipOnnxError):
    """There is no model or folder of that name."""

    exit_code = 4


class BundleError(SiglipOnnxError):
    """A model folder is not a bundle, or is incomplete, damaged, or of a newer format."""

    exit_code = 4


class CacheError(SiglipOnnxError):
    """The cache folder cannot be read or written."""

    exit_code = 4


class DownloadError(SiglipOnnxError):
    """A model cannot be downloaded: offline, not found, interrupted, or a failed checksum."""

    exit_code = 4


class AccuracyError(SiglipOnnxError):
    """An exported variant is too far from fp32."""


class CheckpointError(SiglipOnnxError):
    """A checkpoint cannot be exported: another family, or parts that are missing or have another shape."""

    exit_code = 4


class BenchmarkError(SiglipOnnxError):
    """A benchmark cannot be run, read or compared, or its outputs are wrong."""
