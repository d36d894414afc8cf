"""Compare whole jobs, local and on Ray, with the rate of the vision tower alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fresh_process import in_fresh_process

import siglip_onnx
from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.records import Receipt
from siglip_onnx.bulk.run import LocalEngine, run_job
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.cli.progress import OFF, ProgressLine
from siglip_onnx.system.workers import map_in_order

from .inputs import empty_path, make_images


def measure_throughput(work: Path, bundle: str, shapes: str, count: int, *, with_ray: bool) -> dict[str, Any]:
    """Measure jobs on small JPEGs, and the vision tower on as many workers before and after."""
    folder = make_images(work / "throughput", count, size=256)
    workers = len(os.sched_getaffinity(0))
    model = siglip_onnx.load(bundle)
    facts: dict[str, Any] = {
        "shapes": shapes, "variant": model.variant, "embedding_dim": model.embedding_dim, "images": count
    }  # fmt: skip
    facts["tower"] = in_fresh_process(time_tower, bundle, folder, workers)
    for name in ("local", "ray", "local again") if with_ray else ("local", "local again"):
        facts[name] = in_fresh_process(time_job, bundle, folder, empty_path(work / "out"), name == "ray")
    facts["tower again"] = in_fresh_process(time_tower, bundle, folder, workers)
    rate = {name: facts[name]["images_per_second"] for name in facts if isinstance(facts[name], dict)}
    local = rate["local"] + rate["local again"]
    facts["local / tower"] = round(local / (rate["tower"] + rate["tower again"]), 3)
    return facts | ({"ray / local": round(2 * rate["ray"] / local, 3)} if with_ray else {})


def time_tower(bundle: str, folder: Path, workers: int) -> dict[str, float]:
    """Run the vision tower on prepared pixels, one image per worker at a time."""
    model = siglip_onnx.load(bundle, threads=1)
    paths = sorted(folder.iterdir())
    inputs = model.preprocess(paths[:16])
    rounds = [inputs[number % len(inputs)] for number in range(len(paths))]

    def forward(pixels: Any) -> None:
        model.vision.session.run("pooler_output", pixels)

    list(map_in_order(forward, inputs, workers))
    began = time.perf_counter()
    list(map_in_order(forward, rounds, workers))
    return {"images_per_second": round(len(rounds) / (time.perf_counter() - began), 2)}


class Stopwatch(ProgressLine):
    """Record when the first shard began and the last one ended."""

    began, ended = float("inf"), 0.0

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """Record one shard."""
        super().shard_done(shard, receipt, seconds)
        self.ended = time.perf_counter()
        self.began = min(self.began, self.ended - seconds)


def time_job(bundle: str, folder: Path, out: Path, on_ray: bool) -> dict[str, float]:
    """Run a job; its rate counts from the first shard's begin to the last one's end, its start is the time before."""
    if on_ray:
        from siglip_onnx.bulk.ray_engine import RayEngine  # noqa: PLC0415 - needs ray
    spec, watch, count = ModelSpec(bundle), Stopwatch(OFF), len(list(folder.iterdir()))
    began = time.perf_counter()
    run_job(out, Listing([folder]), spec, spec.job_facts(shard_size=20), progress=watch,
            engine=RayEngine() if on_ray else LocalEngine())  # fmt: skip
    return {
        "images_per_second": round(count / (watch.ended - watch.began), 2),
        "start_seconds": round(watch.began - began, 2),
        "whole_seconds": round(time.perf_counter() - began, 2),
    }
