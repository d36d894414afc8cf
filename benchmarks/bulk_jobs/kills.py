"""Kill jobs at random moments, run them again, and compare the output with that of an uninterrupted run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from siglip_onnx.demo import NAME

from .inputs import SEED, empty_path, make_images
from .processes import command, run


def measure_kills(work: Path, scale: float) -> dict[str, Any]:
    """Kill a job of 80 shards 20 times; ``scale`` makes both fewer."""
    shards, kills = max(2, round(80 * scale)), max(2, round(20 * scale))
    images = make_images(work / "kills", 50 * shards)
    arguments = ["embed", str(images), "--model", NAME, "--shard-size", "50", "--out"]
    usual = kill_after(float("inf"), [*arguments, str(empty_path(work / "whole"))], work / "whole")
    whole = hash_files(work / "whole")
    identical, finished, twice = 0, [], 0
    for delay in np.random.default_rng(SEED).uniform(0, usual, kills):
        out = empty_path(work / "killed")
        kill_after(delay, [*arguments, str(out)], out)
        finished.append(len(list(out.glob("receipts/*"))))
        run(*arguments, str(out))
        identical += hash_files(out) == whole
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        twice += max(Counter(line["shard"] for line in lines if line["event"] == "shard").values()) > 1
    return {
        "kills": kills, "identical trees": identical, "shards done at the kill": sorted(finished), "shards": shards,
        "runs in which a committed shard was done again": twice, "workers": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def kill_after(delay: float, arguments: list[str], out: Path) -> float:
    """Kill a job ``delay`` seconds after it began its folder, unless it ended before; return its seconds from then."""
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:  # noqa: S603
        while not (out / "job.json").exists():
            assert job.poll() is None, f"the job ended with status {job.returncode} before it began {out}"
            time.sleep(0.001)
        began = time.perf_counter()
        while job.poll() is None and time.perf_counter() - began < delay:
            time.sleep(0.001)
        job.kill()
    return time.perf_counter() - began


def hash_files(out: Path) -> dict[str, str]:
    """Return the hash of every file that a job promises."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
