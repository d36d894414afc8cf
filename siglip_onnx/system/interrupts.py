"""Signals: Ctrl-C ends this process without a traceback, and not its children; a broken pipe is an error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # exit code


def interrupts_end_process() -> None:
    """Let Ctrl-C end this process at once from now on, with a message; a program that ignores it is left alone."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_process)


def end_process(_number: int, _frame: FrameType | None) -> None:
    """End this process at once, with a message: a handler of signals."""
    if sys.stderr is not None:  # otherwise its descriptor may be that of another file
        with contextlib.suppress(OSError):
            os.write(2, b"siglip-onnx: interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block, if Ctrl-C arrives within it.

    A child that is started within the block is whole, and known to its parent, before the parent is interrupted. In
    other threads than the main one, in which Python never raises KeyboardInterrupt, and where Ctrl-C is ignored, this
    does nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: received.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(signal.SIGINT, received[0])


@contextlib.contextmanager
def children_uninterrupted() -> Iterator[None]:
    """Block Ctrl-C for good in the processes that are started within the block: their parent ends them."""
    with _blocked("SIGINT"):
        yield


@contextlib.contextmanager
def broken_pipes_raise() -> Iterator[None]:
    """Let writing to a process that has ended raise BrokenPipeError, also in a host that lets SIGPIPE end itself."""
    with _blocked("SIGPIPE") as number:
        try:
            yield
        finally:
            if number is not None and number in signal.sigpending():
                signal.sigwait({number})


@contextlib.contextmanager
def _blocked(name: str) -> Iterator[signal.Signals | None]:
    """Block a signal within the block, and yield its number; on Windows, which cannot block signals, None."""
    if not hasattr(signal, "pthread_sigmask"):
        yield None
        return
    number = signal.Signals[name]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield number
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
