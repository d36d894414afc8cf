"""Decode a path, bytes, a PIL image or an array to RGB: the only module that reads images."""

from __future__ import annotations

import inspect
import io
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import ImageError, ImageFileError, ImageNotFoundError, first_line, printable
from ..options import DEFAULT_LIMITS, WHITE, ImageLimits
from ..system.files import open_list, open_regular, read_up_to
from ..system.fork import call_after_fork, renewed_lock
from .bitmaps import is_icon_cut
from .convert import is_deep, parse_background, scale_levels, to_rgb
from .corrections import correct_after_decoding, correct_before_decoding
from .guard import check_header
from .guard_heif import is_incomplete
from .guard_jpeg import Frame, read_frame
from .guard_tiff import TIFFS, is_cut_tiff
from .headers import is_cut_webp, read_at
from .jpeg2000 import is_cut
from .openers import open_file, open_plain
from .orientation import read_orientation, turn_upright
from .preprocess import Fit
from .tiff import is_old_jpeg_cut

ImageSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Mapping[str, Any]
    | Image.Image
    | np.ndarray[Any, Any]
)
_KINDS = "a path, bytes, a binary file, a PIL image or a numpy array"

# Only formats of raster images: of others, Pillow hands files to a program or to the system.
_RUN_PROGRAMS = ("EPS", "WMF")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "QOI", "JPEG2000", "TGA", "PSD")
_JPEGS, _HEIFS = ("JPEG", "MPO"), ("HEIF", "AVIF")
_URLS = ("http://", "https://", "data:", "file:")
_JPEG_END = b"\xff\xd9"
_PADDING_BYTES = 16
_PIXEL_BYTES = {"JPEG": 8, "MPO": 8, "PNG": 16, "WEBP": 20}  # that a pixel may take until it is RGB and upright
_COEFFICIENT_BYTES = 12  # the same of a JPEG whose coefficients are kept
_SMALL_PIXELS = 1_000_000  # that cost little in any case
_NUM_THREADS = 16  # that a decoder of HEIC or AVIF starts at most
_MAX_LIGHT_BYTES = 420_000_000  # photos of 50 megapixels take no more

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        rgb: the pixels, mode RGB, upright.
        truncated: whether the data ended early, so that the lower part is gray, black or the background.
        size: width and height of the upright image, before ``rgb`` was fitted to a model.
    """

    rgb: Image.Image
    truncated: bool
    size: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Take the size from the pixels, if it is not given."""
        if self.size == (0, 0):
            object.__setattr__(self, "size", self.rgb.size)


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
    5.24 do on white. Levels beyond 8 bits are scaled, which is logged: see :func:`.scale_levels`.
    Source: ``transformers.image_utils.load_image`` of 4.57, whose pixels these are for all other images; and for all
    images if ``background`` is ``"drop"``: transparency is ignored, and levels beyond 8 bits are cut at 255.

    Args:
        limits: bounds of an image's size, checked before its pixels are decoded.
        allow_truncated: decode what is there of an image whose data ends early, which is logged and returned.
        draft_size: width and height in pixels; a larger JPEG is decoded at a half, a quarter or an eighth of its size,
            not smaller than that: faster, but not the same pixels. ``limits`` then count the reduced pixels.
        background: the name of a color, ``#rrggbb``, or ``"drop"``.
        counts_file: ``limits`` count the pixels of the file also if ``draft_size`` reduces them.

    Raises:
        OptionError: ``background`` is none of these.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    allow_truncated: bool = False
    draft_size: tuple[int, int] | None = None
    background: str = WHITE
    counts_file: bool = False

    def __post_init__(self) -> None:
        """Check the background."""
        parse_background(self.background)

    def read(self, source: ImageSource, fit: Fit | None = None) -> DecodedImage:
        """Decode a path, the bytes of a file, a binary file, a PIL image or an array; resize it by ``fit``, if given.

        Of an open file everything is read, from its beginning where it can seek. A dict is what the library datasets
        gives for an image that it has not decoded: the file's ``"bytes"``, or its ``"path"`` if they are None.

        Raises:
            ImageError: not a readable image, or without pixels, over a limit, or truncated; ``status`` says which.
        """
        if isinstance(source, np.ndarray):
            return _fitted(self._from_array(source), fit)
        if isinstance(source, Image.Image):
            self.limits.check_size(*source.size, "the PIL image")
            if source.format in _RUN_PROGRAMS and getattr(source, "_im", None) is None:
                raise ImageError(
                    f"The PIL image is {source.format}, for which Pillow runs a program; load it first: image.load()",
                    status="unsupported",
                )
            with _file_locks.held(source):
                return _fitted(self._decode(source, "the PIL image"), fit)
        with self.open_source(source) as (file, name):
            return self.read_file(file, name, fit)

    @contextmanager
    def open_source(self, source: ImageSource) -> Iterator[tuple[IO[bytes], str]]:
        """Open a path or the bytes of a file; yield a seekable file, and how errors name it.

        Raises:
            ImageError: it cannot be opened, or is of another type.
        """
        opener = open_list
        if isinstance(source, Mapping):  # of a data set, whose paths nobody has given: they may not name stdin
            source, opener = _stored_file(source), open_regular
        if isinstance(source, bytes | bytearray | memoryview):
            content = bytes(source)
            yield io.BytesIO(content), f"the image ({len(content)} bytes)"
            return
        if hasattr(source, "read"):
            yield _read_open_file(cast("IO[bytes]", source), self.limits.max_bytes + 1)
            return
        if not isinstance(source, str | os.PathLike):
            raise ImageError(f"An image cannot be a {type(source).__name__}; give {_KINDS}.", status="unsupported")
        path = Path(os.fsdecode(source))
        name = printable(path)
        try:
            with opener(path) as file:
                yield file if file.seekable() else io.BytesIO(read_up_to(file, self.limits.max_bytes + 1)), name
        except ImageError:  # of the caller's block
            raise
        except FileNotFoundError as error:
            if isinstance(source, str) and source.startswith(_URLS):
                raise ImageNotFoundError(f"{printable(source)} is a URL; fetch it, and give its content.") from error
            raise ImageNotFoundError(f"{name} does not exist; give the path of an image.") from error
        except IsADirectoryError as error:
            raise ImageFileError(f"{name} is a folder; give the path of an image.") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            problem = getattr(error, "strerror", None) or error
            raise ImageFileError(f"{name} cannot be opened: {problem}.") from error

    def read_file(self, file: IO[bytes], name: str, fit: Fit | None = None) -> DecodedImage:
        """Decode an open, seekable file; see :meth:`read`.

        Raises:
            ImageError: as :meth:`read`; the message calls the file ``name``.
        """
        watched = self._check_file(file, name)
        with _opening(file, name):
            image = open_file(cast("IO[bytes]", watched), FORMATS, name)
        self._check_size(image, watched, name)
        return self._read_opened(image, watched, name, fit)

    def read_plain(self, file: IO[bytes], name: str, fit: Fit | None = None) -> DecodedImage | None:
        """Decode an open, seekable file if it is of one of :data:`.PLAIN_FORMATS`, and not heavy; None otherwise.

        Heavy are images that may take more than 420 MB, and from a megapixel on JPEGs of arithmetic coding.

        Raises:
            ImageError: as :meth:`read_file`.
        """
        watched = self._check_file(file, name)
        with _opening(file, name):
            image = open_plain(cast("IO[bytes]", watched))
        if image is None:
            return None
        num_pixels = image.width * image.height
        self._check_size(image, watched, name)
        return None if _is_heavy(image, num_pixels, watched, name) else self._read_opened(image, watched, name, fit)

    def _check_file(self, file: IO[bytes], name: str) -> _WatchedFile:
        """Check the length and the header of a file."""
        size_bytes = file.seek(0, io.SEEK_END)
        if size_bytes == 0:
            raise ImageError(f"{name} is empty (0 bytes); expected an image file.")
        self.limits.check_bytes(size_bytes, name)
        check_header(file, self.limits, name)
        return _WatchedFile(file)

    def _read_opened(self, image: Image.Image, file: _WatchedFile, name: str, fit: Fit | None) -> DecodedImage:
        with image:
            return _fitted(self._decode(image, name, file), fit)

    def _check_size(self, image: Image.Image, file: _WatchedFile, name: str) -> None:
        """Check the pixels that are decoded: those of the reduced image if a draft reduces the cost of decoding."""
        whole = image.size
        # Of HEIC, a draft is the preview, another image.
        frame = file.frame(name) if self.draft_size is not None and image.format in _JPEGS else None
        if frame is not None and not frame.is_lossless:
            image.draft(None, self.draft_size)
        is_reduced = image.size != whole and not self.counts_file
        if is_reduced and frame is not None and frame.in_one_pass:
            self.limits.check_reduced(*whole, name)
            whole = image.size
        self.limits.check_size(*whole, name)

    def _decode(self, image: Image.Image, name: str, file: _WatchedFile | None = None) -> DecodedImage:
        raw = None if file is None else file.raw
        correct_before_decoding(image, raw, name)
        loaded, truncated = _load_pixels(image, name, self.allow_truncated, file)
        orientation = read_orientation(loaded, name, from_file=file is not None)
        try:
            upright = turn_upright(correct_after_decoding(loaded, image, raw), orientation)
            rgb = self._to_rgb(upright, image, name)
            return DecodedImage(rgb.copy() if rgb is image and file is None else rgb, truncated)
        except Exception as error:  # decoders raise almost anything on damaged data
            raise ImageError(f"{name} is damaged or cannot be decoded: {_cause(error)}.") from error

    def _to_rgb(self, image: Image.Image, file: Image.Image, name: str) -> Image.Image:
        background = parse_background(self.background)
        if is_deep(image):
            if background is None:
                _log.warning("%s has levels beyond 8 bits, which are cut at 255 as in transformers 4.57.", name)
                return image.convert("RGB")
            image, largest = scale_levels(image, file)
            if largest != 255:
                _log.warning("%s has levels beyond 8 bits, which were scaled from 0-%d to 0-255.", name, largest)
        return to_rgb(image, file, background)

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
        return DecodedImage(to_rgb(image, image, parse_background(self.background)), truncated=False)


