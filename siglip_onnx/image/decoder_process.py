"""Decode images in a process of its own, under limits of memory, CPU and wall time, without files and network.

:mod:`.decoder_pool` starts it. Messages are JSON after their length: to unpickle them would let a hijacked decoder run
code in the parent. Pixels and files pass through shared memory, or after the messages where there is none.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import select
import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import IO, Any

from PIL import Image

from ..errors import ImageError
from ..options import ImageLimits
from .decode import DecodedImage, ImageReader, load_decoders
from .openers import load_heic_opener
from .preprocess import Fit, NaflexFit, ShrinkFit, SquashFit

if sys.platform != "win32":
    import fcntl
    import resource

Message = dict[str, Any]
OUT_OF_MEMORY = 77  # exit code
KEPT_BYTES = 16_000_000  # of shared memory between two images; larger files are read from it as far as needed
_LENGTH = struct.Struct(">I")
_ORPHAN_SECONDS = 5.0  # after the time limit, which the parent enforces unless it has died
_BYTES_PER_PIXEL, _OVERHEAD_BYTES = 32, 256_000_000
_OPENING_SECONDS, _CPU_SECONDS = 15, 2.0  # of CPU time for each image, and for each megapixel
_SLOW_SECONDS, _SLOW_FORMATS = 5.0, ("QOI", "BMP", "PPM")  # that Pillow decodes in Python, in some of their forms
_LARGEST_LIMIT = 1 << 62  # that the system takes
_MAX_WALL_SECONDS = 240.0  # a bulk job ends a worker after 300
_FITS = {kind.__name__: kind for kind in (SquashFit, NaflexFit, ShrinkFit)}
# Modules that Pillow imports when it first needs them; later no file can be opened.
_LATE_IMPORTS = (
    *(f"PIL.{name}" for name in ("ExifTags", "ImageChops", "ImageCms", "ImageOps", "ImagePalette", "ImageSequence")),
    *(f"encodings.{name}" for name in ("idna", "latin_1", "unicode_escape", "utf_16")),
    "traceback",
    "xml.etree.ElementTree",
)


@dataclass(frozen=True)
class DecoderLimits:
    """Limits of one image in a decoder process.

    Attributes:
        memory_bytes: address space beyond that of an idle decoder.
        cpu_seconds: CPU time of the largest image; small ones have less, see :func:`cpu_seconds`.
        wall_seconds: time on the clock.
    """

    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float

    @property
    def opening_seconds(self) -> int:
        """CPU time until the number of pixels is known; decoding them may then take what they need."""
        return min(_OPENING_SECONDS, self.cpu_seconds)

    @classmethod
    def of_images(cls, limits: ImageLimits) -> DecoderLimits:
        """Return limits that every ordinary image within ``limits`` keeps.

        JPEG 2000 and WebP take 20 to 25 bytes a pixel, and QOI, which Pillow decodes in Python, 4 seconds a megapixel.
        """
        cpu_seconds = 10 + limits.max_pixels // 1_000_000
        memory_bytes = _OVERHEAD_BYTES + _BYTES_PER_PIXEL * limits.max_pixels + limits.max_bytes
        return cls(memory_bytes, cpu_seconds, min(2.0 * cpu_seconds, _MAX_WALL_SECONDS))


def send(stream: IO[bytes], message: Message, data: bytes = b"") -> None:
    """Write a message, and bytes after it."""
    header = json.dumps(message).encode()
    for part in (_LENGTH.pack(len(header)) + header, data):
        view = memoryview(part)
        while view:  # the stream has no buffer, and may write less
            view = view[stream.write(view) :]


def receive(stream: IO[bytes], max_bytes: int = 1 << 20) -> Message | None:
    """Read a message, None at the end of the stream.

    Raises:
        ValueError: it is not a message, or has more than ``max_bytes``.
    """
    length = read_exactly(stream, _LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    if size > max_bytes:
        raise ValueError(f"a message of {size:,} bytes")
    header = read_exactly(stream, size)
    if len(header) < size:
        return None
    message = json.loads(header)
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < size and (part := stream.read(size - len(data))):
        data += part
    return bytes(data)


def describe_fit(fit: Fit | None) -> Message | None:
    """Return a fit as a part of a message."""
    return None if fit is None else {"kind": type(fit).__name__, **asdict(fit)}


def describe_reader(reader: ImageReader) -> Message:
    """Return a reader as a part of a message."""
    return {**asdict(reader), "draft_size": reader.draft_size and list(reader.draft_size)}


def main() -> None:
    """Decode the images that arrive on stdin until it is closed."""
    if sys.platform != "win32":
        _restore_signals()
    requests = os.fdopen(0, "rb", buffering=0, closefd=False)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    settings = receive(requests)
    if settings is None:
        return
    decoder = _Decoder(settings, requests, replies)
    send(replies, {"missing_limits": decoder.apply_limits()})
    try:
        while decoder.decode_next():
            pass
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent has ended
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # an orderly end would need memory


def _restore_signals() -> None:
    """Let signals end this process that the parent may ignore or block, which children inherit."""
    for number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class _Decoder:
    """Reads requests and writes replies."""

    def __init__(self, settings: Message, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._limits = DecoderLimits(**settings["limits"])
        self._reader = _make_reader(settings["reader"], self._limits)
        self._memory: int | None = settings["memory"]
        self._max_output_bytes: int = 3 * self._reader.limits.max_pixels
        self._requests, self._replies = requests, replies
        self._logs = _CollectedLogs()

    def apply_limits(self) -> list[str]:
        """Load what an image may need, then limit this process; return the names of limits that cannot be set here."""
        load_decoders()
        load_heic_opener()
        for name in _LATE_IMPORTS:
            import_module(name)
        logger = logging.getLogger("siglip_onnx")
        logger.addHandler(self._logs)
        logger.propagate = False
        self._address_space = _AddressSpace(self._limits.memory_bytes)
        return limit_process(self._limits, 0 if self._memory is None else self._max_output_bytes)

    def decode_next(self) -> bool:
        """Answer one request; return False at the end of the stream."""
        request = receive(self._requests)
        if request is None:
            return False
        file = self._open(request["bytes"])
        with _timed(self._limits), _ending_with_parent():
            reply, pixels = self._decode(file, request)
        reply["logs"] = self._logs.take()
        if self._memory is None:
            send(self._replies, reply, pixels)
        else:
            write_shared(self._memory, pixels)
            send(self._replies, reply)
        return True

    def _open(self, size: int) -> IO[bytes]:
        if self._memory is None:
            return io.BytesIO(read_exactly(self._requests, size))
        if size <= KEPT_BYTES:
            return io.BytesIO(read_shared(self._memory, size))
        return io.BufferedReader(_SharedFile(self._memory, size), 1 << 16)

    def _decode(self, file: IO[bytes], request: Message) -> tuple[Message, bytes]:
        fit = request["fit"]
        try:
            decoded = self._reader.read_file(file, request["name"], _make_fit(fit))
        except ImageError as error:
            if _is_out_of_memory(error) or self._address_space.was_short():
                raise MemoryError from error
            return {"error": str(error), "status": error.status}, b""
        reply = {"fitted": decoded.rgb.size, "size": decoded.size, "truncated": decoded.truncated}
        return reply, decoded.rgb.tobytes()


def read_shared(memory: int, size: int) -> bytes:
    """Return the first bytes of shared memory, fewer if it has fewer."""
    data = os.pread(memory, size, 0)
    while len(data) < size and (part := os.pread(memory, size - len(data), len(data))):  # at most 2 GB at once
        data += part
    return data


def write_shared(memory: int, data: bytes, position: int = 0) -> None:
    """Replace bytes of shared memory, by default the first ones."""
    written = 0
    while written < len(data):
        written += os.pwrite(memory, memoryview(data)[written:], position + written)


class _SharedFile(io.RawIOBase):
    """The first bytes of shared memory as a file."""

    def __init__(self, memory: int, size: int) -> None:
        self._memory, self._size, self._position = memory, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._memory, max(0, min(len(buffer), self._size - self._position)), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def limit_process(limits: DecoderLimits, file_bytes: int) -> list[str]:
    """Limit memory, files and the size of files of this process, for good; return what cannot be limited here.

    Without further descriptors no file can be opened and no connection made.
    """
    if sys.platform == "win32":
        return ["memory", "CPU time", "files", "network"]

    def lower(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = min(value, _LARGEST_LIMIT)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    missing: list[str] = []
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, file_bytes)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        lower(resource.RLIMIT_AS, used + limits.memory_bytes)
    else:  # macOS accepts the limit and ignores it
        missing.append("memory")
    lower(resource.RLIMIT_NOFILE, os.dup(2) + 1)  # this descriptor was the lowest free one
    return missing


@contextmanager
def _timed(limits: DecoderLimits) -> Iterator[None]:
    """Limit the CPU time of the block; end the process long after the time limit, in case its parent has died."""
    if sys.platform == "win32":
        yield
        return

    _limit_cpu(_used_seconds() + limits.opening_seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds + _ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _used_seconds() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return math.ceil(usage.ru_utime + usage.ru_stime)


def _limit_cpu(end: int) -> None:
    """Let the process end when it has used this CPU time in all."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (end if hard == resource.RLIM_INFINITY else min(end, hard), hard))


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """End the process if its parent ends within the block: a decoder may be busy for minutes, deaf to everything else.

    When the parent's end of stdin is closed, Linux sends a signal whose default is to end the process.
    """
    if sys.platform != "linux":
        yield
        return
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, flags | fcntl.FASYNC)
    waiting = select.poll()
    waiting.register(0, 0)
    if waiting.poll(0):  # it has ended already: only what happens now sends a signal
        os._exit(1)
    try:
        yield
    finally:
        fcntl.fcntl(0, fcntl.F_SETFL, flags)


