"""Run the command line, in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner, Result

from siglip_onnx.cli import main


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def command(*arguments: object) -> list[str]:
    """Return the command line for another process."""
    return [sys.executable, "-m", "siglip_onnx", *map(str, arguments)]


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in another process."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def run_without(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which ``package`` cannot be imported."""
    code = f"import sys; sys.modules[{package!r}] = None\nfrom siglip_onnx.cli import main\nmain(sys.argv[1:])"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)
