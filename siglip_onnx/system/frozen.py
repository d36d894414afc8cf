"""Programs that PyInstaller and the like froze into one executable: their child processes are that executable too."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import SiglipOnnxError

_supported: list[bool] = []


def is_frozen() -> bool:
    """Say whether this program is frozen."""
    return bool(getattr(sys, "frozen", False))


def support_processes() -> None:
    """Run the work of multiprocessing's child processes, and end there; note that this program does so."""
    _supported.append(True)
    multiprocessing.freeze_support()


def check_freeze_support() -> None:
    """Check that a frozen program hands child processes their work; otherwise each would start the program again.

    Raises:
        SiglipOnnxError: it does not.
    """
    if is_frozen() and not _supported:
        raise SiglipOnnxError(
            "This program is frozen, and its child processes would start it again. Call siglip_onnx.freeze_support() "
            'first in its main script, under: if __name__ == "__main__"'
        )


def _interpreter() -> list[str]:
    """Return the command of a Python with the same isolation (``-I``, ``-E``, ``-s``) as this one.

    Raises:
        SiglipOnnxError: this program is frozen, or embeds Python, and names no Python to start.
    """
    if is_frozen():
        raise SiglipOnnxError("A frozen program cannot do this. Use siglip_onnx as it is installed by pip.")
    if not sys.executable:
        raise SiglipOnnxError("sys.executable is empty, so that no process can be started; set it to a Python.")
    flags = sys.flags
    if flags.isolated:
        return [sys.executable, "-I"]
    return [sys.executable, *(["-E"] if flags.ignore_environment else []), *(["-s"] if flags.no_user_site else [])]


def python_command(code: str, *first: Path) -> list[str]:
    """Return the command of a Python that runs code with the isolation and the search path of this one.

    Python would look for modules in the current folder first, where a stranger's ``numpy.py`` may lie, for ``-c`` and
    ``-m`` alike; ``first`` are folders to look in before the others.

    Raises:
        SiglipOnnxError: this program is frozen, or embeds Python, and names no Python to start.
    """
    # Python ignores others.
    path = [*map(str, first), *(place for place in sys.path if isinstance(place, str) and "\0" not in place)]
    # Each as an argument, whose length is limited.
    start = f"import sys; sys.path[:] = sys.argv[1:{len(path) + 1}]; del sys.argv[1:{len(path) + 1}]; {code}"
    return [*_interpreter(), "-P", "-c", start, *path]


def module_command(module: str, *arguments: str, first: Sequence[Path] = ()) -> list[str]:
    """Return the command of a Python that runs a module as ``-m`` does; see :func:`python_command`."""
    code = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [*python_command(code, *first), *arguments]