class _AddressSpace:
    """Notices that memory became short: many decoders then say only that the file is damaged."""

    def __init__(self, memory_bytes: int) -> None:
        self._status = None
        if sys.platform == "linux":
            self._status = os.open("/proc/self/status", os.O_RDONLY)  # later no file can be opened
            self._short = self._peak_bytes() + memory_bytes // 2

    def was_short(self) -> bool:
        """Say whether this process has used more than half of its limit, now or at an earlier image."""
        return self._status is not None and self._peak_bytes() > self._short

    def _peak_bytes(self) -> int:
        match = re.search(rb"VmPeak:\s*(\d+)", os.pread(self._status or 0, 4096, 0))
        return 1024 * int(match[1]) if match else 0


class _CollectedLogs(logging.Handler):
    """Collects messages for the reply."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self._records.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        """Return and forget the messages."""
        records, self._records = self._records, []
        return records


@dataclass(frozen=True)
class _LimitedReader(ImageReader):
    """Allows an image the CPU time of its pixels, which are known once it is open."""

    decoder_limits: DecoderLimits = DecoderLimits(0, 0, 0.0)

    def _read_opened(self, image: Image.Image, file: Any, name: str, fit: Fit | None) -> DecodedImage:
        if sys.platform != "win32":
            limits, (opening_end, _) = self.decoder_limits, resource.getrlimit(resource.RLIMIT_CPU)
            largest = opening_end - limits.opening_seconds + limits.cpu_seconds
            _limit_cpu(min(largest, _used_seconds() + cpu_seconds(image)))
        return super()._read_opened(image, file, name, fit)


def cpu_seconds(image: Image.Image) -> int:
    """Return the CPU time that decoding an opened image may take: several times what it takes on ordinary machines."""
    per_megapixel = _SLOW_SECONDS if image.format in _SLOW_FORMATS else _CPU_SECONDS
    return _OPENING_SECONDS + math.ceil(per_megapixel * image.width * image.height / 1e6)


def _make_reader(document: Mapping[str, Any], limits: DecoderLimits) -> ImageReader:
    values = dict(document)
    values["limits"] = ImageLimits(**values["limits"])
    values["draft_size"] = values["draft_size"] and tuple(values["draft_size"])
    return _LimitedReader(**values, decoder_limits=limits)


def _make_fit(document: Message | None) -> Fit | None:
    if document is None:
        return None
    values = dict(document)
    return _FITS[values.pop("kind")](**values)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether memory that could not be had is behind an error; some decoders say only that the file is damaged."""
    while error is not None:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            return True
        error = error.__cause__
    return False
