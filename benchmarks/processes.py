"""Whole commands, from their start to their end: what a user of the command line waits for and needs memory for."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_onnx.bench.process import run_command

TEXTS = ("--text", "a photo of a cat", "--text", "犬の写真")


def measure_commands(bundle: Path, picture: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Return seconds and peak memory of each command, run in turn for so many rounds."""
    work.mkdir(parents=True, exist_ok=True)
    cache = work / "label_cache"
    shutil.rmtree(cache, ignore_errors=True)
    model = ["--model", str(bundle)]
    classify = ["classify", str(picture), *TEXTS, *model]
    commands: dict[str, Sequence[str]] = {
        "classify, one picture and two texts": classify,
        "classify, texts known from the cache": [*classify, "--cache", str(cache)],
        "embed one text (text tower alone)": ["embed", *TEXTS[:2], "--out", str(work / "text.npy"), *model],
        "embed one picture (vision tower alone)": ["embed", str(picture), "--out", str(work / "one.npy"), *model],
        "--help": ["--help"],
    }  # fmt: skip
    run_command([*classify, "--cache", str(cache)])  # fills it
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name in commands if turn % 2 == 0 else reversed(commands):
            runs[name].append(run_command(commands[name]))
    return {name: describe(found) for name, found in runs.items()}


def measure_export(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Return what an export to fp32 and int8 costs."""
    return describe([run_command(["export", str(checkpoint), str(out), "--overwrite"])])


def describe(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return minimum, median and all seconds, and the largest peak memory."""
    seconds = [run["seconds"] for run in runs]
    return {
        "min_seconds": round(min(seconds), 3),
        "median_seconds": round(statistics.median(seconds), 3),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "seconds": seconds,
    }
