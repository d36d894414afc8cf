"""Embed a folder with planted faults and compare the recorded errors with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from siglip_onnx.demo import NAME

from .inputs import FAULTS, empty_path, make_images
from .processes import run, seconds_of


def measure_faults(work: Path, scale: float) -> dict[str, Any]:
    """Embed 10,000 inputs, of which 1 % have faults of ten kinds; ``scale`` makes them fewer."""
    count = max(100, round(10_000 * scale))
    num_faults = max(len(FAULTS), count // 100)
    folder = make_images(work / "faults", count - num_faults)
    planted = {}
    for number in range(num_faults):
        kind = list(FAULTS)[number % len(FAULTS)]
        path = folder / f"fault_{number:03}.{'png' if kind == 'bomb' else 'jpg'}"
        FAULTS[kind][0](path)
        planted[str(path)] = FAULTS[kind][1]
    out, codes = empty_path(work / "out"), []
    seconds = seconds_of(lambda: codes.append(run("embed", str(folder), "--model", NAME, "--out", str(out))))
    rows = [json.loads(line) for path in sorted((out / "rows").iterdir()) for line in path.read_text().splitlines()]
    recorded = {row["path"]: row["status"] for row in rows if row["status"] != "ok"}
    return {
        "inputs": count, "rows": len(rows), "exit code": codes[0], "planted": dict(Counter(planted.values())),
        "errors are exactly the planted": recorded == planted, "seconds": round(seconds, 1),
    }  # fmt: skip
