"""``siglip-onnx`` and ``python -m siglip_onnx``: the command line, whose imports Ctrl-C may interrupt too."""

from __future__ import annotations

import os
from importlib import import_module

from .system.interrupts import interrupts_end_process


def main() -> None:
    """Run the command line; Ctrl-C ends the process without a traceback before a command, within it and after it."""
    interrupts_end_process()
    # The threads of numpy's OpenBLAS would compute nothing for the first 50 ms of each process, but occupy the CPUs.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    import_module("siglip_onnx.cli").main(prog_name="siglip-onnx")


if __name__ == "__main__":
    main()
