from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import siglip_onnx
from siglip_onnx import session
from siglip_onnx.errors import BundleError, ProviderError
from siglip_onnx.system import threads


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
    assert threads._cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (1.5, 2), (0.3, 1), (9.0, 4)])
def test_threads_are_the_smaller_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
    assert threads.available_threads() == expected


def test_affinity_of_a_real_process() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from siglip_onnx.system.threads import available_threads; print(available_threads())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"


def test_damaged_graph_is_a_bundle_error(tmp_path: Path) -> None:
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(b"\x00\x01 not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded"):
        session.LazySession(graph).load()
    graph.write_bytes(b"\x08\x01")  # protobuf, but no graph
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded with CPUExecutionProvider"):
        session.LazySession(graph).load()


@pytest.mark.export
def test_the_probe_is_what_its_script_makes() -> None:
    import onnx_ir

    from make_int8_probe import int8_probe

    made = onnx_ir.serde.serialize_model(int8_probe()).SerializeToString()
    assert session._INT8_PROBE.read_bytes() == made


def test_saturating_instructions_are_found_and_avoided() -> None:
    """On an emulated CPU without VNNI; the kernels that onnxruntime then takes are real."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64, which emulates CPUs without VNNI, is not installed")
    code = """
import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.session import int8_saturates
model = siglip_onnx.load("demo", threads=1)
image, text = model.encode_images(IMAGES_PATH / "six_eggs.png"), model.encode_texts(["six eggs"])
print(int8_saturates(), float(model.logits(image, text)[0, 0]))
"""
    here = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    there = subprocess.check_output(
        [emulator, "-cpu", "Haswell", sys.executable, "-c", code], text=True, stderr=subprocess.DEVNULL, timeout=120
    ).split()
    assert there[0] == "True"
    assert float(there[1]) == pytest.approx(float(here[1]), abs=0.1)


@pytest.mark.parametrize("saturates", [True, False])
def test_exact_kernels_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch, saturates: bool) -> None:
    asked = []

    def options(threads: int, *, exact_int8: bool) -> object:
        asked.append(exact_int8)
        return real(threads, exact_int8=exact_int8)

    real = session._options
    monkeypatch.setattr(session, "_options", options)
    monkeypatch.setattr(session, "int8_saturates", lambda: saturates)
    for saturation_safe in (False, True):
        session.LazySession(session._INT8_PROBE, exact_int8=False if saturation_safe else None).load()
    assert asked == [saturates, False]


def test_threads_rest_between_runs(small_bundle: Path) -> None:
    model = siglip_onnx.load(small_bundle, threads=2)
    model.encode_texts(["a"])
    cpu = time.process_time()
    time.sleep(0.1)  # onnxruntime's threads otherwise spin for about 0.04 s more
    assert time.process_time() - cpu < 0.02


@pytest.mark.parametrize("threads", [0, 513, "2"])
def test_threads_must_be_a_number_in_range(small_bundle: Path, threads: Any) -> None:
    with pytest.raises(ProviderError, match=f"threads is {threads!r}, expected a number from 1 to 512"):
        siglip_onnx.load(small_bundle, threads=threads).encode_texts(["a"])


def test_other_users_of_onnxruntime_are_left_alone(small_bundle: Path) -> None:
    graph = next((small_bundle / "onnx").glob("text_model*.onnx"))
    code = f"""
import siglip_onnx
siglip_onnx.load({str(small_bundle)!r}).encode_texts(["a"])
import onnxruntime
other = onnxruntime.InferenceSession({str(graph)!r})
print(other.get_outputs()[0].name)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "pooler_output"
