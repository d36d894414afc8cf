"""Switch off the telemetry of onnxruntime and OpenVINO, before they are imported.

onnxruntime's Linux wheel reports to its vendor as soon as it is imported; only an environment variable prevents that.
OpenVINO's conversion tools do so too, and write an id to the home folder; they are not needed to run a model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
OPENVINO_TOOLS = "openvino.tools.ovc"
ONNXRUNTIME_CAME_FIRST = "onnxruntime" in sys.modules and os.environ.get(TELEMETRY_VARIABLE) != "1"
os.environ.setdefault(TELEMETRY_VARIABLE, "1")


def telemetry_state() -> dict[str, Any]:
    """Return whether onnxruntime's telemetry is off, and what was set when it was imported."""
    variable = os.environ.get(TELEMETRY_VARIABLE)
    return {"off": variable == "1" and not ONNXRUNTIME_CAME_FIRST, TELEMETRY_VARIABLE: variable,
            "onnxruntime_imported_first": ONNXRUNTIME_CAME_FIRST}  # fmt: skip


@contextmanager
def without_openvino_tools() -> Iterator[None]:
    """Import openvino within this context without its conversion tools, which it does without."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(OPENVINO_TOOLS, None)  # an import of None fails
    try:
        yield
    finally:
        if modules[OPENVINO_TOOLS] is None:
            del modules[OPENVINO_TOOLS]
