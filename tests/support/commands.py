"""Run the command line, in this process or in one of its own."""

import subprocess
import sys

from click.testing import CliRunner, Result

from siglip_onnx.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "siglip_onnx", *map(str, arguments)]


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def run_without(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which ``package`` cannot be imported."""
    code = f"import sys; sys.modules[{package!r}] = None\nfrom siglip_onnx.cli import main\nmain(sys.argv[1:])"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def assert_error(result: Result | subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """Check that a command ended with this exit code and message, and without a traceback."""
    ended = result.exit_code if isinstance(result, Result) else result.returncode
    assert ended == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
