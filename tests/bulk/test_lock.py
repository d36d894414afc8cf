"""The lock of a job folder: one run at a time, and no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.jobs import embed

from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bulk.storage import locked
from siglip_onnx.errors import JobError

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
