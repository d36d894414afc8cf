"""Embedding a folder: one row per input whatever the input, and the vectors of the library."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.commands import assert_error, command, run, run_process, run_without
from support.jobs import SHARD_SIZE, SKIPPED, embed, plant_faults, rows_of, sha256_of, tree

import siglip_onnx
from siglip_onnx.bulk.job import Job, open_job
from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.bulk.records import Receipt
from siglip_onnx.bulk.run import LocalEngine, run_job
from siglip_onnx.bulk.shard import Task, embed_shard
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.vision_tower import VisionTower


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
@pytest.mark.parametrize("name", ["log.jsonl", "rows", "vectors"])
def test_links_inside_a_job_folder_are_not_followed(folder: Path, spec: ModelSpec, tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    embed(out, folder, spec)
    (out / name).rename(elsewhere)
    (out / name).symlink_to(elsewhere)
    files = [elsewhere] if elsewhere.is_file() else sorted(elsewhere.iterdir())
    before = [path.read_bytes() for path in files]
    Image.new("RGB", (8, 8), "red").save(folder / "000.png")
    with pytest.raises(SiglipOnnxError):
        embed(out, folder, spec)
    (folder / "000.png").unlink()
    assert [path.read_bytes() for path in files] == before


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
    allowed = run_process("embed", folder, "--out", tmp_path / "allowed", "--model", small_bundle, "--allow-truncated")
    assert allowed.returncode == 3
    rows = tmp_path / "allowed" / "rows"
    told = f'siglip-onnx: embedded, although their files end early: 1 image, marked "truncated" in {rows}.\n'
    assert allowed.stderr == f"siglip-onnx: {SKIPPED}\n{told}"
    assert json.loads((tmp_path / "allowed" / "summary.json").read_text())["truncated_vectors"] == 1
    assert "truncated_vectors" not in summary
    (row,) = [row for row in rows_of(tmp_path / "allowed") if row["path"].endswith("truncated.jpg")]
    assert (row["status"], row["truncated"]) == ("ok", True)


def test_batches_keep_the_order(folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_lists_from_stdin_and_files(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    images = sorted(folder.rglob("*.png"))[:5]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\xff.png"))
    shutil.copy(images[0], odd)
    lines = b"".join(os.fsencode(path) + b"\n" for path in [*images, odd, tmp_path / "none.png", folder, images[0]])
    (tmp_path / "list.txt").write_bytes(lines)
    arguments = ["embed", "--model", small_bundle, "--json", "--out"]
    from_stdin = subprocess.run(command(*arguments, tmp_path / "a", "-"), input=lines, capture_output=True, check=False)
    assert from_stdin.returncode == 3, from_stdin.stderr
    assert json.loads(from_stdin.stdout)["statuses"] == {"ok": 6, "io_error": 2}
    assert run(*arguments, tmp_path / "b", tmp_path / "list.txt").exit_code == 3
    assert run(*arguments, tmp_path / "c", f"@{tmp_path / 'list.txt'}").exit_code == 3
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    assert [row["path"] for row in rows_of(tmp_path / "a")] == [
        str(path) for path in [*images, odd, tmp_path / "none.png", folder]
    ]
    embed(tmp_path / "a", folder, ModelSpec(str(small_bundle)), overwrite=True)  # a list's job gives way


def test_missing_inputs_are_reported(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder, "--out", tmp_path / "out", "--model", small_bundle)
    assert run(*arguments).stderr == f"siglip-onnx: {SKIPPED}\n"
    (folder / "00.png").unlink()
    result = run(*arguments)
    assert "kept, although missing: 1 input; use --prune to drop missing inputs." in result.stderr
    assert result.stdout == f"{tmp_path / 'out'}: 37 vectors of 64 from 37 inputs (ok 37)\n"
    result = run(*arguments, "--prune")
    assert result.stderr == f"siglip-onnx: {SKIPPED}\n"
    assert result.stdout == f"{tmp_path / 'out'}: 36 vectors of 64 from 36 inputs (ok 36)\n"


def test_wrong_use_is_one_message(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    image, out = next(folder.glob("*.png")), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        ([folder, "--out", tmp_path / "x.npy"], 2, "folders and lists go into a folder"),
        ([folder, image, "--out", out], 2, "not both"),
        ([image, "--out", tmp_path / "x.npy", "--prune"], 2, "--prune is for folders and lists"),
        ([folder, "--out", out, "--ray-address", "auto"], 2, "--ray-address is for --engine ray"),
        ([folder, "--out", out, "--workers", 2, "--threads", 2], 2, "--workers or --threads, not both"),
        ([tmp_path / "no.txt", "--out", out], 1, "cannot be read: No such file"),
        ([tmp_path / "empty", "--out", tmp_path / "out2"], 1, "No images were found"),
        ([folder, "--out", image], 1, "is a file; give the name of a folder"),
    ):
        assert_error(run("embed", *arguments, "--model", small_bundle), code, message)


def test_progress_shows_rate_and_errors(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    from siglip_onnx.cli.progress import ProgressLine, human_seconds

    progress = ProgressLine("plain")
    facts = spec.job_facts(shard_size=SHARD_SIZE)
    run_job(tmp_path / "out", Listing([folder]), spec, facts, engine=LocalEngine(1), progress=progress)
    assert progress.line().startswith("37 of 37 (100 %), ")
    assert progress.line().endswith("/s, 0 s left, 0 errors")
    progress.worker_died({"ok": 5, "io_error": 1})
    assert progress.line().startswith("31 of 37 (84 %)")
    assert [human_seconds(seconds) for seconds in (3, 600, 7200, 1e6)] == ["3 s", "10 min", "2.0 h", "11.6 days"]


def test_clip_retrieval_layout_in_float16(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    plant_faults(folder)
    facts = spec.job_facts(layout="clip-retrieval", dtype="float16", shard_size=SHARD_SIZE)
    embed(tmp_path / "out", folder, spec, facts=facts)
    vectors = sorted((tmp_path / "out" / "img_emb").iterdir())
    metadata = sorted((tmp_path / "out" / "metadata").iterdir())
    assert [path.name for path in vectors] == [f"img_emb_{shard:06}.npy" for shard in range(5)]
    assert [path.name for path in metadata] == [f"metadata_{shard:06}.parquet" for shard in range(5)]
    model = siglip_onnx.load(spec.name, threads=1)
    for vectors_path, metadata_path in zip(vectors, metadata, strict=True):
        table, stored = parquet.read_table(metadata_path), np.load(vectors_path)
        assert stored.dtype == np.float16
        assert_array_equal(stored, model.encode_images(table["image_path"].to_pylist()).astype(np.float16))
    assert_array_equal(open_job(tmp_path / "out").read_vectors(2), np.load(vectors[2]))


def test_parquet_layout_has_every_row_and_fixed_size_lists(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plant_faults(folder)
    facts = spec.job_facts(layout="parquet", shard_size=SHARD_SIZE)
    embed(tmp_path / "out", folder, spec, facts=facts)
    table = parquet.read_table(tmp_path / "out" / "parquet")
    assert table.schema.field("embedding").type == arrow.list_(arrow.float32(), 64)
    assert table.column("path").to_pylist() == [row["path"] for row in rows_of(tmp_path / "out")]
    assert table["embedding"].null_count == 12
    good = table.filter(arrow.compute.equal(table["status"], "ok"))
    expected = siglip_onnx.load(spec.name, threads=1).encode_images(good["path"].to_pylist())
    assert_array_equal(np.array(good["embedding"].to_pylist(), np.float32), expected)
    job = open_job(tmp_path / "out")
    assert_array_equal(np.concatenate([job.read_vectors(shard) for shard in job.shards()]), expected)


def test_layouts_without_pyarrow_name_the_extra(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    result = run_without(
        "pyarrow", "embed", folder, "--model", small_bundle, "--layout", "parquet", "--out", tmp_path / "o"
    )
    assert result.returncode == 1
    assert '[parquet]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_a_pyarrow_that_cannot_store_missing_vectors_is_refused_first(
    folder: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(arrow, "__version__", "25.0.0")
    words = ("embed", folder, "--model", small_bundle, "--out", tmp_path / "o")
    assert_error(run(*words, "--layout", "parquet"), 1, "needs pyarrow 26 or later, which")
    assert not (tmp_path / "o").exists()
    assert run(*words, "--layout", "clip-retrieval").exit_code == 0


def test_threads_of_pyarrow_hold_no_memory_of_python(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that releases such memory while the interpreter ends aborts the process, after the results were printed."""
    arrow = pytest.importorskip("pyarrow")
    embed(tmp_path / "out", folder, spec, facts=spec.job_facts(layout="parquet", shard_size=SHARD_SIZE))
    job = open_job(tmp_path / "out")
    sources = []

    def read_table(source: Any, **options: Any) -> Any:
        sources.append(source)
        return original(source, **options)

    original = arrow.parquet.read_table
    monkeypatch.setattr(arrow.parquet, "read_table", read_table)
    assert len(job.read_vectors(0)) == SHARD_SIZE
    assert isinstance(sources[0], arrow.MemoryMappedFile)
