"""Bulk jobs: one row per input whatever the input, and the same folder whatever happened on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_array_equal
from PIL import Image
from support.commands import run_without
from support.fragile import FragileSpec
from support.images import make_image
from support.jobs import tree

import siglip_onnx
from siglip_onnx.bulk.crew import Crew
from siglip_onnx.bulk.facts import Receipt
from siglip_onnx.bulk.job import Job, open_job
from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.plan import Index
from siglip_onnx.bulk.records import Input
from siglip_onnx.bulk.run import LocalEngine, Policy, run_job
from siglip_onnx.bulk.shard import Task, Watch, embed_shard
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bulk.storage import locked
from siglip_onnx.cli import main
from siglip_onnx.errors import JobError, SiglipOnnxError
from siglip_onnx.model import SigLIP
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.vision_tower import VisionTower

SHARD_SIZE = 10
LEFT_OUT = "skipped 1 file without an image extension; use --all-files to try them."


class InProcess:
    """An engine that runs the same shard function here, and remembers what it had to embed."""

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.shards: list[int] = []

    def __call__(self, job: Job, model: ModelSpec, tasks: list[Task], _watcher: Any) -> Iterator[tuple[int, Receipt]]:
        opened = model.open()
        for task in tasks:
            self.shards.append(task.shard)
            spy = _Spy(opened, self.embedded)
            yield task.shard, embed_shard(job, spy, task, Watch(lambda _: None, lambda _: None))  # type: ignore[arg-type]


class _Spy:
    def __init__(self, model: SigLIP, embedded: list[str]) -> None:
        self._model, self._embedded = model, embedded
        self.embedding_dim = model.embedding_dim

    def stream_embeddings(self, images: Any) -> Iterator[Any]:
        for image in images:
            self._embedded.append(hashlib.sha256(image).hexdigest())
            yield from self._model.stream_embeddings([image])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 37 small pictures in two levels, and a file that is none."""
    made = tmp_path / "pictures"
    (made / "sub").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for number in range(37):
        place = made / "sub" if number % 3 else made
        make_image(rng, (24, 17)).save(place / f"{number:02}.png")
    (made / "notes.txt").write_text("no picture")
    return made


@pytest.fixture
def spec(small_bundle: Path) -> ModelSpec:
    return ModelSpec(str(small_bundle))


def embed(out: Path, source: Path, spec: ModelSpec, engine: Any = None, **policy: bool) -> dict[str, Any]:
    facts = spec.job_facts(shard_size=SHARD_SIZE)
    return run_job(out, Listing([source]), spec, facts, policy=Policy(**policy), engine=engine or InProcess())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "rows").iterdir()) for line in path.read_text().splitlines()]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "siglip_onnx", *map(str, arguments)]