class _FileLocks:
    """Lets one thread at a time use an image of the caller that Pillow reads from its file when it is first used.

    Pillow's images can neither have a lock nor be keys of a dictionary: the locks are kept while they are in use.
    """

    def __init__(self) -> None:
        self._lock = renewed_lock(self)
        self._used: dict[int, tuple[threading.Lock, int]] = {}  # by the id of the image, with the number of users
        call_after_fork(self, self._used.clear)

    @contextmanager
    def held(self, image: Image.Image) -> Iterator[None]:
        """Let no other thread use the image within the block."""
        if not isinstance(image, ImageFile.ImageFile):
            yield
            return
        lock = self._count(id(image), 1)
        try:
            with lock:
                yield
        finally:
            self._count(id(image), -1)

    def _count(self, number: int, users: int) -> threading.Lock:
        with self._lock:
            lock, before = self._used.get(number) or (threading.Lock(), 0)
            self._used[number] = lock, before + users
            if before + users <= 0:
                del self._used[number]
        return lock


_file_locks = _FileLocks()


def _is_heavy(image: Image.Image, num_pixels: int, file: _WatchedFile, name: str) -> bool:
    """Say whether an image of one of :data:`.PLAIN_FORMATS` may take much memory, or much time for its bytes.

    ``num_pixels`` are those of the file, of which an opened image has fewer after a draft.
    """
    pixel_bytes = _PIXEL_BYTES[image.format or "WEBP"]
    if image.format in _JPEGS and num_pixels > _SMALL_PIXELS:
        frame = file.frame(name)
        if frame is None or frame.is_arithmetic:
            return True
        if not frame.in_one_pass:
            return _COEFFICIENT_BYTES * num_pixels > _MAX_LIGHT_BYTES
    return pixel_bytes * image.width * image.height > _MAX_LIGHT_BYTES


