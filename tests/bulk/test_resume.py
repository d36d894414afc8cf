"""Resuming a job: the same bytes after kills, interrupts, damage and full disks."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.commands import command
from support.images import make_image, save_all
from support.jobs import SHARD_SIZE, InProcess, embed, sha256_of, tree
from support.waiting import interrupt, wait_until

from siglip_onnx.bulk.job import open_job
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.errors import JobError
from siglip_onnx.options import RuntimeOptions


def test_killed_job_resumes_to_the_same_bytes(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder, "--model", small_bundle, "--shard-size", 4, "--workers", 2, "--out")
    began = time.monotonic()
    subprocess.run(command(*arguments, tmp_path / "whole"), check=True, capture_output=True)
    usual = time.monotonic() - began
    rng = np.random.default_rng(8)
    for delay in rng.uniform(0.4, 1.0, 4) * usual:
        with subprocess.Popen(
            command(*arguments, tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(delay)
            process.kill()
        if (tmp_path / "killed").exists():
            assert_nothing_half_done(tmp_path / "killed")
    subprocess.run(command(*arguments, tmp_path / "killed"), check=True, capture_output=True)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def assert_nothing_half_done(out: Path) -> None:
    """What has a receipt is whole, and every file under a final name can be read."""
    for path in out.glob("receipts/*.json"):
        receipt = json.loads(path.read_text())
        for name, facts in receipt["files"].items():
            assert sha256_of(out / name) == facts["sha256"]
    for path in [*out.glob("plan/*.jsonl"), *out.glob("rows/*.jsonl")]:
        assert all(json.loads(line)["path"] for line in path.read_text().splitlines())


def test_interrupted_job_resumes_to_the_same_bytes(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    for number in range(300):
        shutil.copy(folder / "00.png", folder / f"more{number}.png")
    arguments = ("embed", folder, "--model", small_bundle, "--shard-size", 5, "--progress", "plain", "--out")
    out = tmp_path / "stopped"
    with subprocess.Popen(
        command(*arguments, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True,  # noqa: PLW1509
    ) as process:  # fmt: skip
        wait_until(lambda: process.poll() is not None or list(out.glob("receipts/*.json")))
        assert process.poll() is None
        error = interrupt(process, group=True)  # as a terminal does: to the workers as well
    assert process.returncode == 130, error
    assert "can be resumed with the same command" in error
    assert "Traceback" not in error
    assert not (out / ".tmp").exists()
    assert not (out / "summary.json").exists()
    subprocess.run(command(*arguments, out), check=True, capture_output=True)
    subprocess.run(command(*arguments, tmp_path / "whole"), check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("how", ["a flipped bit", "a cut file", "a lost file", "another job's receipt", "no JSON"])
def test_resume_trusts_only_receipts_that_match(how: str, folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(out, folder, spec)
    before = tree(out)
    vectors, receipt = out / "vectors" / "000001.npy", out / "receipts" / "000001.json"
    if how == "a flipped bit":
        content = bytearray(vectors.read_bytes())
        content[-7] ^= 1
        vectors.write_bytes(content)
    elif how == "a cut file":
        vectors.write_bytes(vectors.read_bytes()[:-1])
    elif how == "a lost file":
        (out / "rows" / "000001.jsonl").unlink()
    elif how == "another job's receipt":
        receipt.write_text(receipt.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    else:
        receipt.write_text("[1]")
    engine = InProcess()
    embed(out, folder, spec, engine)
    assert engine.shards == [1]
    assert len(engine.embedded) == SHARD_SIZE
    assert tree(out) == before


def test_fast_resume_checks_sizes_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    vectors = out / "vectors" / "000001.npy"
    vectors.write_bytes(bytes(vectors.stat().st_size))
    embed(out, folder, spec, engine, fast_resume=True)
    assert engine.shards == []


def test_retry_errors_retries_only_inputs_with_errors(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    missing = folder / "zz.png"
    missing.symlink_to(tmp_path / "later.png")
    (folder / "0000.png").touch()
    assert embed(out, folder, spec)["errors"] == 2
    make_image(np.random.default_rng(1)).save(tmp_path / "later.png")
    assert embed(out, folder, spec, engine)["errors"] == 1  # it has a size and a time now, so it has changed
    assert engine.embedded == [sha256_of(missing)]
    assert embed(out, folder, spec, engine, retry_errors=True)["errors"] == 1
    assert len(engine.embedded) == 2  # the model refused the empty file again


def limit_files() -> None:
    """Let files have at most 9,000 bytes, less than the vectors need, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


def test_full_disk_is_one_error_and_the_job_resumes(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = command("embed", folder, "--model", small_bundle, "--out", tmp_path / "out", "--workers", 1)
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # which writes too
    result = subprocess.run(
        arguments, capture_output=True, text=True, check=False, preexec_fn=limit_files, env=unmeasured
    )
    assert result.returncode == 1
    assert "cannot be written: File too large. Free space" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("receipts/*"))
    assert list((tmp_path / "out").glob("plan/*"))
    assert not (tmp_path / "out" / ".tmp").exists()
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0


