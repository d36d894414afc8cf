"""Run ``siglip-onnx`` in processes, and measure the time and memory of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Return the command line of ``siglip-onnx``."""
    return [sys.executable, "-m", "siglip_onnx", *arguments]


def run(*arguments: str) -> int:
    """Run ``siglip-onnx`` to its end and return its exit code, 0 or 3."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode in (0, 3), done.stderr
    return done.returncode


def seconds_of(function: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 3)


def watch_memory(arguments: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command; return its seconds and the peak memory of its process, of a worker, and of all together."""
    began, own, worker, together = time.perf_counter(), 0.0, 0.0, 0.0
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:
            pids = [process.pid, *descendants(process.pid)]
            sizes = [memory_mb(pid, "VmRSS") for pid in pids]
            own, worker = max(own, sizes[0]), max(worker, *sizes[1:], 0.0)
            together = max(together, sum(sizes))
            time.sleep(0.05)
    seconds = time.perf_counter() - began
    return seconds, {"main_process_mb": own, "largest_worker_mb": worker, "sum_of_processes_mb": round(together, 1)}


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(pid for child in children for pid in descendants(child))]


def memory_mb(pid: int, field: str) -> float:
    """Return a field of ``/proc/PID/status`` in MB, 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:")), 0.0)


def anonymous_memory_mb() -> float:
    """Return this process's memory outside mapped files."""
    return memory_mb(os.getpid(), "RssAnon")
