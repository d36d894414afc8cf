import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import siglip_onnx
from siglip_onnx import session
from siglip_onnx.errors import BundleError
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
    assert threads.cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (1.5, 2), (0.3, 1), (9.0, 4)])
def test_threads_follow_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
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
def test_int8_probe_is_what_its_script_writes() -> None:
    import onnx_ir

    from make_int8_probe import int8_probe

    expected = onnx_ir.serde.serialize_model(int8_probe()).SerializeToString()
    assert session.INT8_PROBE.read_bytes() == expected


def test_saturating_instructions_are_detected_and_avoided() -> None:
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
def test_exact_int8_kernels_only_where_needed(monkeypatch: pytest.MonkeyPatch, saturates: bool) -> None:
    monkeypatch.setattr(session, "int8_saturates", lambda: saturates)
    for exact_int8, expected in ((None, saturates), (False, False), (True, True)):
        loaded = session.LazySession(session.INT8_PROBE, exact_int8=exact_int8).load()
        entry = loaded.get_session_options().get_session_config_entry("session.x64quantprecision")
        assert entry == ("1" if expected else "0")


def test_threads_do_not_spin_between_runs(small_bundle: Path) -> None:
    model = siglip_onnx.load(small_bundle, threads=2)
    model.encode_texts(["a"])
    cpu = time.process_time()
    time.sleep(0.1)  # onnxruntime's threads otherwise spin for about 0.04 s more
    assert time.process_time() - cpu < 0.02


def test_other_onnxruntime_sessions_work_unchanged(small_bundle: Path) -> None:
    graph = next((small_bundle / "onnx").glob("text_model*.onnx"))
    code = f"""
import siglip_onnx
siglip_onnx.load({str(small_bundle)!r}).encode_texts(["a"])
import onnxruntime
other = onnxruntime.InferenceSession({str(graph)!r})
print(other.get_outputs()[0].name)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "pooler_output"
