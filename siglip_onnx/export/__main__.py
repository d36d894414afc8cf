"""``python -m siglip_onnx.export CHECKPOINT OUT PRECISION...``: export for another process.

See :mod:`..system.steps`.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from ..errors import SiglipOnnxError
from ..system.steps import write_error, write_step
from .pipeline import export_bundle

_SECONDS_BETWEEN = 10.0  # lines within a step


def main(checkpoint: str, out: str, *precisions: str) -> int:
    """Export, and return the exit code; SIGTERM, with which :func:`.run_steps` ends this process, leaves no file."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    last_written = time.monotonic()

    def report(step: str) -> None:
        nonlocal last_written
        last_written = time.monotonic()
        write_step(step=step)

    def progress(part: str, done: int, total: int) -> None:
        if time.monotonic() - last_written > _SECONDS_BETWEEN:
            report(f"{part}: {done} of {total}")

    try:
        export_bundle(Path(checkpoint), Path(out), precisions=precisions, report=report, progress=progress)
    except SiglipOnnxError as error:
        return write_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
