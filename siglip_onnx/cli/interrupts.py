"""Ctrl-C: the first one interrupts the command, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..system.interrupts import INTERRUPTED, end_process

_AGAIN_SECONDS = 0.02


@contextmanager
def second_interrupt_ends() -> Iterator[None]:
    """End the process with exit code 130 at the second Ctrl-C within the block or after it.

    After the first one, the command closes what is open, which may wait for a running graph. A second
    KeyboardInterrupt there would leave threads of onnxruntime behind, which abort the process when Python ends.
    The program ``siglip-onnx`` ends at the first one before the block, where nothing is open: see
    :func:`.interrupts_end_process`.
    """
    before, in_main_thread = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if not in_main_thread or before not in (signal.default_int_handler, end_process):
        yield  # a shell lets background jobs ignore Ctrl-C
        return
    signal.signal(signal.SIGINT, _interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _end_silently)
    raise KeyboardInterrupt


def _interrupt_again(unraisable: Any) -> None:
    """Repeat a KeyboardInterrupt that came to nothing because it was raised in a destructor, such as importlib has."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGINT, _interrupt)
        threading.Timer(_AGAIN_SECONDS, _press_ctrl_c).start()
    else:
        sys.__unraisablehook__(unraisable)


def _press_ctrl_c() -> None:
    """Interrupt the main thread, which may sleep: a signal to another thread would not wake it."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        signal.raise_signal(signal.SIGINT)


def _end_silently(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
