"""Run bulk jobs, and read the folders that they write."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attacks.bombs import BOMBS

from siglip_onnx.bulk.job import Job, begin_job
from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.bulk.records import Input, JobFacts, Receipt, Row
from siglip_onnx.bulk.run import Policy, run_job
from siglip_onnx.bulk.shard import Task, embed_shard
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.head import l2_normalize
from siglip_onnx.model import SigLIP

from .images import encode, make_image

SHARD_SIZE = 10
SKIPPED = "skipped 1 file without an image extension; use --all-files to try them."


class InProcess:
    """An engine that embeds shards in this process, and records what it had to embed."""

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.shards: list[int] = []

    def __call__(self, job: Job, model: ModelSpec, tasks: list[Task], _progress: Any) -> Iterator[tuple[int, Receipt]]:
        spy = _Spy(model.open(), self.embedded)
        for task in tasks:
            self.shards.append(task.shard)
            yield task.shard, embed_shard(job, spy, task, Progress())  # type: ignore[arg-type]


class _Spy:
    def __init__(self, model: SigLIP, embedded: list[str]) -> None:
        self._model, self._embedded = model, embedded
        self.embedding_dim, self.embedding_space = model.embedding_dim, model.embedding_space

    def stream_embeddings(self, images: Any) -> Iterator[Any]:
        for image in images:
            self._embedded.append(hashlib.sha256(image).hexdigest())
            yield from self._model.stream_embeddings([image])


def embed(
    out: Path, source: Path, spec: ModelSpec, engine: Any = None, *, facts: Any = None, **policy: bool
) -> dict[str, Any]:
    facts = facts or spec.job_facts(shard_size=SHARD_SIZE)
    return run_job(out, Listing([source]), spec, facts, policy=Policy(**policy), engine=engine or InProcess())


def tree(out: Path) -> dict[str, str]:
    """Return the hash of every file whose bytes a job promises, by name."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {str(path.relative_to(out)): sha256_of(path) for path in files}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "rows").iterdir()) for line in path.read_text().splitlines()]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plant_faults(folder: Path) -> dict[str, str]:
    """Put every kind of bad input into a folder; return the status that each must get, by name."""
    jpeg = encode(make_image(np.random.default_rng(1), (64, 64)), "JPEG")
    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.png").write_text("this is not an image")
    (folder / "bomb.png").write_bytes(BOMBS["png of many pixels"]())
    (folder / "directory.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        server.bind("socket.jpg")
        os.chdir(here)
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(2_000_000_000)
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")  # not even for root
    not_files = ("directory", "dangling", "loop", "pipe", "socket", "device", "unreadable")
    return {f"{name}.jpg": "io_error" for name in not_files} | {
        "empty.jpg": "decode_error",
        "truncated.jpg": "truncated",
        "sparse.jpg": "too_large",
        "bomb.png": "too_large",
        "text.png": "unsupported",
    }


def write_job(path: Path, vectors: Any, *, dtype: str = "float32", layout: str = "npy", shard_size: int = 100) -> Job:
    """Write a job of these vectors; the image of vector 7 is ``/p/7.png``."""
    facts = JobFacts("random", "int8", "int8-random", vectors.shape[1], 4.7, -12.0, {}, layout, dtype, shard_size)
    path.mkdir()
    job = begin_job(path, facts, overwrite=False)
    for shard, start in enumerate(range(0, len(vectors), shard_size)):
        stored = vectors[start : start + shard_size]
        inputs = [Input(f"/p/{start + row}.png", 1, 1) for row in range(len(stored))]
        rows = [Row(*item, status="ok", row=row) for row, item in enumerate(inputs)]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, rows, stored)
    return job


def unit_vectors(count: int, dim: int = 48, seed: int = 0) -> Any:
    return l2_normalize(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))
