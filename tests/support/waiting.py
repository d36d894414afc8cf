"""Wait for something, and for processes to end, but not forever: a test that hangs would stop all others."""

import os
import signal
import subprocess
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true; it fails after some time, which is generous: the machine may be busy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds:g} s"
        time.sleep(0.005)


def interrupt(process: subprocess.Popen[str], *, group: bool = False) -> str:
    """Interrupt a process, or its group, as Ctrl-C does; return what it printed on stderr, when it has ended.

    A signal that arrives just before a system call that waits is noticed only after it; as a user would, it is sent
    again. A process that does not end is killed, so that the test fails instead of waiting for it.
    """
    for _ in range(4):
        os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    raise AssertionError("the process does not end at Ctrl-C")
