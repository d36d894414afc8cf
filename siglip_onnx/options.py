"""Options as frozen objects: how a model runs, how large an image may be. No numpy, so that ``--help`` stays fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError, SiglipOnnxError
from .system.threads import MAX_THREADS

MOST_PIXELS = 178_956_970  # what Pillow itself opens at most, unless its own limit was changed
MAX_NUM_PATCHES = 4096  # four times what NaFlex was trained with; attention grows with the square


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image; there is always a limit.

    ``max_pixels`` is width times height, ``max_side`` the longer of both, ``max_bytes`` the size of the file. The
    defaults are Pillow's own bound of pixels, the longest side of a JPEG, and half a gigabyte.
    """

    max_pixels: int = 89_478_485
    max_side: int = 65_535
    max_bytes: int = 512_000_000

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            SiglipOnnxError: a limit is not a positive int, or has more pixels than Pillow opens.
        """
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SiglipOnnxError(f"{name} is {value!r}, expected a whole number above 0; there is always a limit.")
        if self.max_pixels > MOST_PIXELS:
            raise SiglipOnnxError(f"max_pixels is {self.max_pixels:,}, expected at most {MOST_PIXELS:,}, as Pillow.")

    def check_bytes(self, size_bytes: int, name: str) -> None:
        """Check the size of a file.

        Raises:
            ImageError: it has more bytes than allowed.
        """
        if size_bytes > self.max_bytes:
            raise ImageError(
                f"{name} has {size_bytes:,} bytes, more than the {self.max_bytes:,} allowed; resize it, or raise "
                "ImageLimits.max_bytes.",
                status="too_large",
            )

    def check_size(self, width: int, height: int, name: str) -> None:
        """Check width and height in pixels.

        Raises:
            ImageError: there are none, or more than allowed.
        """
        if width <= 0 or height <= 0:
            raise ImageError(f"{name} is {width}x{height} pixels; expected at least 1x1.")
        if width * height > self.max_pixels:
            raise ImageError(
                f"{name} has {width}x{height} pixels, more than the {self.max_pixels:,} allowed; resize it, or raise "
                "the limit with --max-megapixels.",
                status="too_large",
            )
        if max(width, height) > self.max_side:
            raise ImageError(
                f"{name} is {width}x{height} pixels, and a side may have at most {self.max_side:,}; resize it, or "
                "raise ImageLimits.max_side.",
                status="too_large",
            )


SERVER_LIMITS = ImageLimits(max_pixels=40_000_000, max_side=16_384, max_bytes=20_000_000)
"""Stricter limits, for images from untrusted users."""
DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model runs; the arguments of :func:`siglip_onnx.load` of the same names.

    ``exact_int8`` forces onnxruntime's exact int8 kernels on or off; None takes them where the fast ones saturate.
    """

    variant: str | None = None
    providers: Sequence[str] | None = None
    threads: int | None = None
    workers: int = 1
    fast_decode: bool = False
    max_num_patches: int | None = None
    label_cache: Path | None = None
    image_limits: ImageLimits = DEFAULT_LIMITS
    allow_truncated: bool = False
    exact_int8: bool | None = None

    def __post_init__(self) -> None:
        """Check workers and threads.

        Raises:
            SiglipOnnxError: ``workers`` is not a number from 1 to 512, or several workers have several threads each.
        """
        if not isinstance(self.workers, int) or not 1 <= self.workers <= MAX_THREADS:
            raise SiglipOnnxError(f"workers is {self.workers!r}, expected a number from 1 to {MAX_THREADS}.")
        if self.workers > 1 and self.threads not in (None, 1):
            raise SiglipOnnxError(
                f"{self.workers} workers of {self.threads} threads each were requested, but each worker is "
                "single-threaded. Pass either workers or threads, not both."
            )

    @property
    def session_threads(self) -> int | None:
        """Intra-op threads of a session: 1 if there are several workers, None for all that the process may use."""
        return self.threads if self.workers == 1 else 1


DEFAULTS = RuntimeOptions()
