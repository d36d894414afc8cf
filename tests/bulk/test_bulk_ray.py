"""The same job under Ray; skipped where Ray is not installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.commands import run_without
from support.images import make_image
from support.jobs import tree

COMMAND = [sys.executable, "-m", "siglip_onnx", "embed"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(120):
        make_image(np.random.default_rng(number), (40, 40)).save(made / f"{number:03}.png")
    (made / "broken.png").write_text("no picture")
    return made


def test_without_ray_says_what_to_install(tmp_path: Path) -> None:
    found = run_without("ray", "embed", tmp_path, "--engine", "ray", "--out", tmp_path / "out")
    assert found.returncode == 1
    assert '[ray]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_ray_writes_what_the_local_engine_writes(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    arguments = [folder, "--model", small_bundle, "--shard-size", "10", "--out"]
    by_ray = subprocess.run(
        [*COMMAND, *arguments, tmp_path / "ray", "--engine", "ray"], capture_output=True, text=True, check=False
    )
    assert by_ray.returncode == 3, by_ray.stderr
    assert subprocess.run([*COMMAND, *arguments, tmp_path / "local"], capture_output=True, check=False).returncode == 3
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.parametrize("victim", ["actor", "cluster"])
def test_killed_under_ray_the_folder_comes_out_the_same(
    victim: str, folder: Path, small_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    for number in range(2000):
        shutil.copy(folder / f"{number % 120:03}.png", folder / f"copy{number}.png")
    arguments = [folder, "--model", small_bundle, "--shard-size", "20", "--out"]
    by_ray = [*COMMAND, *arguments, tmp_path / "ray", "--engine", "ray"]
    with subprocess.Popen(by_ray, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "ray").glob("receipts/*")):
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        actors = [child for child in children if "ray::_ShardActor" in child.cmdline()[0]]
        assert len(actors) == min(2, len(os.sched_getaffinity(0)))
        for child in actors[:1] if victim == "actor" else children:
            os.kill(child.pid, signal.SIGKILL)
        error = process.communicate(timeout=120)[1]
    assert (process.returncode == 3) == (victim == "actor"), error
    assert "Traceback" not in error
    if victim == "cluster":
        subprocess.run([*COMMAND, *arguments, tmp_path / "ray"], capture_output=True, check=False)
    subprocess.run([*COMMAND, *arguments, tmp_path / "local"], capture_output=True, check=False)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
