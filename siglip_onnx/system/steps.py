"""Run a module of this package in a process of its own, which reports its steps as JSON lines on stdout.

Each line is ``{"step": ...}``, or at the end ``{"result": ...}`` or ``{"error": <class of errors>, "message": ...}``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import SiglipOnnxError
from .frozen import module_command
from .interrupts import children_uninterrupted, interrupts_deferred

if sys.platform != "win32":
    import resource

_END_SECONDS = 10.0


class Outcome(NamedTuple):
    """How a process ended: its exit code, its result, and the class and message of its error, or its last step."""

    exit_code: int
    result: Any
    error: str
    message: str


def run_steps(module: str, arguments: Sequence[str], report: Callable[[str], None]) -> Outcome:
    """Run a module, as ``python -m`` does, and report its steps; lines that libraries print count as steps.

    Ctrl-C and other exceptions end the process with SIGTERM, on which a module that writes files must remove them.
    """
    result, error, message = None, "", "no message"
    with _running(module_command(module, *arguments)) as process:
        for line in process.stdout or ():
            entry = _parse_line(line)
            if "result" in entry:
                result = entry["result"]
            elif "error" in entry:
                error, message = entry["error"], entry["message"]
            elif not error:
                message = entry["step"]
                report(message)
    return Outcome(process.returncode, result, error, message)


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process; at the end of the block wait for it, or after an exception end it."""
    process = None
    try:
        with interrupts_deferred(), children_uninterrupted():
            process = subprocess.Popen(  # noqa: S603
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
        yield process
        process.wait()
    finally:
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process unless it has ended."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def write_step(**entry: Any) -> None:
    """Write one line, in the process that :func:`run_steps` started."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def write_error(error: SiglipOnnxError) -> int:
    """Write an error as the last line; return the exit code."""
    write_step(error=type(error).__name__, message=str(error))
    return error.exit_code


def limit_process(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit this process for good, where the system can: the address space beyond what it uses now, and its CPU time.

    Only Linux limits the address space, and Windows neither.
    """
    if sys.platform == "win32":
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + cpu_seconds)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + memory_bytes)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _parse_line(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and ("step" in entry or "result" in entry or {"error", "message"} <= entry.keys()):
            return entry
    return {"step": line.strip()}
