"""The rows of a job state what was embedded: by which model, from which bytes; nothing unfinishable is left."""

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.images import make_image
from support.jobs import SHARD_SIZE, InProcess, embed, rows_of, sha256_of, tree, unit_vectors, write_job

from siglip_onnx.bulk import shard as shard_module
from siglip_onnx.bulk.job import Job, open_job
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.bulk.records import OK, Receipt
from siglip_onnx.bulk.run import LocalEngine
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.bulk.shard import Task, embed_part, embed_shard, find_pending
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bulk.worker_pool import MIN_PART, _Queue
from siglip_onnx.errors import JobError
from siglip_onnx.options import RuntimeOptions


class Meddling(InProcess):
    """An engine that does something after the inputs were listed and before they are read."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__()
        self._meddle = meddle

    def __call__(self, *arguments: Any) -> Iterator[tuple[int, Receipt]]:
        self._meddle()
        return super().__call__(*arguments)


@pytest.mark.parametrize("engine", [InProcess(), LocalEngine(2)])
def test_model_that_is_replaced_ends_the_job(engine: Any, folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    other = replace(spec, options=RuntimeOptions(variant="fp32"))
    with pytest.raises(JobError, match="The model was replaced while the job ran: its embedding space is fp32-"):
        embed(tmp_path / "out", folder, other, engine, facts=spec.job_facts(shard_size=SHARD_SIZE))
    assert not list((tmp_path / "out").glob("receipts/*"))


def test_row_states_size_and_time_of_the_bytes_that_were_embedded(
    folder: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    out, path, kept = tmp_path / "out", folder / "03.png", tmp_path / "kept.png"
    shutil.copy2(path, kept)

    def change() -> None:
        make_image(np.random.default_rng(9), (33, 44)).save(path)
        os.utime(path, ns=(5, 5))

    embed(out, folder, spec, Meddling(change))
    (row,) = [row for row in rows_of(out) if row["path"] == str(path)]
    assert (row["size_bytes"], row["mtime_ns"], row["sha256"]) == (path.stat().st_size, 5, sha256_of(path))
    engine = InProcess()
    embed(out, folder, spec, engine)
    assert engine.shards == []  # the plan states them too
    shutil.copy2(kept, path)  # as it was when it was first listed
    embed(out, folder, spec, engine)
    assert engine.embedded == [sha256_of(kept)]


def test_file_that_vanished_or_appeared_after_it_was_listed_is_seen_by_the_next_run(
    folder: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    out, path, aside = tmp_path / "out", folder / "03.png", tmp_path / "aside.png"
    assert embed(out, folder, spec, Meddling(lambda: path.rename(aside)))["statuses"] == {"ok": 36, "io_error": 1}
    aside.rename(path)  # with the size and time that it was listed with
    assert embed(out, folder, spec)["statuses"] == {"ok": 37}
    path.rename(aside)
    path.symlink_to(path)  # is listed as an input without size and time
    assert embed(out, folder, spec)["statuses"] == {"ok": 36, "io_error": 1}

    def appear() -> None:
        path.unlink()
        aside.rename(path)

    assert embed(out, folder, spec, Meddling(appear), retry_errors=True)["statuses"] == {"ok": 37}
    path.rename(aside)
    path.symlink_to(path)
    assert embed(out, folder, spec)["statuses"] == {"ok": 36, "io_error": 1}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_with_nan_are_refused_when_read(value: float, dtype: str, tmp_path: Path) -> None:
    vectors, (query,) = unit_vectors(300), unit_vectors(1, seed=9)
    vectors[250, 7] = value
    job = write_job(tmp_path / "job", vectors, dtype=dtype)
    with pytest.raises(JobError, match=r"000002\.npy holds vectors with NaN or infinity\. Remove .*000002\.json"):
        job.read_vectors(2)
    with pytest.raises(JobError, match="holds vectors with NaN or infinity"):
        open_collection(tmp_path / "job").search(query, 1)
    assert len(job.read_vectors(1)) == 100


@pytest.mark.parametrize("layout", ["npy", "clip-retrieval", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shard_without_a_vector_is_finished(layout: str, dtype: str, spec: ModelSpec, tmp_path: Path) -> None:
    if layout != "npy":
        pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_text("not an image")
    facts, engine = spec.job_facts(layout=layout, dtype=dtype, shard_size=2), InProcess()
    assert embed(tmp_path / "out", tmp_path / "in", spec, facts=facts)["statuses"] == {"unsupported": 3}
    embed(tmp_path / "out", tmp_path / "in", spec, engine, facts=facts)
    assert engine.shards == []
    make_image(np.random.default_rng(1)).save(tmp_path / "in" / "0.png")
    embed(tmp_path / "out", tmp_path / "in", spec, engine, facts=facts)
    assert engine.shards == [0]
    assert [len(open_job(tmp_path / "out").read_vectors(shard)) for shard in (0, 1)] == [1, 0]


def test_small_folder_is_divided_between_workers_with_the_same_bytes(
    folder: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    facts = spec.job_facts()
    embed(tmp_path / "one", folder, spec, facts=facts)
    embed(tmp_path / "two", folder, spec, LocalEngine(3), facts=facts)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert not (tmp_path / "two" / "partial").exists()
    (tmp_path / "two" / "receipts" / "000000.json").unlink()
    queue = _Queue(tmp_path / "two", [Task(0)], 2)
    parts = []
    while (task := queue.next()) is not None:
        parts.append(task)
    assert sorted(index for part in parts for index in part.part) == list(range(37))
    assert [len(part.part) for part in parts] == [9, 7, 5, MIN_PART, MIN_PART, MIN_PART, MIN_PART]
    for part in parts:
        queue.part_done(part.shard)
    commit = queue.next()
    assert commit == Task(0, counted=frozenset(range(37)))
    many = _Queue(tmp_path / "two", [Task(shard) for shard in range(9)], 2)
    assert [many.next() for _ in range(4)] == [Task(shard) for shard in range(4)]


def test_interrupted_shard_resumes_where_it_was_saved(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, facts = tmp_path / "whole", tmp_path / "out", spec.job_facts()
    (folder / "0_broken.png").write_text("not an image")
    embed(whole, folder, spec, facts=facts)
    monkeypatch.setattr(shard_module, "SAVE_SECONDS", 0)

    class Interrupted(Progress):
        def image_started(self, index: int | None) -> None:
            if index == 20:
                raise KeyboardInterrupt

    def interrupted(job: Job, model: ModelSpec, tasks: list[Task], _progress: Any) -> Iterator[tuple[int, Receipt]]:
        yield 0, embed_shard(job, model.open(), tasks[0], Interrupted())

    with pytest.raises(KeyboardInterrupt):
        embed(out, folder, spec, interrupted, facts=facts)
    assert len(list((out / "partial").iterdir())) == 20
    job = open_job(out)
    assert len({row.path for part in job.read_parts(0) for row in part.rows}) == 20
    damaged, *_ = sorted((out / "partial").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")  # as after a power cut
    engine = InProcess()
    embed(out, folder, spec, engine, facts=facts)
    assert len(engine.embedded) == 38 - 19
    assert tree(out) == tree(whole)
    assert not (out / "partial").exists()


def test_saved_errors_are_retried_on_request_by_a_later_run_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", folder / "0_broken.png"
    broken.write_text("not an image")
    embed(out, folder, spec, facts=spec.job_facts())
    job, model = open_job(out), spec.open()
    (out / "receipts" / "000000.json").unlink()
    index = [item.path for item in job.read_plan(0)].index(str(broken))
    embed_part(job, model, Task(0, retry_errors=True, part=(index, index + 1), run="a"), Progress())
    assert [[row.status for row in part.rows] for part in job.read_parts(0)] == [["unsupported", OK]]
    same_run, next_run = (Task(0, retry_errors=True, run=run) for run in ("a", "b"))
    assert set(find_pending(job, next_run)) - set(find_pending(job, same_run)) == {index}


def rewrite_part(path: Path, rows: object, body: bytes) -> None:
    """Write a part of saved results whose hash is right."""
    header = json.loads(path.read_bytes().partition(b"\n")[0])
    header |= {"rows": rows, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


def test_saved_results_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", unit_vectors(4))
    rows = job.read_rows(0)
    job.save_part(0, "a", rows, unit_vectors(4))
    (path,) = (tmp_path / "job" / "partial").iterdir()
    whole, dim = path.read_bytes(), 48
    body = whole.partition(b"\n")[2]
    assert [len(part.rows) for part in job.read_parts(0)] == [4]
    for num_rows, content in (
        (4, body[: -4 * dim]),  # a vector is missing
        (4, body + bytes(4 * dim)),
        (4, body[:-1]),
        (3, body),
        (10**9, body),
        (-1, body),
        ("4", body),
        (4, body.replace(b'"row": 3', b'"row": 9')),
    ):
        rewrite_part(path, num_rows, content)
        assert list(job.read_parts(0)) == []
    path.write_bytes(whole)
    assert [len(part.rows) for part in job.read_parts(0)] == [4]


def test_saved_results_of_absurd_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(tmp_path / "job", unit_vectors(4))
    for run in ("a", "b"):
        job.save_part(0, run, job.read_rows(0), unit_vectors(4))
    whole, _ = (tmp_path / "job" / "partial").iterdir()
    monkeypatch.setattr(job, "_max_shard_bytes", whole.stat().st_size * 3 // 2)
    assert [part.run for part in job.read_parts(0)] == ["a"]  # together they have more than a shard can have
    with whole.open("wb") as file:
        file.truncate(1_000_000_000)
    tracemalloc.start()
    try:
        assert len(list(job.read_parts(0))) == 1
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_files_of_absurd_size_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(tmp_path / "job", unit_vectors(4))
    path, receipt = tmp_path / "job" / "vectors" / "000000.npy", tmp_path / "job" / "receipts" / "000000.json"
    os.truncate(path, 10**12)
    document = json.loads(receipt.read_text())
    document["files"]["vectors/000000.npy"]["size_bytes"] = 10**12
    receipt.write_text(json.dumps(document))
    hashed: list[Path] = []
    monkeypatch.setattr("siglip_onnx.bulk.job._sha256_of_file", hashed.append)
    assert job.receipt(0, read_files=True) is None
    assert path not in hashed