def test_every_input_has_a_row_and_its_vector_is_the_library_s(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = embed(out, folder, spec, LocalEngine(2))
    assert summary["inputs"] == summary["vectors"] == 37
    assert summary["statuses"] == {"ok": 37}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "errors.jsonl", "job.json", "log.jsonl", "plan", "receipts", "rows", "summary.json", "vectors",
    ]  # fmt: skip
    found = rows_of(out)
    assert [row["path"] for row in found] == sorted(str(path) for path in folder.rglob("*.png"))
    vectors = [np.load(path) for path in sorted((out / "vectors").iterdir())]
    assert [len(one) for one in vectors] == [10, 10, 10, 7]
    expected = siglip_onnx.load(spec.name, threads=1).encode_images([row["path"] for row in found])
    assert_array_equal(np.concatenate(vectors), expected)
    assert [row["row"] for row in found] == [*range(10)] * 3 + [*range(7)]
    assert {(row["width"], row["height"]) for row in found} == {(24, 17)}
    assert [row["sha256"] for row in found] == [sha256_of(Path(row["path"])) for row in found]
    receipt = json.loads((out / "receipts" / "000003.json").read_text())
    assert receipt["counts"] == {"ok": 7}
    assert receipt["fingerprint"] == summary["fingerprint"]
    for name, facts in receipt["files"].items():
        assert facts == {"size_bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)}
    assert receipt["plan_sha256"] == sha256_of(out / "plan" / "000003.jsonl")


def bomb() -> bytes:
    """Return a PNG of few bytes whose header promises 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def plant_faults(folder: Path) -> dict[str, str]:
    """Put every kind of bad input into a folder; returns the status each must get."""
    good = io.BytesIO()
    make_image(np.random.default_rng(1), (64, 64)).save(good, "JPEG")
    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes(good.getvalue()[: len(good.getvalue()) // 2])
    (folder / "text.png").write_text("this is not a picture")
    (folder / "bomb.png").write_bytes(bomb())
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
    statuses = {
        "empty": "decode_error", "truncated": "truncated", "bomb": "too_large", "sparse": "too_large",
        "directory": "io_error", "dangling": "io_error", "loop": "io_error", "pipe": "io_error",
        "socket": "io_error", "device": "io_error", "unreadable": "io_error",
    }  # fmt: skip
    return {f"{name}.{'png' if name == 'bomb' else 'jpg'}": status for name, status in statuses.items()} | {
        "text.png": "unsupported"
    }


def test_planted_faults_are_the_only_errors(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    expected = plant_faults(folder)
    out = tmp_path / "out"
    arguments = ("embed", folder, "--out", out, "--model", small_bundle, "--shard-size", SHARD_SIZE)
    found = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 3, found.stderr
    summary = json.loads(found.stdout)
    assert (summary["inputs"], summary["vectors"], summary["errors"]) == (37 + 12, 37, 12)
    assert LEFT_OUT in found.stderr
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {Path(error["path"]).name: error["status"] for error in errors} == expected
    assert all(error["message"] for error in errors)
    assert [row["row"] is None for row in rows_of(out)] == [row["status"] != "ok" for row in rows_of(out)]
    again = run(*arguments)
    assert again.exit_code == 3
    assert again.stdout.startswith(f"{out}: 37 vectors of 64 from 49 inputs (ok 37, ")


def test_truncated_pictures_are_taken_when_allowed(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    plant_faults(folder)
    arguments = ("embed", folder, "--out", tmp_path / "out", "--model", small_bundle, "--allow-truncated")
    found = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert found.stderr == f"siglip-onnx: {LEFT_OUT}\n"
    (row,) = [row for row in rows_of(tmp_path / "out") if row["path"].endswith("truncated.jpg")]
    assert (row["status"], row["truncated"]) == ("ok", True)


def test_killed_at_any_moment_the_folder_comes_out_the_same(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
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


def test_interrupt_leaves_a_folder_that_goes_on(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    for number in range(300):
        shutil.copy(folder / "00.png", folder / f"more{number}.png")
    arguments = ("embed", folder, "--model", small_bundle, "--shard-size", 5, "--progress", "plain", "--out")
    out = tmp_path / "stopped"
    with subprocess.Popen(
        command(*arguments, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True,  # noqa: PLW1509
    ) as process:  # fmt: skip
        while not list(out.glob("receipts/*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        _, error = process.communicate(timeout=30)
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


def test_fast_resume_looks_at_sizes_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    vectors = out / "vectors" / "000001.npy"
    vectors.write_bytes(bytes(vectors.stat().st_size))
    embed(out, folder, spec, engine, fast_resume=True)
    assert engine.shards == []


def test_what_is_new_fills_the_last_shard_and_leaves_the_others_alone(
    folder: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    before = {path: path.stat().st_ino for path in out.rglob("00000[0-2].*")}
    embed(out, folder, spec, engine)
    assert engine.shards == engine.embedded == []
    new = [folder / f"0a{number}.png" for number in range(8)]
    for number, path in enumerate(new):
        make_image(np.random.default_rng(100 + number), (20, 20)).save(path)
    summary = embed(out, folder, spec, engine)
    assert summary["vectors"] == 45
    assert engine.shards == [3, 4]
    assert sorted(engine.embedded) == sorted(map(sha256_of, new))
    assert {path: path.stat().st_ino for path in before} == before


def test_changed_pictures_are_embedded_and_touched_ones_are_not(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    changed, touched = folder / "03.png", folder / "sub" / "34.png"
    make_image(np.random.default_rng(50), (9, 30)).save(changed)
    os.utime(touched, ns=(1, 1))
    embed(out, folder, spec, engine)
    assert engine.embedded == [sha256_of(changed)]
    assert len(engine.shards) == 2
    rows = {row["path"]: row for row in rows_of(out)}
    assert rows[str(touched)]["mtime_ns"] == 1
    assert rows[str(changed)]["height"] == 30
    fresh = tmp_path / "fresh"
    embed(fresh, folder, spec)
    assert tree(out) == tree(fresh)


def test_prune_drops_what_is_gone_from_its_shards_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    first = sorted(folder.rglob("*.png"))[:11]  # all of shard 0, one of shard 1
    for path in first:
        path.unlink()
    assert embed(out, folder, spec, engine)["vectors"] == 37
    assert embed(out, folder, spec, engine, prune=True)["vectors"] == 26
    assert engine.shards == [1]
    assert engine.embedded == []
    assert not {str(path) for path in first} & {row["path"] for row in rows_of(out)}
    assert sorted(path.name for path in (out / "vectors").iterdir()) == ["000001.npy", "000002.npy", "000003.npy"]
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(JobError, match="--prune would drop all"):
        embed(out, folder, spec, prune=True)
    assert len(rows_of(out)) == 26


def test_retry_errors_tries_only_what_had_one(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    missing = folder / "zz.png"
    missing.symlink_to(tmp_path / "later.png")
    (folder / "0000.png").touch()
    assert embed(out, folder, spec)["errors"] == 2
    make_image(np.random.default_rng(1)).save(tmp_path / "later.png")
    assert embed(out, folder, spec, engine)["errors"] == 1  # it has a size and a time now, so it has changed
    assert engine.embedded == [sha256_of(missing)]
    assert embed(out, folder, spec, engine, retry_errors=True)["errors"] == 1
    assert len(engine.embedded) == 2  # the empty file was given to the model again, which refused it again


@pytest.mark.parametrize("end", ["segfault", "exit", "exception", "hang"])
def test_a_picture_that_kills_its_worker_is_recorded(end: str, folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    places = (17,) if end == "hang" else (4, 17, 18)  # to wait costs time
    killers = [sorted(folder.rglob("*.png"))[place] for place in places]
    fragile = FragileSpec(spec.name, killers=tuple((sha256_of(path), end) for path in killers))

    def patient(job: Job, model: ModelSpec, tasks: list[Task], watcher: Any) -> Iterator[tuple[int, Receipt]]:
        with Crew(job.path, model, 2, watcher, patience=4 if end == "hang" else 300) as crew:
            yield from crew.run(tasks)

    summary = embed(tmp_path / "out", folder, fragile, patient)
    assert summary["statuses"] == {"ok": 37 - len(killers), "crash": len(killers)}
    crashed = [row for row in rows_of(tmp_path / "out") if row["status"] == "crash"]
    assert [row["path"] for row in crashed] == [str(path) for path in killers]
    reason = {
        "segfault": "SIGSEGV", "exit": "exit code 7", "exception": "RuntimeError: out of luck",
        "hang": "it took more than 4 seconds",
    }[end]  # fmt: skip
    assert {row["message"] for row in crashed} == {f"It ended its worker twice: {reason}."}
    good = [row["path"] for row in rows_of(tmp_path / "out") if row["status"] == "ok"]
    vectors = np.concatenate([np.load(path) for path in sorted((tmp_path / "out" / "vectors").iterdir())])
    assert_array_equal(vectors, siglip_onnx.load(spec.name, threads=1).encode_images(good))


def test_a_worker_that_dies_once_costs_nothing(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    victim = sorted(folder.rglob("*.png"))[13]
    fragile = FragileSpec(spec.name, killers=((sha256_of(victim), "segfault"),), once=str(tmp_path / "died"))
    embed(tmp_path / "out", folder, fragile, LocalEngine(2))
    assert (tmp_path / "died").exists()
    embed(tmp_path / "whole", folder, spec)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_pictures_that_run_in_batches_keep_their_rows(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where inputs are read some places before their results come."""
    plant_faults(folder)
    spec = replace(spec, options=RuntimeOptions(variant="fp32"))
    embed(tmp_path / "single", folder, spec)
    monkeypatch.setattr(VisionTower, "batch_size", 4)

    def batched(job: Job, model: ModelSpec, tasks: list[Task], _watcher: Any) -> Iterator[tuple[int, Receipt]]:
        for task in tasks:
            yield task.shard, embed_shard(job, model.open(), task, Watch(lambda _: None, lambda _: None))

    embed(tmp_path / "batched", folder, spec, batched)
    assert rows_of(tmp_path / "batched") == rows_of(tmp_path / "single")
    for path in (tmp_path / "single" / "vectors").iterdir():
        found = np.load(tmp_path / "batched" / "vectors" / path.name)
        np.testing.assert_allclose(found, np.load(path), atol=1e-5)


def test_a_model_that_fails_ends_the_job_with_its_own_error(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(small_bundle, tmp_path / "broken"))
    graph = broken / "onnx" / "vision_model_quantized.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    found = run("embed", folder, "--out", tmp_path / "out", "--model", broken)
    assert found.exit_code == 4
    assert "vision_model_quantized.onnx" in found.stderr
    assert run("embed", folder, "--out", tmp_path / "out", "--model", small_bundle).exit_code == 0


def limit_files() -> None:
    """Let files have at most 9,000 bytes, less than the vectors need, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


def test_a_full_disk_is_one_error_and_the_job_goes_on_later(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = command("embed", folder, "--model", small_bundle, "--out", tmp_path / "out", "--workers", 1)
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # which writes too
    found = subprocess.run(
        arguments, capture_output=True, text=True, check=False, preexec_fn=limit_files, env=unmeasured
    )
    assert found.returncode == 1
    assert "cannot be written: File too large. Free space" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("receipts/*"))
    assert list((tmp_path / "out").glob("plan/*"))
    assert not (tmp_path / "out" / ".tmp").exists()
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0


def test_a_folder_is_written_by_one_run_at_a_time(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(out, folder, spec)
    with locked(out), pytest.raises(JobError, match="Another run is writing"):
        embed(out, folder, spec)


def test_a_job_of_another_kind_is_refused(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(out, folder, spec)
    fp32 = replace(spec, options=RuntimeOptions(variant="fp32"))
    with pytest.raises(JobError, match="variant 'int8', not 'fp32'; embedding_space"):
        embed(out, folder, fp32)
    assert embed(out, folder, fp32, overwrite=True)["variant"] == "fp32"
    with pytest.raises(JobError, match="holds other things"):
        embed(folder, folder, spec)
    with pytest.raises(JobError, match="holds other things"):
        embed(folder, folder, spec, overwrite=True)
    assert len(list(folder.rglob("*.png"))) == 37


def test_lists_on_stdin_and_in_files(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    pictures = sorted(folder.rglob("*.png"))[:5]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\xff.png"))
    shutil.copy(pictures[0], odd)
    lines = b"".join(os.fsencode(path) + b"\n" for path in [*pictures, odd, tmp_path / "none.png", folder, pictures[0]])
    (tmp_path / "list.txt").write_bytes(lines)
    arguments = ["embed", "--model", small_bundle, "--json", "--out"]
    from_stdin = subprocess.run(command(*arguments, tmp_path / "a", "-"), input=lines, capture_output=True, check=False)
    assert from_stdin.returncode == 3, from_stdin.stderr
    assert json.loads(from_stdin.stdout)["statuses"] == {"ok": 6, "io_error": 2}
    assert run(*arguments, tmp_path / "b", tmp_path / "list.txt").exit_code == 3
    assert run(*arguments, tmp_path / "c", f"@{tmp_path / 'list.txt'}").exit_code == 3
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    assert [row["path"] for row in rows_of(tmp_path / "a")] == [
        str(path) for path in [*pictures, odd, tmp_path / "none.png", folder]
    ]
    embed(tmp_path / "a", folder, ModelSpec(str(small_bundle)), overwrite=True)  # a list's job gives way


def test_what_is_gone_is_said(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder, "--out", tmp_path / "out", "--model", small_bundle)
    assert run(*arguments).stderr == f"siglip-onnx: {LEFT_OUT}\n"
    (folder / "00.png").unlink()
    result = run(*arguments)
    assert "kept, although missing: 1 input; use --prune to drop missing inputs." in result.stderr
    assert result.stdout == f"{tmp_path / 'out'}: 37 vectors of 64 from 37 inputs (ok 37)\n"
    result = run(*arguments, "--prune")
    assert result.stderr == f"siglip-onnx: {LEFT_OUT}\n"
    assert result.stdout == f"{tmp_path / 'out'}: 36 vectors of 64 from 36 inputs (ok 36)\n"


def test_wrong_use_is_one_message(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    picture, out = next(folder.glob("*.png")), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        ([folder, "--out", tmp_path / "x.npy"], 2, "folders and lists go into a folder"),
        ([folder, picture, "--out", out], 2, "not both"),
        ([picture, "--out", tmp_path / "x.npy", "--prune"], 2, "--prune is for folders and lists"),
        ([folder, "--out", out, "--ray-address", "auto"], 2, "--ray-address is for --engine ray"),
        ([folder, "--out", out, "--workers", 2, "--threads", 2], 2, "--workers or --threads, not both"),
        ([tmp_path / "no.txt", "--out", out], 1, "cannot be read: No such file"),
        ([tmp_path / "empty", "--out", tmp_path / "out2"], 1, "No pictures were found"),
        ([folder, "--out", picture], 1, "is a file; give the name of a folder"),
    ):
        found = run("embed", *arguments, "--model", small_bundle)
        assert found.exit_code == code, found.stderr
        assert message in found.stderr
        assert "Traceback" not in found.stderr


def test_progress_says_how_far_it_is(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    from siglip_onnx.cli.progress import Progress, human_seconds

    progress = Progress("plain")
    facts = spec.job_facts(shard_size=SHARD_SIZE)
    run_job(tmp_path / "out", Listing([folder]), spec, facts, engine=LocalEngine(1), watcher=progress)
    assert progress.line().startswith("37 of 37 (100 %), ")
    assert progress.line().endswith("/s, 0 s left, 0 errors")
    progress.lost({"ok": 5, "io_error": 1})
    assert progress.line().startswith("31 of 37 (84 %)")
    assert [human_seconds(one) for one in (3, 600, 7200, 1e6)] == ["3 s", "10 min", "2.0 h", "11.6 days"]


def test_float16_and_clip_retrieval_layout(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    plant_faults(folder)
    facts = spec.job_facts(layout="clip-retrieval", dtype="float16", shard_size=SHARD_SIZE)
    run_job(tmp_path / "out", Listing([folder]), spec, facts, engine=InProcess())
    vectors = sorted((tmp_path / "out" / "img_emb").iterdir())
    metadata = sorted((tmp_path / "out" / "metadata").iterdir())
    assert [path.name for path in vectors] == [f"img_emb_{shard:06}.npy" for shard in range(5)]
    assert [path.name for path in metadata] == [f"metadata_{shard:06}.parquet" for shard in range(5)]
    model = siglip_onnx.load(spec.name, threads=1)
    for one, other in zip(vectors, metadata, strict=True):
        table = parquet.read_table(other)
        found = np.load(one)
        assert found.dtype == np.float16
        assert_array_equal(found, model.encode_images(table["image_path"].to_pylist()).astype(np.float16))
    assert_array_equal(open_job(tmp_path / "out").read_vectors(2), np.load(vectors[2]))


def test_parquet_layout_has_every_row_and_fixed_size_lists(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plant_faults(folder)
    facts = spec.job_facts(layout="parquet", shard_size=SHARD_SIZE)
    run_job(tmp_path / "out", Listing([folder]), spec, facts, engine=InProcess())
    table = parquet.read_table(tmp_path / "out" / "parquet")
    assert table.schema.field("embedding").type == arrow.list_(arrow.float32(), 64)
    assert table.column("path").to_pylist() == [row["path"] for row in rows_of(tmp_path / "out")]
    assert table["embedding"].null_count == 12
    good = table.filter(arrow.compute.equal(table["status"], "ok"))
    expected = siglip_onnx.load(spec.name, threads=1).encode_images(good["path"].to_pylist())
    assert_array_equal(np.array(good["embedding"].to_pylist(), np.float32), expected)
    job = open_job(tmp_path / "out")
    assert_array_equal(np.concatenate([job.read_vectors(shard) for shard in job.shards()]), expected)


def test_layouts_without_pyarrow_say_what_to_install(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    found = run_without(
        "pyarrow", "embed", folder, "--model", small_bundle, "--layout", "parquet", "--out", tmp_path / "o"
    )
    assert found.returncode == 1
    assert '[parquet]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_index_of_inputs_finds_what_was_added() -> None:
    rng = np.random.default_rng(2)
    index, expected = Index(), dict[str, int]()
    for shard in range(60):
        inputs = [Input(f"/p/{rng.integers(1 << 40)}", int(rng.integers(100)), 5) for _ in range(rng.integers(1, 90))]
        expected |= {one.path: len(index) + place for place, one in enumerate(inputs)}
        index.add(inputs, shard)
    paths = [*expected, *(f"/q/{number}" for number in range(200))]
    found = index.find([Input(path, None, None) for path in paths])
    assert found == [expected.get(path, -1) for path in paths]
    assert not index.note(0, index.facts("x", 0))
    assert not index.note(0, Input("x", 1, 1))  # the second time in one listing it is not looked at
    assert index.note(1, Input("y", None, None))
    assert index.facts("y", 1) == Input("y", None, None)


def test_a_link_to_a_folder_is_not_followed(folder: Path) -> None:
    (folder / "circle").symlink_to(folder)
    listing = Listing([folder])
    assert len(list(listing)) == 37
    assert len(list(Listing([folder], all_files=True))) == 38


def test_a_folder_that_cannot_be_listed_is_a_row_and_stops_prune(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, listdir = tmp_path / "out", os.listdir
    embed(out, folder, spec)

    def refuse(path: str) -> list[str]:
        if str(path).endswith("/sub"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SiglipOnnxError, match="sub cannot be listed, so --prune cannot know"):
        embed(out, folder, spec, prune=True)
    assert embed(out, folder, spec)["errors"] == 1


def test_a_picture_larger_than_the_draft_is_embedded_fast(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (900, 900), "red").save(tmp_path / "in" / "a.jpg")
    embed(tmp_path / "out", tmp_path / "in", replace(spec, options=RuntimeOptions(fast_decode=True)))
    (row,) = rows_of(tmp_path / "out")
    assert (row["status"], row["width"]) == ("ok", None)
