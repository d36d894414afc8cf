"""The Ray engine: the bytes of the local engine, also after an actor or the whole Ray is killed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import assert_error, command, run_without
from support.images import make_image
from support.jobs import tree
from support.waiting import wait_until

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
    out = tmp_path_factory.mktemp("local") / "out"
    assert subprocess.run(embed(images, small_bundle, out), capture_output=True, check=False).returncode == 3
    return tree(out)


@pytest.fixture
def ray_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep Ray's files out of the system's folder, and notice soon that Ray has died."""
    pytest.importorskip("ray", reason="Ray is not installed; it is part of the extra [dev]")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")
        yield


@contextmanager
def killed_with_its_children(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that is still there in the end, and what it started, which holds its stderr open."""
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; it is part of the extra [dev]")
    try:
        yield
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def embed(images: Path, bundle: Path, out: Path, *options: str) -> list[str]:
    return command("embed", images, "--model", bundle, "--shard-size", 20, "--out", out, *options)


def test_ray_without_ray_names_the_extra(tmp_path: Path) -> None:
    result = run_without("ray", "embed", tmp_path, "--engine", "ray", "--out", tmp_path / "out")
    assert_error(result, 1, '[ray]"')


@pytest.mark.usefixtures("ray_environment")
@pytest.mark.parametrize("victim", ["actor", "Ray"])
def test_ray_killed_midway_writes_the_bytes_of_the_local_engine(
    victim: str, images: Path, small_bundle: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; it is part of the extra [dev]")
    out = tmp_path / "out"
    python, *words = embed(images, small_bundle, out, "--engine", "ray")
    mark = tmp_path / "executed"
    (tmp_path / "numpy.py").write_text(f"open({str(mark)!r}, 'w'); raise SystemExit")  # which no process may import
    by_ray = [python, "-P", *words]  # as the installed script, without the current folder in its search path
    with subprocess.Popen(by_ray, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) \
            as process, killed_with_its_children(process):  # fmt: skip
        wait_until(lambda: list(out.glob("receipts/*")) or process.poll() is not None, seconds=200)
        assert process.poll() is None, process.communicate()[1]
        children = psutil.Process(process.pid).children(recursive=True)
        actors = [child for child in children if "ray::_ShardActor" in " ".join(child.cmdline()[:1])]
        assert len(actors) == available_threads()
        assert_private([psutil.Process(process.pid), *actors])
        for child in actors[:1] if victim == "actor" else children:
            os.kill(child.pid, signal.SIGKILL)
        error = process.communicate(timeout=200)[1]
    assert not mark.exists()
    assert "Traceback" not in error
    if victim == "actor":
        assert process.returncode == 3, error
        assert list(Path(os.environ["RAY_TMPDIR"]).iterdir()) == []
    else:
        assert process.returncode not in (0, 3), error  # with our message, or ended by Ray's own check of its processes
        subprocess.run(embed(images, small_bundle, out), capture_output=True, check=False)
    assert tree(out) == expected


@pytest.mark.usefixtures("ray_environment")
@pytest.mark.parametrize(("number", "code", "start"), [
    (signal.SIGTERM, 143, "running"), (signal.SIGINT, 130, "running"), (signal.SIGINT, 130, "starting"),
])  # fmt: skip
def test_ray_ends_with_the_signal_and_leaves_no_folder(
    number: int, code: int, start: str, images: Path, small_bundle: Path, tmp_path: Path
) -> None:
    """Ray printed stack traces, ended the process with various codes, and left its sessions in /tmp/ray."""
    out, folder = tmp_path / "out", Path(os.environ["RAY_TMPDIR"])
    process = subprocess.Popen(embed(images, small_bundle, out, "--engine", "ray", "--workers", "1"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    with process, killed_with_its_children(process):
        begun = (lambda: list(out.glob("receipts/*"))) if start == "running" else (lambda: list(folder.glob("*/*/*")))
        wait_until(lambda: begun() or process.poll() is not None, seconds=200)
        process.send_signal(number)
        error = process.communicate(timeout=200)[1]
    assert process.returncode == code, error
    assert "SIGTERM received" not in error
    assert "Traceback" not in error
    assert list(folder.iterdir()) == []


def assert_private(processes: list[Any]) -> None:
    """Check that processes listen and connect on the loopback interface only, and that Ray reports no statistics.

    Every process of Ray listens, the driver included, and is connected to the processes that Ray started before it.
    """
    for process in processes:
        connections = process.net_connections("inet")
        assert any(connection.status == "LISTEN" for connection in connections)
        for connection in connections:
            for address in filter(None, (connection.laddr, connection.raddr)):
                host = ip_address(address.ip)
                assert (getattr(host, "ipv4_mapped", None) or host).is_loopback, address
    assert {process.environ()["RAY_USAGE_STATS_ENABLED"] for process in processes[1:]} == {"0"}