def _fitted(decoded: DecodedImage, fit: Fit | None) -> DecodedImage:
    return decoded if fit is None else replace(decoded, rgb=fit(decoded.rgb))


def load_decoders() -> None:
    """Import the decoders of all formats, which Pillow otherwise imports at the first image that needs them."""
    Image.init()


def is_single_image(images: ImageSource | Iterable[ImageSource]) -> TypeGuard[ImageSource]:
    """Say whether this is one image rather than several; an array ``(N, H, W, C)`` or of objects is several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4 and not (images.ndim == 1 and images.dtype.kind in "OU")
    kinds = (str, bytes, bytearray, memoryview, Mapping, Image.Image)
    return isinstance(images, kinds) or hasattr(images, "__fspath__") or hasattr(images, "read")


def is_open_file(source: ImageSource) -> bool:
    """Say whether an image is a file that is open, also one that Pillow opened; only one thread may read it."""
    is_file = hasattr(source, "read") and not isinstance(source, io.BytesIO)
    return is_file or isinstance(source, ImageFile.ImageFile)


def keep_content(source: ImageSource) -> ImageSource:
    """Return a copy of an image in memory that its owner could change, as a camera does that fills one buffer again."""
    try:
        if isinstance(source, bytearray | memoryview):
            return bytes(source)
        if isinstance(source, io.BytesIO):
            return source.getvalue()
        if isinstance(source, Mapping):
            return dict(source)
        if isinstance(source, np.ndarray | Image.Image):
            return source.copy()
    except ValueError:
        return source  # it is closed, which is reported where it is read
    return source


def as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Return an iterable of images, whether one image or several are given; ``(N, H, W, C)`` counts as N images.

    Raises:
        ImageError: ``images`` is of a type that can be neither.
    """
    if is_single_image(images):
        return [images]
    # A set has no order, and iterating a DataFrame gives the names of its columns.
    is_table = getattr(images, "ndim", 1) != 1 and not isinstance(images, np.ndarray)
    if is_table or isinstance(images, Set) or not isinstance(images, Iterable):
        raise ImageError(
            f"Images cannot be a {type(images).__name__}; give {_KINDS}, or an iterable of these.", status="unsupported"
        )
    return cast("Iterable[ImageSource]", images)


