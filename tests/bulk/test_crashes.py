"""Workers that crash or hang: the image is recorded, and the job continues."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.commands import assert_error, command, run
from support.fragile import FragileSpec
from support.jobs import embed, rows_of, sha256_of, tree
from support.waiting import wait_until

import siglip_onnx
from siglip_onnx.bulk import worker_pool
from siglip_onnx.bulk.job import Job
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.bulk.records import Receipt
from siglip_onnx.bulk.run import LocalEngine
from siglip_onnx.bulk.shard import Task
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bulk.storage import locked
from siglip_onnx.bulk.worker_pool import WorkerPool
from siglip_onnx.errors import JobError


@pytest.mark.parametrize("end", ["segfault", "exit", "exception", "hang"])
def test_image_that_crashes_two_workers_is_recorded(end: str, folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    indices = (17,) if end == "hang" else (4, 17, 18)  # each takes the timeout twice
    killers = [sorted(folder.rglob("*.png"))[index] for index in indices]
    fragile = FragileSpec(spec.name, killers=tuple((sha256_of(path), end) for path in killers))

    def patient(job: Job, model: ModelSpec, tasks: list[Task], progress: Any) -> Iterator[tuple[int, Receipt]]:
        with closing(WorkerPool(job.path, model, 2, progress, image_timeout=4 if end == "hang" else 300)) as pool:
            yield from pool.run(tasks)

    summary = embed(tmp_path / "out", folder, fragile, patient)
    assert summary["statuses"] == {"ok": 37 - len(killers), "crash": len(killers)}
    crashed = [row for row in rows_of(tmp_path / "out") if row["status"] == "crash"]
    assert [row["path"] for row in crashed] == [str(path) for path in killers]
    reason = {
        "segfault": "SIGSEGV", "exit": "exit code 7", "exception": "RuntimeError: out of luck",
        "hang": "it took more than 4 seconds",
    }[end]  # fmt: skip
    assert {row["message"] for row in crashed} == {f"It crashed its worker twice: {reason}."}
    good = [row["path"] for row in rows_of(tmp_path / "out") if row["status"] == "ok"]
    vectors = np.concatenate([np.load(path) for path in sorted((tmp_path / "out" / "vectors").iterdir())])
    assert_array_equal(vectors, siglip_onnx.load(spec.name, threads=1).encode_images(good))


def test_job_ends_when_every_image_crashes(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killers = tuple((sha256_of(path), "exit") for path in sorted(folder.rglob("*.png")))
    monkeypatch.setattr(worker_pool, "MAX_CRASHES", 6)
    with pytest.raises(JobError, match="6 workers died one after another"):
        embed(tmp_path / "out", folder, FragileSpec(spec.name, killers=killers), LocalEngine(1))


def test_worker_that_crashes_once_changes_nothing(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    victim = sorted(folder.rglob("*.png"))[13]
    fragile = FragileSpec(spec.name, killers=((sha256_of(victim), "segfault"),), once=str(tmp_path / "died"))
    embed(tmp_path / "out", folder, fragile, LocalEngine(2))
    assert (tmp_path / "died").exists()
    embed(tmp_path / "whole", folder, spec)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_broken_model_ends_the_job_with_its_own_error(
    folder: Path, small_bundle: Path, copy: Path, tmp_path: Path
) -> None:
    graph = copy / "onnx" / "vision_model_quantized.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    assert_error(run("embed", folder, "--out", tmp_path / "out", "--model", copy), 4, "vision_model_quantized.onnx")
    assert run("embed", folder, "--out", tmp_path / "out", "--model", small_bundle).exit_code == 0


def test_worker_that_hangs_while_loading_the_model_is_killed(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    def impatient(job: Job, model: ModelSpec, tasks: list[Task], progress: Any) -> Iterator[tuple[int, Receipt]]:
        with closing(WorkerPool(job.path, model, 1, progress, other_timeout=0.5)) as pool:
            yield from pool.run(tasks)

    hanging = FragileSpec(spec.name, at_open="hang")
    message = "3 workers died one after another .* it took more than 0 seconds to load the model"
    with pytest.raises(JobError, match=message):
        embed(tmp_path / "out", folder, hanging, impatient, facts=spec.job_facts())


def test_crashes_at_images_and_other_deaths_are_counted_apart(tmp_path: Path, spec: ModelSpec) -> None:
    pool = WorkerPool(tmp_path, spec, 1, Progress())
    task = Task(0)

    class Dead:
        image: int | None = None

        def on_crash(self) -> tuple[Task, int | None, str]:
            return task, self.image, "SIGKILL"

    worker: Any = Dead()
    for image in (3, 3, None, 4, 4, None):
        worker.image = image
        pool._on_crash(worker)
    worker.image = None
    with pytest.raises(JobError, match="3 workers died"):
        pool._on_crash(worker)


# Locks a folder, starts a process as a job starts its workers, prints its process id, and waits.
HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from siglip_onnx.bulk.storage import locked
with locked(Path(sys.argv[1])):
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Hold the lock in another process; yield it and its worker's process id."""
    command = [sys.executable, "-c", HOLDER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            yield holder, worker
        finally:
            holder.kill()
            os.kill(worker, signal.SIGKILL)


def test_lock_of_another_process_is_an_error_at_once(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(out, folder, spec)
    with held_elsewhere(out):
        began = time.monotonic()
        with pytest.raises(JobError, match=r"Another run is writing to .*out; wait for it, or choose another --out"):
            embed(out, folder, spec)
        assert time.monotonic() - began < 5


def test_a_run_says_that_it_waits_for_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path), pytest.raises(JobError, match="Another run"), locked(tmp_path, wait_s=0.1):
        pass
    assert caplog.messages == [f"Another run is writing to {tmp_path}; waiting for it to end."]


def test_lock_of_a_killed_process_does_not_block_though_its_worker_lives(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as (holder, worker):
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it is alive
        with locked(tmp_path):
            pass


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), locked(tmp_path):
        raise ValueError("stop")
    with locked(tmp_path), pytest.raises(JobError, match="Another run"), locked(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_system_without_locks_can_be_written(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere decoders end after their image")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_of_a_job_outlives_it(number: int, tmp_path: Path) -> None:
    """Neither workers, nor their decoders in the middle of images that take half a minute together."""
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; it is part of the extra [dev]")
    (tmp_path / "images").mkdir()
    size = (4000).to_bytes(4, "big")
    for image in range(8):
        (tmp_path / "images" / f"{image}.qoi").write_bytes(b"qoif" + size * 2 + b"\4\0" + b"\xfe\1\2\3" * 16_000_000)
    words = command("embed", tmp_path / "images", "--workers", 2, "--out", tmp_path / "out")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        job, started = psutil.Process(process.pid), []

        def decoders() -> list[Any]:
            started[:] = job.children(recursive=True)
            return [each for each in started if "decoder_process" in " ".join(each.cmdline())]

        wait_until(lambda: len(decoders()) == 2 and all(each.cpu_times().user > 1 for each in decoders()))
        process.send_signal(number)
        process.wait(20)
        gone, alive = psutil.wait_procs(started, timeout=10)
    for each in alive:
        each.kill()
    assert len(gone) >= 4
    assert alive == []
