"""How large a picture may be: pixels, sides and bytes, each known before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ImageError, SiglipOnnxError

MOST_PIXELS = 178_956_970  # what Pillow itself opens at most, unless its own limit was changed


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may have at most; there is always a limit.

    ``max_pixels`` is width times height, ``max_side`` the longer of both, ``max_bytes`` the size of the file. The
    defaults are Pillow's own bound of pixels, the longest side of a JPEG, and half a gigabyte.
    """

    max_pixels: int = 89_478_485
    max_side: int = 65_535
    max_bytes: int = 512_000_000

    def __post_init__(self) -> None:
        """Refuse what is no limit.

        Raises:
            SiglipOnnxError: a limit is no positive int, or of more pixels than Pillow opens.
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
                f"{name} has {size_bytes:,} bytes, more than the {self.max_bytes:,} allowed; make it smaller.",
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
                f"{name} has {width}x{height} pixels, more than the {self.max_pixels:,} allowed; make it smaller.",
                status="too_large",
            )
        if max(width, height) > self.max_side:
            raise ImageError(
                f"{name} is {width}x{height} pixels, and a side may have {self.max_side:,} at most; make it smaller.",
                status="too_large",
            )


SERVER_LIMITS = ImageLimits(max_pixels=40_000_000, max_side=16_384, max_bytes=20_000_000)
"""Stricter, for pictures of strangers."""
