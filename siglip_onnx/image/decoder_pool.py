"""A pool of processes that decode images under limits: they stop what no header check foresees.

A process that exceeds its limits is killed, a new one takes its place, and its image is ``too_large``. See
:mod:`.decoder_process` for what runs inside.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import IO, Any, NoReturn

import numpy as np
from PIL import Image

from ..errors import ImageError, SiglipOnnxError
from ..options import RuntimeOptions
from ..system.fork import call_after_fork, renewed_lock, weak_call
from ..system.frozen import check_freeze_support, is_frozen, python_command, support_processes
from ..system.interrupts import broken_pipes_raise, interrupts_deferred
from .decode import DecodedImage, ImageReader, ImageSource
from .decoder_process import (
    KEPT_BYTES,
    OUT_OF_MEMORY,
    DecoderLimits,
    Message,
    describe_fit,
    describe_reader,
    main,
    read_exactly,
    read_shared,
    receive,
    send,
    write_shared,
)
from .guard import check_large_header
from .preprocess import Fit

if sys.platform != "win32":
    import resource

START_SECONDS = 60.0
_END_SECONDS = 5.0
_TOO_LARGE = "too_large"
_BLOCK = 1 << 20
_MAX_MESSAGE = 10_000  # characters of an error or a log line that are passed on
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # the stacks of more would count as memory
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # keep some memory between two images: to get it again is slower than
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # everything else that a process of its own costs
}
_BOOT = "from siglip_onnx.image.decoder_process import main; main()"
_CPU_LIMIT, _KILLED = -getattr(signal, "SIGXCPU", 1000), -getattr(signal, "SIGKILL", 2000)  # exit codes
_ADVICE = "Check the limits of processes and memory, or decode without processes (--no-isolate-decoding)."
_FROZEN_DECODER = "--siglip-onnx-decoder"  # the argument of a frozen program's decoder processes
_log = logging.getLogger(__name__)
_decode_log = logging.getLogger(ImageReader.__module__)  # that of the reader in the process
_logged: set[str] = set()  # notes about this system, each of which is logged once


def freeze_support() -> None:
    """Run the work of a child process of a frozen program (PyInstaller), and end there; elsewhere do nothing.

    Call it first in the main script, under ``if __name__ == "__main__"``; it includes that of multiprocessing.
    """
    support_processes()
    if is_frozen() and sys.argv[1:] == [_FROZEN_DECODER]:
        main()
        sys.exit()


def _command() -> list[str]:
    check_freeze_support()
    if is_frozen():
        return [sys.executable, _FROZEN_DECODER]
    return python_command(_BOOT)


class DecoderPool:
    """Reads images as its :class:`.ImageReader` does, in up to ``size`` processes; for any number of threads.

    Paths and bytes are decoded in the processes, but with ``plain_here`` not those of the formats whose time and memory
    follow from their headers (:data:`.PLAIN_FORMATS`). PIL images and arrays, which the caller has already, are
    converted here. A child that inherits a pool by fork starts its own processes.
    """

    def __init__(
        self, reader: ImageReader, size: int = 1, limits: DecoderLimits | None = None, *, plain_here: bool = False
    ) -> None:
        """Prepare the pool; each process starts when it is first needed."""
        self._reader, self._size, self._plain_here = reader, size, plain_here
        self._limits = limits or DecoderLimits.of_images(reader.limits)
        self._idle: list[_Decoder] = []
        self._running: set[_Decoder] = set()
        self._lock = renewed_lock(self)
        self._slots = threading.BoundedSemaphore(size)
        call_after_fork(self, weak_call(self._abandon))
        self._finalizer = weakref.finalize(self, _kill_all, self._running)  # also when the interpreter ends

    @property
    def reader(self) -> ImageReader:
        """What reads an image in each process."""
        return self._reader

    def read(self, source: ImageSource, fit: Fit | None = None) -> DecodedImage:
        """Decode an image and resize it by ``fit``, as :meth:`.ImageReader.read` does.

        Raises:
            ImageError: as there; ``too_large`` if it exceeded the limits of its process.
            SiglipOnnxError: no process can be started.
        """
        if isinstance(source, np.ndarray | Image.Image):
            return self._reader.read(source, fit)
        limits = self._reader.limits
        with self._reader.open_source(source) as (file, name):
            if self._plain_here and (decoded := self._reader.read_plain(file, name, fit)) is not None:
                return decoded
            size_bytes = file.seek(0, os.SEEK_END)
            limits.check_bytes(size_bytes, name)
            check_large_header(file, limits, name)
            if size_bytes > KEPT_BYTES:  # block by block
                return self._decode(file, size_bytes, name, fit)
            data = file.read(size_bytes + 1)
        limits.check_bytes(len(data), name)
        return self._decode(io.BytesIO(data), len(data), name, fit)

    def _decode(self, file: IO[bytes], size_bytes: int, name: str, fit: Fit | None) -> DecodedImage:
        with self._slots:
            try:
                return self._decode_in(self._take(), file, size_bytes, name, fit)
            except _DecoderEndedError as end:
                if not end.try_again:
                    raise _refusal(name, end) from end
            try:  # an earlier image, or the system, may have been the cause: once more, in a new process
                return self._decode_in(self._start(), file, size_bytes, name, fit)
            except _DecoderEndedError as end:
                raise _refusal(name, end) from end

    def start(self) -> None:
        """Start one process ahead of its first image.

        Raises:
            SiglipOnnxError: no process can be started.
        """
        with self._slots:
            self._release(self._take())

    def close(self) -> None:
        """End all processes; images in progress fail. A closed pool starts new ones when it is used again."""
        with self._lock:
            idle, used = self._idle.copy(), self._running.difference(self._idle)
            self._idle.clear()
            self._running.clear()
        for decoder in idle:
            decoder.kill()
        for decoder in used:
            decoder.end()  # the thread that waits for it closes its descriptors

    def _decode_in(
        self, decoder: _Decoder, file: IO[bytes], size_bytes: int, name: str, fit: Fit | None
    ) -> DecodedImage:  # fmt: skip
        try:
            result = decoder.decode(file, size_bytes, name, fit)
        except ImageError:
            self._release(decoder)
            raise
        except BaseException as error:  # including Ctrl-C: the process is in the middle of an image
            if not self._discard(decoder) and isinstance(error, _DecoderEndedError):
                raise SiglipOnnxError(f"{name} was not decoded: its decoder pool was closed meanwhile.") from error
            raise
        self._release(decoder)
        return result

    def _release(self, decoder: _Decoder) -> None:
        with self._lock:
            is_open = decoder in self._running
            if is_open:
                self._idle.append(decoder)
        if not is_open:  # the pool was closed meanwhile
            decoder.kill()

    def _discard(self, decoder: _Decoder) -> bool:
        """End a process; False if the pool was closed meanwhile, which ended it."""
        with self._lock:
            is_open = decoder in self._running
            self._running.discard(decoder)
        decoder.kill()
        return is_open

    def _take(self) -> _Decoder:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _start(self) -> _Decoder:
        decoder = None
        try:
            with interrupts_deferred():  # a process of which the pool does not know would not be ended
                decoder = _Decoder(self._reader, self._limits)
                with self._lock:
                    self._running.add(decoder)
            decoder.wait_until_ready()
        except BaseException as error:
            if decoder is not None and not self._discard(decoder) and isinstance(error, SiglipOnnxError):
                raise SiglipOnnxError("A decoder process was not started: its pool was closed meanwhile.") from error
            raise
        return decoder

    def _abandon(self) -> None:
        """Let go of the processes of the parent, in a forked child."""
        for decoder in self._running:
            decoder.abandon()
        self._running.clear()
        self._idle.clear()
        self._slots = threading.BoundedSemaphore(self._size)


def open_reader(
    options: RuntimeOptions, draft_size: tuple[int, int] | None = None, *, size: int | None = None
) -> ImageReader | DecoderPool:
    """Return a reader with these options: a pool of ``size`` processes if they say so, by default one per worker."""
    reader = ImageReader(options.image_limits, options.allow_truncated, draft_size, options.background)
    if options.isolate_decoding is False:
        return reader
    return DecoderPool(reader, size or options.workers, plain_here=options.isolate_decoding is None)


class _DecoderEndedError(Exception):
    """A process ended in the middle of an image.

    ``status`` is that of the image; ``try_again`` says that another cause is possible, so that a new process may do.
    """

    def __init__(self, reason: str, status: str, *, try_again: bool) -> None:
        super().__init__(reason)
        self.status, self.try_again = status, try_again


class _Decoder:
    """One process, as its pool sees it."""

    def __init__(self, reader: ImageReader, limits: DecoderLimits) -> None:
        self._limits, self._max_pixels = limits, reader.limits.max_pixels
        self._num_images, self._began = 0, 0.0
        self._expired = False
        self._memory = _create_memory(max(3 * reader.limits.max_pixels, reader.limits.max_bytes))
        kept = () if self._memory is None else (self._memory,)
        try:
            self._process: Any = subprocess.Popen(  # noqa: S603 - this package
                _command(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, pass_fds=kept,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C goes to the parent alone
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )  # fmt: skip
        except OSError as error:
            self._close_memory()
            raise SiglipOnnxError(
                f"No process can be started to decode images: {error.strerror or error}. {_ADVICE}"
            ) from error
        self._settings: Message = {
            "reader": describe_reader(reader), "limits": vars(limits), "memory": self._memory,
        }  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait until the process has set its limits.

        Raises:
            SiglipOnnxError: it ended instead.
        """
        reply = None
        with contextlib.suppress(OSError, ValueError), broken_pipes_raise():  # it ended, or is not a decoder
            send(self._process.stdin, self._settings)
            reply = self._receive(START_SECONDS)
        if reply is None:
            code = self._wait()
            raise SiglipOnnxError(
                f"The process {sys.executable} that decodes images did not start ({_describe_exit(code)}). {_ADVICE}"
            )
        if missing := reply.get("missing_limits"):
            _log_once(f"On this system the limits of {', '.join(map(str, missing))} of decoder processes do not hold.")

    def decode(self, file: IO[bytes], size_bytes: int, name: str, fit: Fit | None) -> DecodedImage:
        """Decode one file, from its beginning.

        Raises:
            ImageError: the file cannot be read.
            _DecoderEndedError: the process ended.
        """
        self._num_images, self._began = self._num_images + 1, time.monotonic()
        request = {"bytes": size_bytes, "name": name, "fit": describe_fit(fit)}
        file.seek(0)
        try:
            with broken_pipes_raise():
                self._send(request, file, size_bytes)
            reply = self._receive(self._limits.wall_seconds)
            return self._result(reply, size_bytes) if reply else self._raise_end()
        except (BrokenPipeError, ConnectionResetError):
            self._raise_end()
        except ImageError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # it was hijacked or corrupted
            self._process.kill()
            raise _DecoderEndedError("an invalid reply", "decode_error", try_again=False) from error

    def _send(self, request: Message, file: IO[bytes], size_bytes: int) -> None:
        if self._memory is None:
            data = file.read(size_bytes)
            send(self._process.stdin, request | {"bytes": len(data)}, data)
        else:
            _copy(file, size_bytes, self._memory)
            send(self._process.stdin, request)

    def _result(self, reply: Message, file_bytes: int) -> DecodedImage:
        """Return the image of a reply, or raise its error; nothing in it is taken for granted."""
        for level, line in reply.get("logs", ()):
            _decode_log.log(int(level), "%s", str(line)[:_MAX_MESSAGE])
        if "error" in reply:
            self._shrink(file_bytes)
            raise _image_error(reply)
        return self._read_image(reply, file_bytes)

    def end(self) -> None:
        """End the process at once, also while another thread waits for it."""
        self._process.kill()
        self._wait()

    def kill(self) -> None:
        """End the process at once, and close its descriptors: for the thread that uses them, or when none does."""
        self.end()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self._close_memory()

    def abandon(self) -> None:
        """Let go of the process without ending it: it belongs to the parent of this forked child."""
        for stream in (self._process.stdin, self._process.stdout):
            stream.close()
        self._process.returncode = 0  # it is not a child of this process
        self._close_memory()

    def _receive(self, seconds: float) -> Message | None:
        """Return the next message, None if the process ends, or exceeds its time and is killed."""
        if hasattr(select, "poll"):
            waiting = select.poll()
            waiting.register(self._process.stdout, select.POLLIN)
            if not waiting.poll(seconds * 1000):
                self._expire()
            return receive(self._process.stdout)
        timer = threading.Timer(seconds, self._expire)  # Windows cannot wait for a pipe
        timer.daemon = True
        timer.start()
        try:
            return receive(self._process.stdout)
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()

    def _read_image(self, reply: Message, file_bytes: int) -> DecodedImage:
        width, height = map(int, reply["fitted"])
        if not (width > 0 and height > 0 and width * height <= self._max_pixels):
            raise ValueError(f"an image of {width}x{height} pixels")
        count = 3 * width * height
        if self._memory is None:
            pixels = read_exactly(self._process.stdout, count)
        else:
            pixels = read_shared(self._memory, count)
            self._shrink(max(count, file_bytes))
        full_width, full_height = map(int, reply["size"])
        rgb = Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        return DecodedImage(rgb, bool(reply["truncated"]), (full_width, full_height))

    def _shrink(self, used_bytes: int) -> None:
        """Return shared memory to the system, if it is much."""
        if self._memory is not None and used_bytes > KEPT_BYTES:
            os.ftruncate(self._memory, 0)

    def _raise_end(self) -> NoReturn:
        """Raise the error that says why the process has ended."""
        if self._expired:
            reason, status, is_final = f"more than {self._limits.wall_seconds:.0f} seconds", _TOO_LARGE, True
        else:
            code = self._wait()
            if code == 0 and time.monotonic() - self._began >= self._limits.opening_seconds:
                code = _CPU_LIMIT  # in a host that ignores SIGCHLD, the code of a child is not known
            cpu = "more CPU time than images of its size need"
            memory = f"more than {self._limits.memory_bytes:,} bytes of memory"
            reason, status, is_final = {
                OUT_OF_MEMORY: (memory, _TOO_LARGE, False),
                _CPU_LIMIT: (cpu, _TOO_LARGE, True),
                _KILLED: ("more memory than the system has", _TOO_LARGE, False),
            }.get(code, (_describe_exit(code), "decode_error", False))
        raise _DecoderEndedError(reason, status, try_again=self._num_images > 1 and not is_final)

    def _wait(self) -> int:
        """Wait for the end of the process, which must be near, and return its exit code."""
        try:
            code: int = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code

    def _close_memory(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            os.close(memory)


def _create_memory(max_bytes: int) -> int | None:
    """Return the descriptor of shared memory, which has no name and ends with its last user; None if there is none.

    It needs no ``/dev/shm``, which containers often make small or read-only. Limits of files apply to it.
    """
    if (limit := _largest_file()) is not None and limit < max_bytes:
        _log_once(
            "Images pass to their decoder processes through pipes instead of shared memory, because files may have "
            f"only {limit:,} bytes (ulimit -f)."
        )
        return None
    try:
        memory: int = os.memfd_create("siglip_onnx")  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, OSError) as error:
        problem = getattr(error, "strerror", None) or "this system has none"
        _log_once(f"Images pass to their decoder processes through pipes instead of shared memory ({problem}).")
        return None
    low = []
    while memory <= 2:  # the parent's own streams are closed; those of the process would replace it
        low.append(memory)
        memory = os.dup(memory)
    for descriptor in low:
        os.close(descriptor)
    return memory


