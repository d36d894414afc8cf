"""Run the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run_without(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``siglip-onnx`` with ``arguments`` in a process in which ``package`` cannot be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from siglip_onnx.cli import main\n"
        f"main({[str(argument) for argument in arguments]!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
