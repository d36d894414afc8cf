"""Embedding a folder: one row per input whatever the input, and the vectors of the library."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.jobs import SHARD_SIZE, SKIPPED, command, embed, plant_faults, rows_of, run, sha256_of

import siglip_onnx
from siglip_onnx.bulk.job import Job
from siglip_onnx.bulk.plan import Progress
from siglip_onnx.bulk.records import Receipt
from siglip_onnx.bulk.run import LocalEngine
from siglip_onnx.bulk.shard import Task, embed_shard
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.vision_tower import VisionTower


def test_job_writes_a_row_per_input_and_the_library_s_vectors(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = embed(out, folder, spec, LocalEngine(2))
    assert summary["inputs"] == summary["vectors"] == 37
    assert summary["statuses"] == {"ok": 37}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "errors.jsonl", "job.json", "log.jsonl", "plan", "receipts", "rows", "summary.json", "vectors",
    ]  # fmt: skip
    rows = rows_of(out)
    assert [row["path"] for row in rows] == sorted(str(path) for path in folder.rglob("*.png"))
    vectors = [np.load(path) for path in sorted((out / "vectors").iterdir())]
    assert [len(shard) for shard in vectors] == [10, 10, 10, 7]
    expected = siglip_onnx.load(spec.name, threads=1).encode_images([row["path"] for row in rows])
    assert_array_equal(np.concatenate(vectors), expected)
    assert [row["row"] for row in rows] == [*range(10)] * 3 + [*range(7)]
    assert {(row["width"], row["height"]) for row in rows} == {(24, 17)}
    assert [row["sha256"] for row in rows] == [sha256_of(Path(row["path"])) for row in rows]
    receipt = json.loads((out / "receipts" / "000003.json").read_text())
    assert receipt["counts"] == {"ok": 7}
    assert receipt["fingerprint"] == summary["fingerprint"]
    for name, facts in receipt["files"].items():
        assert facts == {"size_bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)}
    assert receipt["plan_sha256"] == sha256_of(out / "plan" / "000003.jsonl")


def test_bad_inputs_are_the_only_errors(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    expected = plant_faults(folder)
    out = tmp_path / "out"
    arguments = ("embed", folder, "--out", out, "--model", small_bundle, "--shard-size", SHARD_SIZE)
    result = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 3, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["inputs"], summary["vectors"], summary["errors"]) == (37 + 12, 37, 12)
    assert SKIPPED in result.stderr
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {Path(error["path"]).name: error["status"] for error in errors} == expected
    assert all(error["message"] for error in errors)
    assert [row["row"] is None for row in rows_of(out)] == [row["status"] != "ok" for row in rows_of(out)]
    repeated = run(*arguments)
    assert repeated.exit_code == 3
    assert repeated.stdout.startswith(f"{out}: 37 vectors of 64 from 49 inputs (ok 37, ")


def test_truncated_images_are_embedded_with_allow_truncated(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    plant_faults(folder)
    arguments = ("embed", folder, "--out", tmp_path / "out", "--model", small_bundle, "--allow-truncated")
    result = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert result.returncode == 3
    assert result.stderr == f"siglip-onnx: {SKIPPED}\n"
    (row,) = [row for row in rows_of(tmp_path / "out") if row["path"].endswith("truncated.jpg")]
    assert (row["status"], row["truncated"]) == ("ok", True)


def test_batches_keep_the_order_of_rows(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where several inputs are read before their results are available."""
    plant_faults(folder)
    spec = replace(spec, options=RuntimeOptions(variant="fp32"))
    embed(tmp_path / "single", folder, spec)
    monkeypatch.setattr(VisionTower, "batch_size", 4)

    def batched(job: Job, model: ModelSpec, tasks: list[Task], _progress: Any) -> Iterator[tuple[int, Receipt]]:
        for task in tasks:
            yield task.shard, embed_shard(job, model.open(), task, Progress())

    embed(tmp_path / "batched", folder, spec, batched)
    assert rows_of(tmp_path / "batched") == rows_of(tmp_path / "single")
    for path in (tmp_path / "single" / "vectors").iterdir():
        batched_vectors = np.load(tmp_path / "batched" / "vectors" / path.name)
        np.testing.assert_allclose(batched_vectors, np.load(path), atol=1e-5)


def test_fast_decode_records_no_size(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (900, 900), "red").save(tmp_path / "in" / "a.jpg")
    embed(tmp_path / "out", tmp_path / "in", replace(spec, options=RuntimeOptions(fast_decode=True)))
    (row,) = rows_of(tmp_path / "out")
    assert (row["status"], row["width"]) == ("ok", None)
