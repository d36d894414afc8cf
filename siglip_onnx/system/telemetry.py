"""Switch off the telemetry of onnxruntime, before it is imported.

onnxruntime's Linux wheel reports to its vendor as soon as it is imported; only an environment variable prevents that.
"""

from __future__ import annotations

import os
import sys
from typing import Any

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
ONNXRUNTIME_CAME_FIRST = "onnxruntime" in sys.modules and os.environ.get(TELEMETRY_VARIABLE) != "1"
os.environ.setdefault(TELEMETRY_VARIABLE, "1")


def telemetry_state() -> dict[str, Any]:
    """Return whether onnxruntime's telemetry is off, and what was set when it was imported."""
    variable = os.environ.get(TELEMETRY_VARIABLE)
    return {"off": variable == "1" and not ONNXRUNTIME_CAME_FIRST, TELEMETRY_VARIABLE: variable,
            "onnxruntime_imported_first": ONNXRUNTIME_CAME_FIRST}  # fmt: skip
