"""Compare the peak memory of small and large jobs, and time a run that has nothing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siglip_onnx.bulk.listing import Listing
from siglip_onnx.demo import NAME

from .inputs import empty_path, make_images
from .processes import command, run, seconds_of, watch_memory


def measure_memory(work: Path, scale: float) -> dict[str, Any]:
    """Measure jobs of 1,000 and 100,000 images; ``scale`` makes them fewer."""
    counts = round(1_000 * scale), round(100_000 * scale)
    facts: dict[str, Any] = {}
    arguments: dict[int, list[str]] = {}
    for count in counts:
        folder, out = make_images(work / f"memory_{count}", count, linked=True), empty_path(work / f"out_{count}")
        # Small shards, so that both jobs have work for two workers.
        arguments[count] = ["embed", str(folder), "--model", NAME, "--shard-size", "500", "--out", str(out)]
        seconds, peaks = watch_memory(command(*arguments[count]))
        facts[f"{count} images"] = {"seconds": round(seconds, 1)} | peaks
    listed: list[int] = []
    scan = seconds_of(lambda: listed.append(sum(1 for _ in Listing([work / f"memory_{counts[-1]}"]))))
    again = {count: min(seconds_of(lambda: run(*arguments[count])) for _ in range(3)) for count in counts}  # noqa: B023
    few, many = (facts[f"{count} images"]["sum_of_processes_mb"] for count in counts)
    up_to_date = {
        "inputs": listed[0],
        "scan_seconds": round(scan, 2),
        "whole_process_seconds": again[counts[1]],
        "whole_process_seconds_of_the_small_job": again[counts[0]],
    }
    return facts | {"ratio": round(many / few, 3), "up-to-date run": up_to_date}
