"""Decode a path, bytes, a PIL image or an array to RGB: the only module that opens images."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import ImageError, first_line
from ..options import DEFAULT_LIMITS, WHITE, ImageLimits
from ..system.files import open_list
from .convert import is_deep, largest_level, parse_background, scale_levels, to_rgb
from .guard import check_header, check_tiles

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]

# Only formats of raster images: for EPS, Pillow would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "QOI", "JPEG2000", "TGA", "PSD")
_JPEG_END = b"\xff\xd9"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        rgb: the pixels, mode RGB, upright.
        truncated: whether the data ended early, so that the lower part is gray, black or the background.
    """

    rgb: Image.Image
    truncated: bool


def load_image(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_truncated: bool = False,
    draft_size: tuple[int, int] | None = None,
    background: str = WHITE,
) -> Image.Image:
    """Return ``source`` as a PIL image of mode RGB; see :class:`ImageReader`."""
    return ImageReader(limits, allow_truncated, draft_size, background).read(source).rgb


def open_image(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_truncated: bool = False,
    draft_size: tuple[int, int] | None = None,
    background: str = WHITE,
) -> DecodedImage:
    """Decode ``source`` to RGB; see :class:`ImageReader`."""
    return ImageReader(limits, allow_truncated, draft_size, background).read(source)


@dataclass(frozen=True)
class ImageReader:
    """Decode images to RGB, turned upright as their EXIF orientation says.

    Arrays are uint8 of shape ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``. Of an animation the first
    frame is taken. Transparency is composited on ``background``, which is what the image processors of transformers
    5.24 do on white. Levels beyond 8 bits are scaled, which is logged: see :func:`.largest_level`.
    Source: ``transformers.image_utils.load_image`` of 4.57, whose pixels these are for all other images; and for all
    images if ``background`` is ``"drop"``: transparency is ignored, and levels beyond 8 bits are cut at 255.

    Args:
        limits: bounds of an image's size, checked before its pixels are decoded.
        allow_truncated: decode what is there of an image whose data ends early, which is logged and returned.
        draft_size: width and height in pixels; a larger JPEG is decoded at a half, a quarter or an eighth of its size,
            not smaller than that: faster, but not the same pixels.
        background: the name of a color, ``#rrggbb``, or ``"drop"``.

    Raises:
        SiglipOnnxError: ``background`` is none of these.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    allow_truncated: bool = False
    draft_size: tuple[int, int] | None = None
    background: str = WHITE

    def __post_init__(self) -> None:
        """Check the background."""
        parse_background(self.background)

    def read(self, source: ImageSource) -> DecodedImage:
        """Decode a path, the bytes of a file, a PIL image or an array.

        Raises:
            ImageError: not a readable image, or without pixels, over a limit, or truncated; ``status`` says which.
        """
        if isinstance(source, np.ndarray):
            return self._from_array(source)
        if isinstance(source, Image.Image):
            self.limits.check_size(*source.size, "the PIL image")
            return self._decode(source, "the PIL image")
        if isinstance(source, bytes):
            return self._read_file(io.BytesIO(source), f"the image ({len(source)} bytes)")
        if isinstance(source, str | os.PathLike):
            return self._read_path(Path(source))
        raise ImageError(
            f"An image cannot be a {type(source).__name__}; give a path, bytes, a PIL image or a numpy array.",
            status="unsupported",
        )

    def _read_path(self, path: Path) -> DecodedImage:
        name = str(path)
        try:
            with open_list(path) as file:
                seekable = file if file.seekable() else io.BytesIO(file.read(self.limits.max_bytes + 1))
                return self._read_file(seekable, name)
        except FileNotFoundError as error:
            raise ImageError(f"{name} does not exist; give the path of an image.", status="io_error") from error
        except IsADirectoryError as error:
            raise ImageError(f"{name} is a folder; give the path of an image.", status="io_error") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            problem = getattr(error, "strerror", None) or error
            raise ImageError(f"{name!r} cannot be opened: {problem}.", status="io_error") from error

    def _read_file(self, file: IO[bytes], name: str) -> DecodedImage:
        size_bytes = file.seek(0, io.SEEK_END)
        if size_bytes == 0:
            raise ImageError(f"{name} is empty (0 bytes); expected an image file.")
        self.limits.check_bytes(size_bytes, name)
        check_header(file, self.limits, name)
        watched = _WatchedFile(file)
        try:
            image = Image.open(watched, formats=FORMATS)
        except Exception as error:  # decoders raise almost anything on damaged data
            raise _cannot_open(error, name, self.limits) from error
        with image:
            self.limits.check_size(*image.size, name)
            check_tiles(image, name)
            if self.draft_size is not None:
                image.draft(None, self.draft_size)
            return self._decode(image, name, watched)

    def _decode(self, image: Image.Image, name: str, file: _WatchedFile | None = None) -> DecodedImage:
        loaded, truncated = _load_pixels(image, name, self.allow_truncated, file)
        try:
            return DecodedImage(self._to_rgb(ImageOps.exif_transpose(loaded), image, name), truncated)
        except Exception as error:  # decoders raise almost anything on damaged data
            raise ImageError(f"{name} is damaged or cannot be decoded: {_cause(error)}.") from error

    def _to_rgb(self, image: Image.Image, file: Image.Image, name: str) -> Image.Image:
        background = parse_background(self.background)
        if is_deep(image):
            if background is None:
                _log.warning("%s has levels beyond 8 bits, which are cut at 255 as in transformers 4.57.", name)
                return image.convert("RGB")
            white = largest_level(image, file)
            if white != 255:
                _log.warning("%s has levels beyond 8 bits, which were scaled from 0-%d to 0-255.", name, white)
            image = scale_levels(image, white)
        return to_rgb(image, background)

    def _from_array(self, array: np.ndarray[Any, Any]) -> DecodedImage:
        shape = array.shape
        gray = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
        if array.dtype != np.uint8 or not (gray or (len(shape) == 3 and shape[2] in (3, 4))):
            raise ImageError(
                f"An image array is {array.dtype} of shape {shape}; expected uint8 (0-255) of shape (H, W), (H, W, 1), "
                "(H, W, 3) or (H, W, 4). Convert floats with (array * 255).round().astype('uint8').",
                status="unsupported",
            )
        if 0 in shape:
            raise ImageError(f"An image array has shape {shape} and so no pixels; expected at least 1x1.")
        self.limits.check_size(shape[1], shape[0], f"the image array of shape {shape}")
        image = Image.fromarray(array[..., 0] if gray and len(shape) == 3 else array)
        return DecodedImage(to_rgb(image, parse_background(self.background)), truncated=False)


def is_single_image(images: ImageSource | Iterable[ImageSource]) -> TypeGuard[ImageSource]:
    """Say whether this is one image rather than several; an array ``(N, H, W, C)`` is several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | bytes | Image.Image) or hasattr(images, "__fspath__")


