"""The Ray engine: the bytes of the local engine, also after an actor or the whole Ray is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import run_without
from support.images import make_image
from support.jobs import command, tree

from siglip_onnx.system.threads import available_threads


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 images of 120 different contents, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(120):
        make_image(np.random.default_rng(number), (40, 40)).save(folder / f"{number:03}.png")
    for number in range(680):
        shutil.copy(folder / f"{number % 120:03}.png", folder / f"copy{number}.png")
    (folder / "broken.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def expected(images: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that the local engine writes."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert subprocess.run(embed(images, small_bundle, out), capture_output=True, check=False).returncode == 3
    return tree(out)


def embed(images: Path, bundle: Path, out: Path, *options: str) -> list[str]:
    return command("embed", images, "--model", bundle, "--shard-size", 20, "--out", out, *options)


def test_ray_without_ray_names_the_extra(tmp_path: Path) -> None:
    result = run_without("ray", "embed", tmp_path, "--engine", "ray", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert 'pip install "siglip-onnx[ray]"' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("victim", ["nothing", "actor", "Ray"])
def test_ray_writes_the_bytes_of_the_local_engine(
    victim: str, images: Path, small_bundle: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; it is part of the extra [dev]")
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; it is part of the extra [dev]")
    out = tmp_path / "out"
    by_ray = embed(images, small_bundle, out, "--engine", "ray")
    with subprocess.Popen(by_ray, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("receipts/*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert_silent([psutil.Process(process.pid), *children])
        actors = [child for child in children if "ray::_ShardActor" in child.cmdline()[0]]
        assert len(actors) == available_threads()
        for child in {"nothing": [], "actor": actors[:1], "Ray": children}[victim]:
            os.kill(child.pid, signal.SIGKILL)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == (1 if victim == "Ray" else 3), error
    assert "Traceback" not in error
    if victim == "Ray":
        assert "Ray failed" in error
        subprocess.run(embed(images, small_bundle, out), capture_output=True, check=False)
    assert tree(out) == expected


def assert_silent(processes: list[Any]) -> None:
    """Check that no process listens or is connected outside the loopback interface, and that Ray reports nothing."""
    addresses = [
        address
        for process in processes
        for connection in process.net_connections("inet")
        for address in (connection.laddr, connection.raddr)
        if address
    ]
    assert addresses
    for address in addresses:
        host = ip_address(address.ip)
        assert (getattr(host, "ipv4_mapped", None) or host).is_loopback, address
    ray = [process for process in processes if "ray::_ShardActor" in process.cmdline()[0]]
    assert {process.environ()["RAY_USAGE_STATS_ENABLED"] for process in ray} == {"0"}