def _copy(file: IO[bytes], size_bytes: int, memory: int) -> None:
    """Copy a file to shared memory, in which the zeros of a large one, such as those of holes, take nothing."""
    if size_bytes <= KEPT_BYTES:
        write_shared(memory, file.read(size_bytes))
        return
    os.ftruncate(memory, 0)
    os.ftruncate(memory, size_bytes)
    zeros = bytes(_BLOCK)
    for position in range(0, size_bytes, _BLOCK):
        block = file.read(min(_BLOCK, size_bytes - position))
        if block != zeros[: len(block)]:
            write_shared(memory, block, position)


def _largest_file() -> int | None:
    """Return how many bytes a file of this process may have; None if there is no limit."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _kill_all(decoders: set[_Decoder]) -> None:
    while decoders:
        decoders.pop().kill()


def _image_error(reply: Message) -> ImageError:
    status = str(reply.get("status"))
    known = status if status in ImageError.STATUSES else "decode_error"
    return ImageError(str(reply["error"])[:_MAX_MESSAGE], status=known)


def _refusal(name: str, end: _DecoderEndedError) -> ImageError:
    if end.status == _TOO_LARGE:
        return ImageError(f"{name} takes {end} to decode; resize it.", status=_TOO_LARGE)
    return ImageError(f"{name} is damaged: it crashed its decoder ({end}).", status=end.status)


def _describe_exit(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _log_once(note: str) -> None:
    if note not in _logged:
        _logged.add(note)
        _log.warning("%s", note)