def _read_open_file(file: IO[bytes], max_bytes: int) -> tuple[IO[bytes], str]:
    """Return the content of a file of the caller as a file, and how errors name it."""
    name = printable(file.name) if isinstance(getattr(file, "name", None), str) else f"the {type(file).__name__}"
    if inspect.iscoroutinefunction(file.read):
        raise ImageError(
            f"{name} is read asynchronously; give its content, or the open file in it: upload.file.",
            status="unsupported",
        )
    try:
        if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
            file.seek(0)
        content = read_up_to(file, max_bytes)
    except TypeError as error:
        raise ImageError(f"{name} is not a binary file; open it with mode 'rb'.", status="unsupported") from error
    except Exception as error:  # a member of an archive raises almost anything on damaged data
        problem = getattr(error, "strerror", None) or _cause(error)
        raise ImageFileError(f"{name} cannot be read: {problem}.") from error
    return io.BytesIO(content), name


def _stored_file(image: Mapping[str, Any]) -> bytes | str:
    """Return the bytes or the path of an image that the library datasets has not decoded."""
    content, path = image.get("bytes"), image.get("path")
    if "bytes" in image and set(image) <= {"bytes", "path"}:
        if isinstance(content, bytes | bytearray | memoryview):
            return bytes(content)
        if content is None and isinstance(path, str):
            return path
    raise ImageError(
        f"An image cannot be a dict of {', '.join(map(repr, image)) or 'nothing'}; expected {{'bytes': ...}} as in the "
        "library datasets. Of a row or batch give the images alone, for example row['image'].",
        status="unsupported",
    )


class _WatchedFile:
    """An open file that notices when a decoder reads past its end, which means that the image needs more data."""

    def __init__(self, file: IO[bytes]) -> None:
        self.raw = file
        self.read_past_end = False
        self._end_marker, self._padding = b"", b""
        self._pixels, self._end = math.inf, math.inf
        self._frame: tuple[Frame | None] | None = None  # None until it is read
        self._begun = -1  # where the second byte of the marker would be, whose first one has been read

    def frame(self, name: str) -> Frame | None:
        """Return how a JPEG is coded, as :func:`.read_frame` does; it is read once."""
        if self._frame is None:
            self._frame = (read_frame(self.raw, name),)
        return self._frame[0]

    def watch(self, end_marker: bytes, pixels: int | None) -> None:
        """Watch from now on; the first read past the end returns ``end_marker``, later ones nothing.

        Args:
            end_marker: what completes an image whose data ends early.
            pixels: where those of a JPEG begin. They end at the marker behind them: without it the decoder reads on if
                some are missing, which it otherwise fills up; all that it may need of complete ones are some bits.
        """
        self.read_past_end, self._end_marker = False, end_marker
        if pixels is not None:
            self._pixels, self._padding = pixels, bytes(_PADDING_BYTES)

    def read(self, count: int = -1) -> bytes:
        position = self.raw.tell()
        data = self.raw.read(count)
        if position + len(data) > self._pixels:
            data = self._before_end(position, data)
        if count > 0 and not data:
            if self._padding and self._end < math.inf:
                data, self._padding = self._padding, b""
                return data
            self.read_past_end = True
            data, self._end_marker = self._end_marker, b""
        return data

    def _before_end(self, position: int, data: bytes) -> bytes:
        """Return those of the bytes from a position on that lie before the marker that ends a JPEG."""
        found = data.find(_JPEG_END, max(0, int(self._pixels) - position))
        if position == self._begun and data.startswith(_JPEG_END[1:]):
            self._end = min(self._end, position)
        elif found >= 0:
            self._end = min(self._end, position + found)
        self._begun = position + len(data) if data.endswith(_JPEG_END[:1]) else -1
        return data[: max(0, int(self._end) - position)] if self._end < math.inf else data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def _load_pixels(
    image: Image.Image, name: str, allow_truncated: bool, file: _WatchedFile | None
) -> tuple[Image.Image, bool]:
    """Decode the pixels; return the image, and whether its data ended early."""
    # libjpeg fails on a JPEG that stops before its end marker, but completes one that has the marker, with gray for
    # what is missing; so where truncated images are allowed the file supplies the marker at its end.
    end_marker = _JPEG_END if allow_truncated and image.format in _JPEGS else b""
    if file is not None:
        frame = file.frame(name) if image.format in _JPEGS else None
        file.watch(end_marker, frame.pixels if frame is not None and frame.in_one_pass else None)
    problem: Exception | None = None
    try:
        image.load()
    except Exception as error:  # decoders raise almost anything on damaged data
        problem = error
    incomplete = file is not None and _is_incomplete(image, file.raw, name)
    if not incomplete and not _ends_early(image, problem, file is not None and file.read_past_end, end_marker):
        if file is None and (isinstance(problem, AssertionError) or "closed" in str(problem)):
            raise ImageFileError(f"{name} is closed; use it before it is closed, or give its path.") from problem
        if isinstance(problem, MemoryError):
            raise ImageError(f"{name} takes more memory than there is; resize it.", status="too_large") from problem
        if problem is not None:
            if image.format in _HEIFS:
                _check_threads(name)
            raise ImageError(f"{name} is damaged or cannot be decoded: {_cause(problem)}.") from problem
        return image, False
    if not allow_truncated:
        raise _truncated(name, "get it again, or allow truncated images (--allow-truncated)") from problem
    partial = image if problem is None else _decoded_part(image)
    if partial is None:
        raise _truncated(name, "no part of it can be decoded") from problem
    _log.warning("%s is truncated; what is missing of it is gray, black or the background.", name)
    return partial, True


