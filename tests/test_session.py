from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_onnx import session
from siglip_onnx.errors import BundleError


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert session._cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (1.5, 2), (0.3, 1), (9.0, 4)])
def test_threads_are_the_smaller_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(session, "_cgroup_quota", lambda: quota)
    assert session.available_threads() == expected


def test_affinity_of_a_real_process() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from siglip_onnx.session import available_threads; print(available_threads())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"


def test_damaged_graph_is_a_bundle_error(tmp_path: Path) -> None:
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(b"\x00\x01 not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx is no readable ONNX graph"):
        session.Session(graph)
    graph.write_bytes(b"\x08\x01")  # protobuf, but no graph
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded with CPUExecutionProvider"):
        session.Session(graph)


def test_shared_pool_serves_every_session_and_refuses_other_sizes(small_bundle: Path) -> None:
    code = f"""
import siglip_onnx, siglip_onnx.session as session
session.share_thread_pool(2)
print(siglip_onnx.load({str(small_bundle)!r}).encode_texts(["a"]).shape)
print(siglip_onnx.load({str(small_bundle)!r}, threads=2).encode_texts(["a"]).shape)
try:
    siglip_onnx.load({str(small_bundle)!r}, threads=1).encode_texts(["a"])
except siglip_onnx.ProviderError as error:
    print(error)
"""
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert lines[:2] == ["(1, 64)", "(1, 64)"]
    assert lines[2].startswith("1 threads were asked for, but this process shares one pool of 2 threads.")


def test_other_users_of_onnxruntime_are_left_alone(small_bundle: Path) -> None:
    code = f"""
import siglip_onnx
siglip_onnx.load({str(small_bundle)!r}).encode_texts(["a"])
import onnxruntime
other = onnxruntime.InferenceSession({str(small_bundle / "onnx" / "text_model.onnx")!r})
print(other.get_outputs()[0].name)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "pooler_output"