def test_job_with_other_facts_is_refused(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(out, folder, spec)
    fp32 = replace(spec, options=RuntimeOptions(variant="fp32"))
    with pytest.raises(JobError, match="was made with --variant int8, not fp32; with embedding_space"):
        embed(out, folder, fp32)
    assert embed(out, folder, fp32, overwrite=True)["variant"] == "fp32"
    with pytest.raises(JobError, match="is not empty and is not a job folder"):
        embed(folder, folder, spec)
    with pytest.raises(JobError, match="is not empty and is not a job folder"):
        embed(folder, folder, spec, overwrite=True)
    assert len(list(folder.rglob("*.png"))) == 37


def text_0_1(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def test_job_of_version_0_1_resumes(spec: ModelSpec, tmp_path: Path) -> None:
    """A folder with the exact text that version 0.1 wrote, of whose two shards one is done."""
    folder, out, engine = tmp_path / "images", tmp_path / "out", InProcess()
    save_all([make_image(np.random.default_rng(number)) for number in range(2)], folder)
    image, facts = folder / "0.png", spec.job_facts()
    for name in ("plan", "rows", "vectors", "receipts"):
        (out / name).mkdir(parents=True)
    job, plan, rows, vectors = (
        out / name for name in ("job.json", "plan/000000.jsonl", "rows/000000.jsonl", "vectors/000000.npy")
    )
    limits = {"max_pixels": 89478485, "max_side": 65535, "max_bytes": 512000000}
    job.write_text(text_0_1({
        "format": "siglip_onnx.job/1", "model_name": "small", "variant": "int8",
        "embedding_space": facts.embedding_space, "embedding_dim": 64, "logit_scale": facts.logit_scale,
        "logit_bias": facts.logit_bias,
        "preprocessing": {"fast_decode": False, "allow_truncated": False, "image_limits": limits},
        "layout": "npy", "dtype": "float32", "shard_size": 1,
    }))  # fmt: skip
    status = image.stat()
    item = {"path": str(image), "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    row = {"status": "ok", "row": 0, "width": 90, "height": 60, "sha256": sha256_of(image), "truncated": False}
    plan.write_text(json.dumps(item) + "\n")
    rows.write_text(json.dumps(item | row | {"message": ""}) + "\n")
    np.save(vectors, spec.open().encode_images([image]))
    files = {
        path.relative_to(out).as_posix(): {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in (vectors, rows)
    }
    receipt = {"fingerprint": sha256_of(job), "plan_sha256": sha256_of(plan), "files": files, "counts": {"ok": 1}}
    (out / "receipts" / "000000.json").write_text(text_0_1(receipt))
    before = tree(out)
    assert embed(out, folder, spec, engine, facts=spec.job_facts(shard_size=1))["vectors"] == 2
    assert engine.shards == [1]
    after = tree(out)
    assert {name: after[name] for name in before} == before
    drop = replace(spec, options=RuntimeOptions(background="drop"))
    embed(tmp_path / "new", folder, drop, facts=drop.job_facts(shard_size=1))
    own = {"job.json", "summary.json", *(name for name in after if name.startswith("receipts/"))}  # with fingerprints
    assert {name: value for name, value in tree(tmp_path / "new").items() if name not in own} == {
        name: value for name, value in after.items() if name not in own
    }


def test_background_is_a_fact_of_a_job(spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job resumes with its own background only; one of version 0.1, which recorded none, keeps ignoring alpha."""
    folder, out = tmp_path / "images", tmp_path / "out"
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 4), np.uint8))
    save_all([image], folder)
    white, gray, drop = (
        replace(spec, options=RuntimeOptions(background=background)) for background in ("white", "#808080", "drop")
    )
    expected = {each: each.open().encode_images(image) for each in (white, gray, drop)}
    assert not any(np.array_equal(expected[one], expected[other]) for one, other in combinations(expected, 2))
    for each, vectors in expected.items():
        embed(out, folder, each, overwrite=True)
        assert_array_equal(np.load(out / "vectors" / "000000.npy"), vectors)
    with pytest.raises(JobError, match="was made with --background drop, not #ffffff"):
        embed(out, folder, white)
    assert caplog.text == ""
    embed(out, folder, white, overwrite=True)
    document = json.loads((out / "job.json").read_text())
    assert document["preprocessing"].pop("background") == "#ffffff"
    (out / "job.json").write_text(text_0_1(document))  # the folder of version 0.1; no receipt has its fingerprint
    for each in (white, drop):
        embed(out, folder, each)
        assert_array_equal(np.load(out / "vectors" / "000000.npy"), expected[drop])
        assert ("was begun by version 0.1 and keeps its pixels" in caplog.text) is (each == white)
        caplog.clear()
    assert "background" not in (out / "job.json").read_text()
    assert open_job(out).facts.background == "drop"
    with pytest.raises(JobError, match=r"not #808080\."):
        embed(out, folder, gray)