def as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Return an iterable of images, whether one image or several are given; ``(N, H, W, C)`` counts as N images.

    Raises:
        ImageError: ``images`` is of a type that can be neither.
    """
    if is_single_image(images):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | io.IOBase):
        raise ImageError(f"Images cannot be a {type(images).__name__}; give a path, bytes, a PIL image or an array.",
                         status="unsupported")  # fmt: skip
    return images


class _WatchedFile:
    """An open file that notices when a decoder reads past its end, which means that the image needs more data."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.read_past_end = False
        self._end_marker = b""

    def watch(self, end_marker: bytes) -> None:
        """Watch from now on; the first read past the end returns ``end_marker``, later ones nothing."""
        self.read_past_end, self._end_marker = False, end_marker

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        if count > 0 and not data:
            self.read_past_end = True
            data, self._end_marker = self._end_marker, b""
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _load_pixels(
    image: Image.Image, name: str, allow_truncated: bool, file: _WatchedFile | None
) -> tuple[Image.Image, bool]:
    """Decode the pixels; return the image, and whether its data ended early."""
    # libjpeg fails on a JPEG that stops before its end marker, but completes one that has the marker, with gray for
    # what is missing; so where truncated images are allowed the file supplies the marker at its end.
    end_marker = _JPEG_END if allow_truncated and image.format in ("JPEG", "MPO") else b""
    if file is not None:
        file.watch(end_marker)
    problem: Exception | None = None
    try:
        image.load()
    except Exception as error:  # decoders raise almost anything on damaged data
        problem = error
    if not _ends_early(image, problem, file is not None and file.read_past_end, end_marker):
        if problem is not None:
            raise ImageError(f"{name} is damaged or cannot be decoded: {_cause(problem)}.") from problem
        return image, False
    if not allow_truncated:
        raise _truncated(name, "get it again, or allow truncated images (--allow-truncated)") from problem
    partial = image if problem is None else _decoded_part(image)
    if partial is None:
        raise _truncated(name, "no part of it can be decoded") from problem
    _log.warning("%s is truncated; what is missing of it is gray, black or the background.", name)
    return partial, True


def _ends_early(image: Image.Image, problem: Exception | None, read_past_end: bool, end_marker: bytes) -> bool:
    """Say whether an image's data ended early, after Pillow tried to load it and raised ``problem``, if anything."""
    if problem is not None:
        return read_past_end or _means_truncated(problem)
    # Many decoders look past the end of a complete file too. Without an error an image is truncated only if libjpeg
    # used up the marker, or if the host lets Pillow pass truncated images; OpenJPEG always reads past the end.
    host_passes_truncated = ImageFile.LOAD_TRUNCATED_IMAGES and image.format != "JPEG2000"
    return read_past_end and (bool(end_marker) or host_passes_truncated)


def _decoded_part(image: Image.Image) -> Image.Image | None:
    """Return the rows decoded before the data ended, None if there are none: the image without its unread tiles."""
    tiles: Any = getattr(image, "tile", None)
    if tiles is None or getattr(image, "_im", None) is None:
        return None
    image.tile = []  # type: ignore[attr-defined]
    try:
        return image.copy()
    finally:
        image.tile = tiles  # type: ignore[attr-defined]


def _cannot_open(error: Exception, name: str, limits: ImageLimits) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(
            f"{name} has far more than the {limits.max_pixels:,} pixels allowed; resize it, or raise the limit with "
            "--max-megapixels.",
            status="too_large",
        )
    status = "unsupported" if isinstance(error, UnidentifiedImageError) else "decode_error"
    return ImageError(
        f"{name} is not a readable image: {_cause(error)}. Expected one of {', '.join(FORMATS)}.", status=status
    )


def _means_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "not enough image data" in text


def _truncated(name: str, advice: str) -> ImageError:
    return ImageError(f"{name} is truncated: its data ends early; {advice}.", status="truncated")


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    return first_line(error) or type(error).__name__