def _check_threads(name: str) -> None:
    """Raise an error if too few threads can be started: decoders of HEIC and AVIF then call the image damaged."""
    done, threads = threading.Event(), []
    try:
        for _ in range(_NUM_THREADS):
            thread = threading.Thread(target=done.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise ImageFileError(
            f"{name} cannot be decoded, because no thread can be started; raise the limit of processes (ulimit -u)."
        ) from error
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _is_incomplete(image: Image.Image, file: IO[bytes], name: str) -> bool:
    """Say whether a file lacks data, as far as its decoder does not report it.

    In a host that lets Pillow pass truncated images, those of JPEG 2000 and of icons do not.
    """
    if image.format in _HEIFS:
        return is_incomplete(file, name)
    if image.format == "TIFF":
        return is_old_jpeg_cut(image, file)
    host_passes_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    if image.format == "ICO":
        return is_icon_cut(image, file, also_first=host_passes_truncated)
    return host_passes_truncated and image.format == "JPEG2000" and is_cut(file, name)


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
    except Exception as error:  # of a palette, for example
        _log.debug("The decoded part of an image cannot be used: %s", error)
        return None
    finally:
        image.tile = tiles  # type: ignore[attr-defined]


@contextmanager
def _opening(file: IO[bytes], name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        if is_cut_webp(file) or is_cut_tiff(file):
            raise _truncated(name, "get it again: no part of it can be decoded") from error
        if isinstance(error, UnidentifiedImageError) and read_at(file, 0, 4).startswith(TIFFS):
            raise ImageError(
                f"{name} is a TIFF of a kind that Pillow does not read; save it with 8 bits a channel, or as PNG.",
                status="unsupported",
            ) from error
        raise _cannot_open(error, name) from error


def _cannot_open(error: Exception, name: str) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(f"{name} has more pixels than Pillow decodes; resize it.", status="too_large")
    status = "unsupported" if isinstance(error, UnidentifiedImageError) else "decode_error"
    return ImageError(
        f"{name} is not a readable image: {_cause(error)}. Expected one of {', '.join(FORMATS)}, HEIC.", status=status
    )


def _means_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "not enough image data" in text or "unexpected end of file" in text


def _truncated(name: str, advice: str) -> ImageError:
    return ImageError(f"{name} is truncated: its data ends early; {advice}.", status="truncated")


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    if "MAX_TEXT_CHUNK" in str(error):
        return "a text or color profile in it unpacks to more than 1 MB; save it without metadata"
    return first_line(error) or type(error).__name__
