"""The one place where a path, bytes, a PIL image or an array becomes an RGB picture."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]

# A list of formats that are pictures; Pillow would also run Ghostscript on EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "QOI", "JPEG2000", "TGA", "PSD")
MAX_PIXELS = 89_478_485

_log = logging.getLogger(__name__)


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, draft_size: tuple[int, int] | None = None
) -> Image.Image:
    """Return ``source`` as a PIL image of mode RGB, turned upright as its EXIF orientation says.

    Arrays are uint8 of shape ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``. Of an animation the first
    frame is taken; an alpha channel is dropped, not blended; levels beyond 8 bits are cut at 255, which is logged.
    Source: ``transformers.image_utils.load_image`` of 4.57, whose pixels this gives.

    With ``draft_size``, width and height in pixels, a larger JPEG is decoded at a half, a quarter or an eighth of its
    size, not smaller than that: faster, and not the same pixels.

    Raises:
        ImageError: not a readable picture, without pixels, or of more than ``max_pixels`` (known from its header).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image", max_pixels)
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), f"the picture ({len(source)} bytes)", max_pixels, draft_size)
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), max_pixels, draft_size)
    raise ImageError(
        f"A picture cannot be a {type(source).__name__}; give a path, bytes, a PIL image or a numpy array."
    )


def _open_path(path: Path, max_pixels: int, draft_size: tuple[int, int] | None) -> Image.Image:
    try:
        with path.open("rb") as file:
            return _open(file if file.seekable() else io.BytesIO(file.read()), str(path), max_pixels, draft_size)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; give the path of a picture.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder; give the path of a picture.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror or error}.") from error


def _open(file: Any, name: str, max_pixels: int, draft_size: tuple[int, int] | None) -> Image.Image:
    if not file.read(1):
        raise ImageError(f"{name} is empty (0 bytes); expected a picture file.")
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has far more than the {max_pixels:,} pixels allowed; make it smaller.") from error
    except Exception as error:  # decoders raise almost anything on damaged data
        raise ImageError(f"{name} is not a readable picture: {_cause(error)}. Expected one of {_formats()}.") from error
    with image:
        return _decode(image, name, max_pixels, draft_size)


def _decode(image: Image.Image, name: str, max_pixels: int, draft_size: tuple[int, int] | None = None) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} is {image.width}x{image.height} pixels; expected at least 1x1.")
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels, more than the {max_pixels:,} allowed; make it smaller."
        )
    if image.mode.startswith(("I", "F")):
        _log.warning("%s has levels beyond 8 bits, which are cut at 255 as the reference does; convert it first.", name)
    try:
        if draft_size is not None:
            image.draft(None, draft_size)
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise almost anything on damaged data
        raise ImageError(f"{name} is damaged or cannot be decoded: {_cause(error)}.") from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    shape = array.shape
    grey = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    if array.dtype != np.uint8 or not (grey or (len(shape) == 3 and shape[2] in (3, 4))):
        raise ImageError(
            f"A picture array is {array.dtype} of shape {shape}; expected uint8 (0-255) of shape (H, W), (H, W, 1), "
            "(H, W, 3) or (H, W, 4). Convert floats with (array * 255).round().astype('uint8')."
        )
    if 0 in shape:
        raise ImageError(f"A picture array has shape {shape} and so no pixels; expected at least 1x1.")
    return Image.fromarray(array[..., 0] if grey and len(shape) == 3 else array).convert("RGB")


def _cause(error: Exception) -> str:
    text = str(error).split("\n", maxsplit=1)[0].rstrip(".")
    return "no known format" if isinstance(error, UnidentifiedImageError) else text or type(error).__name__


def _formats() -> str:
    return ", ".join(FORMATS)
