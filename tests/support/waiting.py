"""Wait for something, but not forever: a test that hangs would stop all others."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true; it fails after some time, which is generous: the machine may be busy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds:g} s"
        time.sleep(0.005)
