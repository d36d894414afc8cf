"""Open image files with Pillow's decoders of some formats, and HEIC files with pillow-heif, whose extra is [heic]."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from importlib import import_module
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import ImageError, MissingExtraError
from ..system.extras import extra

# Formats whose decoders take time and memory in proportion to the pixels and bytes of a file. Their modules are loaded
# one by one: all of them take longer.
PLAIN_FORMATS = {"JPEG": "PIL.JpegImagePlugin", "PNG": "PIL.PngImagePlugin", "WEBP": "PIL.WebPImagePlugin"}
# Formats that Pillow reads only if an opener was registered, by a program or by this module.
_REGISTERED = ("HEIF", "JXL")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_BRANDS = (b"mif1", b"msf1")  # of which AVIF files may call themselves too
_AVIF_BRANDS = (b"avif", b"avis")
_MAX_BRANDS = 64


def open_file(file: IO[bytes], formats: Sequence[str], name: str) -> ImageFile.ImageFile:
    """Open a file as an image of one of these formats, or of a format of which an opener was registered with Pillow.

    Does what ``PIL.Image.open`` does, except for Pillow's own limit of pixels, which is a global variable: the caller
    checks the size.

    Raises:
        ImageError: it is a HEIC file, and pillow-heif is not installed.
        UnidentifiedImageError: it is of no such format.
    """
    Image.preinit()  # loads the decoders of the most common formats, init those of all
    image = _open_loaded(file, (*formats, *_REGISTERED))
    if image is None and not all(format_ in Image.OPEN for format_ in formats):
        Image.init()
        image = _open_loaded(file, (*formats, *_REGISTERED))
    if image is not None:
        return image
    if _is_heic(file) and "HEIF" not in Image.OPEN:
        return _open_heic(file, name)
    raise UnidentifiedImageError("no known format")


def open_plain(file: IO[bytes]) -> ImageFile.ImageFile | None:
    """Open a file as one of :data:`PLAIN_FORMATS`; None if it is none of them."""
    for module in PLAIN_FORMATS.values():
        import_module(module)
    return _open_loaded(file, tuple(PLAIN_FORMATS))


def _open_loaded(file: IO[bytes], formats: Sequence[str]) -> ImageFile.ImageFile | None:
    """Open a file with the decoders that are loaded; None if it is of none of their formats."""
    file.seek(0)
    prefix = file.read(16)
    for format_ in (name for name in formats if name in Image.OPEN):
        factory, accept = Image.OPEN[format_]
        # A string says why Pillow was built without this format.
        if accept is not None and (not (accepted := accept(prefix)) or isinstance(accepted, str)):
            continue
        try:
            file.seek(0)
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
            continue
    return None


def _is_heic(file: IO[bytes]) -> bool:
    """Say whether a file begins with the box of an HEIF file, and is not AVIF."""
    file.seek(0)
    header = file.read(16)
    if header[4:8] != b"ftyp":
        return False
    compatible = file.read(max(0, min(int.from_bytes(header[:4], "big") - 16, 4 * _MAX_BRANDS)))
    brands = {header[8:12], *(compatible[start : start + 4] for start in range(0, len(compatible), 4))}
    if header[8:12] in _HEIC_BRANDS:
        return True
    return header[8:12] in _HEIF_BRANDS and not brands.intersection(_AVIF_BRANDS)


def _open_heic(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    """Open a HEIC file without registering an opener, which would change what the whole program opens."""
    opener, problem = load_heic_opener()
    if problem:
        raise ImageError(f"{name} is a HEIC image. {problem}", status="unsupported")
    file.seek(0)
    image: ImageFile.ImageFile = opener(file)
    return image


@functools.cache
def load_heic_opener() -> tuple[Any, str]:
    """Return pillow-heif's class of images, or what to install; a decoder process loads it while it can open files."""
    try:
        with extra("heic", "HEIC"):
            from pillow_heif import HeifImageFile  # noqa: PLC0415 - an optional package
    except MissingExtraError as error:
        return None, str(error)
    return HeifImageFile, ""
