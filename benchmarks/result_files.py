"""Read and write the committed results in benchmarks/results/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_onnx.system.files import write_atomic

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of a file."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, the whole file or nothing."""
    write_atomic(path, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
