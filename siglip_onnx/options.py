"""Frozen options: how a model runs, and how large an image may be. Imports no numpy, so that ``--help`` stays fast."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError, OptionError, ProviderError
from .system.files import make_absolute
from .system.threads import MAX_THREADS

Provider = str | tuple[str, Mapping[str, str]]  # an execution provider: its name, or a pair of name and options
MOST_PIXELS = 1_000_000_000  # three gigabytes of RGB
REDUCED_SCALE = 4  # the file of an image that is decoded at a reduced scale may have this many times the pixels
WHITE, DROP = "white", "drop"  # backgrounds of transparent images; "drop" is not a color: it ignores transparency
MAX_NUM_PATCHES = 4096  # four times what NaFlex was trained with; attention grows with the square


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image, which cannot be switched off.

    Attributes:
        max_pixels: width times height; by default the number from which Pillow warns of a decompression bomb. After a
            fast decode, those of the reduced image; its file may have four times as many.
        max_side: the longer of width and height; by default the longest side of a JPEG.
        max_bytes: size of the file; by default half a gigabyte.
    """

    max_pixels: int = 89_478_485
    max_side: int = 65_535
    max_bytes: int = 512_000_000

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            OptionError: a limit is not a positive int, or allows more than a billion pixels.
        """
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} is {value!r}, expected a whole number above 0.")
        if self.max_pixels > MOST_PIXELS:
            raise OptionError(f"max_pixels is {self.max_pixels:,}, expected at most {MOST_PIXELS:,}.")

    def check_bytes(self, size_bytes: int, name: str) -> None:
        """Check the size of a file.

        Raises:
            ImageError: the file has more bytes than allowed.
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
            ImageError: the image has no pixels, or more than allowed.
        """
        if width <= 0 or height <= 0:
            raise ImageError(f"{name} is {width}x{height} pixels; expected at least 1x1.")
        if width * height > self.max_pixels:
            raise self._too_many_pixels(width, height, name, self.max_pixels)
        if max(width, height) > self.max_side:
            raise ImageError(
                f"{name} is {width}x{height} pixels, and a side may have at most {self.max_side:,}; resize it, or "
                "raise ImageLimits.max_side.",
                status="too_large",
            )

    def check_reduced(self, width: int, height: int, name: str) -> None:
        """Check width and height in pixels of the file of an image that is decoded at a reduced scale.

        Raises:
            ImageError: the file has more pixels than allowed.
        """
        if width * height > REDUCED_SCALE * self.max_pixels:
            raise self._too_many_pixels(width, height, name, REDUCED_SCALE * self.max_pixels)

    def _too_many_pixels(self, width: int, height: int, name: str, allowed: int) -> ImageError:
        advice = "resize it"
        if width * height <= MOST_PIXELS:
            advice += f", or raise the limit with --max-megapixels {-(-width * height // 1_000_000)}"
        if self.max_pixels == allowed and width * height <= REDUCED_SCALE * allowed:
            advice += ", or decode a JPEG at a reduced scale with --fast-decode"
        return ImageError(
            f"{name} has {width}x{height} pixels, more than the {allowed:,} allowed; {advice}.", status="too_large"
        )


SERVER_LIMITS = ImageLimits(max_pixels=52_000_000, max_side=16_384, max_bytes=20_000_000)
"""Stricter limits, for images from untrusted users: the photos of cameras with up to 50 megapixels pass."""
DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model runs: the arguments of :func:`siglip_onnx.load` of the same names.

    ``background`` is the color behind transparent images, a name or ``#rrggbb``; ``"drop"`` gives the pixels of
    transformers 4.57 instead: see :class:`.ImageReader`.
    ``calibration`` is a file that ``siglip-onnx calibrate`` wrote, for this model.
    ``isolate_decoding`` decodes images in processes of their own, under limits: see :class:`.DecoderPool`; None does so
    with formats other than JPEG, PNG and WebP.
    ``exact_int8`` forces exact int8 kernels on or off; None uses them where the fast ones saturate.
    ``few_runs`` loads int8 graphs sooner, for runs that take 5 to 30 % longer, with the same results; not those of the
    demo model and of version 0.1, whose weights are in ``*.onnx.data``.
    """

    variant: str | None = None
    providers: Sequence[Provider] | None = None
    threads: int | None = None
    workers: int = 1
    fast_decode: bool = False
    max_num_patches: int | None = None
    label_cache: Path | None = None
    image_limits: ImageLimits = DEFAULT_LIMITS
    allow_truncated: bool = False
    exact_int8: bool | None = None
    background: str = WHITE
    calibration: Path | None = None
    isolate_decoding: bool | None = False
    few_runs: bool = False

    def __post_init__(self) -> None:
        """Check workers and threads, and store the other values in their own types.

        Raises:
            OptionError: ``workers`` is not a number from 1 to 512, several workers have several threads each, or a path
                has a NUL character.
        """
        if self.providers is not None and not isinstance(self.providers, str):  # a str is refused at the first use
            object.__setattr__(self, "providers", tuple(self.providers))
        for name in ("label_cache", "calibration"):
            path = getattr(self, name)
            if path is not None:
                if "\0" in os.fspath(path):
                    raise OptionError(f"{name} is {path!r}, which no file can be called.")
                object.__setattr__(self, name, make_absolute(Path(path)))
        object.__setattr__(self, "image_limits", self.image_limits or DEFAULT_LIMITS)
        if not isinstance(self.workers, int) or not 1 <= self.workers <= MAX_THREADS:
            raise OptionError(f"workers is {self.workers!r}, expected a number from 1 to {MAX_THREADS}.")
        if self.workers > 1 and self.threads not in (None, 1):
            raise OptionError(
                f"{self.workers} workers of {self.threads} threads each were requested, but each worker is "
                "single-threaded. Pass either workers or threads, not both."
            )

    @property
    def session_threads(self) -> int | None:
        """Intra-op threads of a session: 1 if there are several workers, None for all that the process may use."""
        return self.threads if self.workers == 1 else 1


DEFAULTS = RuntimeOptions()


def provider_names(providers: Sequence[Provider]) -> list[str]:
    """Return the names of providers without their options.

    Raises:
        ProviderError: a provider is neither a name nor a pair of a name and options.
    """
    names = []
    for provider in providers:
        name, *options = [provider] if isinstance(provider, str) else provider
        if not isinstance(name, str) or len(options) > 1 or not all(isinstance(each, Mapping) for each in options):
            raise ProviderError(f"{provider!r} is not a provider; expected a name, or a pair of a name and a dict.")
        names.append(name)
    return names
