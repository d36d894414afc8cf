"""Every error that the package raises on purpose; each message says what was found, what was expected, what to do."""


class SiglipOnnxError(Exception):
    """The root of all errors of this package. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ImageError(SiglipOnnxError):
    """A picture that cannot be read, is empty, too large, or of a type that is not supported.

    ``status`` says which, in one of the words of ``STATUSES``.
    """

    STATUSES = ("decode_error", "too_large", "unsupported", "io_error", "truncated")

    def __init__(self, message: str = "", *, status: str = "decode_error") -> None:
        super().__init__(message)
        self.status = status


class TextError(SiglipOnnxError):
    """A text that cannot be tokenized, or a list of texts that is empty where one is needed."""


class JobError(SiglipOnnxError):
    """A bulk job's folder that belongs to another job, is damaged, in use, or cannot be written."""


class ProviderError(SiglipOnnxError):
    """An execution provider that was asked for and is not available."""


class MissingExtraError(SiglipOnnxError):
    """A package of an optional extra is not installed."""


class ModelNotFoundError(SiglipOnnxError):
    """No model of that name, or no such folder."""

    exit_code = 4


class BundleError(SiglipOnnxError):
    """A model folder that is no bundle, is incomplete, damaged, or of a newer format."""

    exit_code = 4


class CacheError(SiglipOnnxError):
    """The cache folder cannot be read or written."""

    exit_code = 4


class DownloadError(SiglipOnnxError):
    """A model that cannot be fetched: offline, not found, interrupted, or other bytes than promised."""

    exit_code = 4


class AccuracyError(SiglipOnnxError):
    """An exported variant that is too far from fp32."""


class CheckpointError(SiglipOnnxError):
    """A checkpoint that cannot be exported: another family, or missing or misshapen parts."""

    exit_code = 4


class BenchmarkError(SiglipOnnxError):
    """A benchmark that cannot be run, read or compared, or whose outputs are wrong."""
