"""Search random vectors, and measure how fast this machine reads the same memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from fresh_process import in_fresh_process

from siglip_onnx.bulk.job import begin_job
from siglip_onnx.bulk.records import Input, JobFacts, Row
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.head import l2_normalize
from siglip_onnx.system.workers import map_in_order

from .inputs import SEED, empty_path
from .processes import anonymous_memory_mb, seconds_of

DIM, SHARD = 768, 1000


def measure_search(work: Path, scale: float) -> dict[str, Any]:
    """Search a million vectors; ``scale`` makes them fewer."""
    count = max(SHARD, round(1_000_000 * scale) // SHARD * SHARD)
    out = work / f"search_{count}"
    if not (out / "summary").exists():
        write_vectors(empty_path(out), count)
        (out / "summary").touch()
    return {"vectors": count, "dim": DIM, "dtype": "float16", **in_fresh_process(time_search, out)}


def time_search(out: Path) -> dict[str, Any]:
    """Time the top 10 with one and with all threads, warm, and check them against a plain computation."""
    opened: list[Any] = []
    facts: dict[str, Any] = {"open_seconds": seconds_of(lambda: opened.append(open_collection(out)))}
    (collection,) = opened
    (query,) = l2_normalize(np.random.default_rng(5).standard_normal((1, DIM)).astype(np.float32))
    before = anonymous_memory_mb()
    for threads in (1, len(os.sched_getaffinity(0))):
        collection.search(query, 10, threads=threads)
        rounds = [seconds_of(lambda: collection.search(query, 10, threads=threads)) for _ in range(7)]  # noqa: B023
        facts[f"{threads} threads, min / median seconds"] = [min(rounds), sorted(rounds)[3]]
    facts["memory beyond the mapped files, MB"] = round(anonymous_memory_mb() - before, 1)
    hits = collection.search(query, 10)
    best = [
        np.sort(np.array(collection.job.read_vectors(shard), np.float32) @ query)[-10:] for shard in collection.shards
    ]
    np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(np.concatenate(best))[::-1][:10], atol=1e-6)
    mapped = [collection.job.read_vectors(shard).view(np.uint64) for shard in collection.shards]
    size_gb = sum(vectors.nbytes for vectors in mapped) / 1e9
    for name, workers in (("1 thread", 1), ("all threads", len(os.sched_getaffinity(0)))):
        read = min(seconds_of(lambda: list(map_in_order(np.add.reduce, mapped, workers))) for _ in range(3))  # noqa: B023
        facts[f"reading the mapped files, {name}, GB/s"] = round(size_gb / max(read, 1e-3), 1)
    return facts


def write_vectors(out: Path, count: int) -> None:
    """Write a job of random unit vectors."""
    facts = JobFacts("random", "int8", "int8-random", DIM, 4.7, -12.0, {}, "npy", "float16", SHARD)
    out.mkdir(parents=True)
    job, rng = begin_job(out, facts, overwrite=False), np.random.default_rng(SEED)
    for shard in range(count // SHARD):
        inputs = [Input(f"/images/{shard:06}/{row:03}.jpg", 1, 1) for row in range(SHARD)]
        rows = [Row(*item, status="ok", row=row) for row, item in enumerate(inputs)]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, rows, l2_normalize(rng.standard_normal((SHARD, DIM), np.float32)))
