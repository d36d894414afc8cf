"""Measure whole commands from start to end: the time and memory that a user of the command line sees."""

from __future__ import annotations

import compileall
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_files import ROOT

from siglip_onnx.bench.process import last_line
from siglip_onnx.errors import BenchmarkError

TEXTS = ("--text", "a photo of a cat", "--text", "犬の写真")
# A small parent process, because a child starts with the memory of the process that started it.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
seconds = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss / (1024 * (1024 if sys.platform == "darwin" else 1))
print(json.dumps([done.returncode, seconds, used.ru_utime + used.ru_stime, peak, done.stderr.decode(errors="replace")]))
"""


def measure_commands(bundle: Path, image: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Return seconds and peak memory of each command, run in alternating order for so many rounds."""
    commands = start_commands(bundle, image, work)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name in commands if turn % 2 == 0 else reversed(commands):
            runs[name].append(run_command(commands[name]))
    return {name: summarize_runs(results) for name, results in runs.items()}


def start_commands(bundle: Path, image: Path, work: Path, checkout: Path = ROOT) -> dict[str, Sequence[str]]:
    """Return commands by what they do, and fill the label cache that one of them reads."""
    work.mkdir(parents=True, exist_ok=True)
    cache = work / "label_cache"
    shutil.rmtree(cache, ignore_errors=True)
    model = ["--model", str(bundle)]
    classify = ["classify", str(image), *TEXTS, *model]
    commands: dict[str, Sequence[str]] = {
        "classify, one image and two texts": classify,
        "classify, texts known from the cache": [*classify, "--cache", str(cache)],
        "embed one text (text tower alone)": ["embed", *TEXTS[:2], "--out", str(work / "text.npy"), *model],
        "embed one image (vision tower alone)": ["embed", str(image), "--out", str(work / "image.npy"), *model],
        "--help": ["--help"],
    }  # fmt: skip
    run_command([*classify, "--cache", str(cache)], checkout)  # fills it
    return commands


def measure_export(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Return the time and memory of an export to fp32 and int8."""
    return summarize_runs([run_command(["export", str(checkpoint), str(out), "--overwrite"])])


def run_command(arguments: Sequence[str], checkout: Path = ROOT) -> dict[str, float]:
    """Run ``siglip-onnx`` of a checkout in a fresh process; return its seconds, those of CPUs, and its own peak memory.

    Raises:
        BenchmarkError: it failed.
    """
    compile_package(checkout)
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "siglip_onnx", *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    output = subprocess.run(command, capture_output=True, check=True, env=environment).stdout  # noqa: S603 - ourselves
    status, seconds, cpu_seconds, peak, stderr = json.loads(output)
    if status:
        raise BenchmarkError(f"siglip-onnx {' '.join(arguments)} failed: {last_line(stderr) or f'status {status}'}")
    return {"seconds": round(seconds, 4), "cpu_seconds": round(cpu_seconds, 4), "peak_memory_mb": round(peak, 1)}


@functools.cache
def compile_package(checkout: Path = ROOT) -> None:
    """Write the bytecode of a checkout's package, which an installation has.

    Otherwise, in an environment where Python writes none, every process would compile the package again.
    """
    compileall.compile_dir(checkout / "siglip_onnx", quiet=2)


def summarize_runs(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return minimum, median and all seconds, and the largest peak memory."""
    seconds = [run["seconds"] for run in runs]
    return {
        "min_seconds": round(min(seconds), 3),
        "median_seconds": round(statistics.median(seconds), 3),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "seconds": seconds,
    }
