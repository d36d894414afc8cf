"""Exceptions of the package; each message says what was found, what was expected, and what to do."""


class SiglipOnnxError(Exception):
    """The root of all errors of this package. ``exit_code`` is the exit code of the command line."""

    exit_code = 1


class ImageError(SiglipOnnxError):
    """An image that cannot be read, is empty, too large, truncated, or of a type that is not supported.

    ``status`` is one of ``STATUSES``.
    """

    STATUSES = ("decode_error", "too_large", "unsupported", "io_error", "truncated")

    def __init__(self, message: str = "", *, status: str = "decode_error") -> None:
        super().__init__(message)
        self.status = status


class TextError(SiglipOnnxError):
    """A text that cannot be tokenized, or an empty list where texts are required."""


class JobError(SiglipOnnxError):
    """A bulk job's folder that belongs to another job, is damaged, in use, or cannot be written."""


class ProviderError(SiglipOnnxError):
    """A requested execution provider that is not available, or a wrong number of threads."""


class MissingExtraError(SiglipOnnxError):
    """A package of an optional extra is not installed."""


class ModelNotFoundError(SiglipOnnxError):
    """No model of that name, or no such folder."""

    exit_code = 4


class BundleError(SiglipOnnxError):
    """A model folder that is not a bundle, is incomplete or damaged, or has a newer format."""

    exit_code = 4


class CacheError(SiglipOnnxError):
    """The cache folder cannot be read or written."""

    exit_code = 4


class DownloadError(SiglipOnnxError):
    """A model that cannot be downloaded: offline, not found, interrupted, or failing its checksum."""

    exit_code = 4


class AccuracyError(SiglipOnnxError):
    """An exported variant that is too far from fp32."""


class CheckpointError(SiglipOnnxError):
    """A checkpoint that cannot be exported: another family, or missing or misshapen parts."""

    exit_code = 4


class BenchmarkError(SiglipOnnxError):
    """A benchmark that cannot be run, read or compared, or whose outputs are wrong."""
