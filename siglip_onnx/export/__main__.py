"""``python -m siglip_onnx.export CHECKPOINT OUT PRECISION...``: export for another process, which reads JSON lines.

Each line of stdout is ``{"step": ...}``, or at the end ``{"error": <class of siglip_onnx.errors>, "message": ...}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..errors import SiglipOnnxError
from .pipeline import export_bundle


def main(checkpoint: str, out: str, *precisions: str) -> int:
    """Export, and return the exit code."""

    def write(**entry: str) -> None:
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()

    try:
        export_bundle(Path(checkpoint), Path(out), precisions=precisions, report=lambda step: write(step=step))
    except SiglipOnnxError as error:
        write(error=type(error).__name__, message=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
