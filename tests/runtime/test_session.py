import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import run

import siglip_onnx
from siglip_onnx import session
from siglip_onnx.demo import BUNDLE_PATH
from siglip_onnx.errors import BundleError, ProviderError, SiglipOnnxError
from siglip_onnx.system import threads


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


@pytest.fixture
def correct(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The kernels that are correct on this machine, a set that a test may change."""
    kernels: set[str] = set()
    monkeypatch.setattr(session, "_is_correct", kernels.__contains__)
    session.int8_kernels.cache_clear()
    yield kernels
    session.int8_kernels.cache_clear()


def test_option_that_cures_wrong_kernels_is_used(correct: set[str]) -> None:
    correct |= {session.WITHOUT_KLEIDIAI}
    for exact_int8 in (None, False, True):
        options = session.LazySession(session.INT8_PROBE, exact_int8=exact_int8).load().get_session_options()
        assert options.get_session_config_entry("mlas.disable_kleidiai") == "1"
    assert siglip_onnx.load("demo").variant == "int8"
    assert "KleidiAI are wrong, and are not used" in run("doctor").stdout


def test_fp32_is_used_where_every_int8_kernel_is_wrong(correct: set[str], caplog: pytest.LogCaptureFixture) -> None:
    assert not correct
    assert siglip_onnx.load("demo").variant == "fp32"
    assert "variant fp32 is used instead" in caplog.text
    with pytest.raises(ProviderError, match="Use the variant fp32"):
        siglip_onnx.load("demo", variant="int8")
    answer = run("doctor").stdout
    assert "int8        WARNING: incorrect on" in answer
    assert "The variant fp32 is used by default" in answer


def test_bundle_without_fp32_is_refused_where_every_int8_kernel_is_wrong(correct: set[str], tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE_PATH, tmp_path / "bundle")
    assert run("models", "strip", bundle, "--keep", "int8").exit_code == 0
    assert not correct
    with pytest.raises(ProviderError, match="Use the variant fp32"):
        siglip_onnx.load(bundle)
    correct |= {session.EXACT}
    session.int8_kernels.cache_clear()
    assert siglip_onnx.load(bundle).variant == "int8"


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


@pytest.mark.export
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere graphs are loaded in one way")
@pytest.mark.parametrize("exact_int8", [False, True])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_graph_for_few_runs_has_the_same_bits(small_bundle: Path, tmp_path: Path, tower: str, exact_int8: bool) -> None:
    path = move_weights(small_bundle / "onnx" / f"{tower}_model_quantized.onnx", tmp_path)
    quick = session.LazySession(path, exact_int8=exact_int8, few_runs=True)
    usual = session.LazySession(path, exact_int8=exact_int8)
    rng = np.random.default_rng(0)
    shape = [size if isinstance(size, int) else 1 for size in usual.load().get_inputs()[0].shape]
    inputs: dict[str, Any] = {"vision": {"pixel_values": rng.uniform(-1, 1, shape).astype(np.float32)},
              "text": {"input_ids": rng.integers(0, 30, shape)}}[tower]  # fmt: skip
    expected = usual.run("pooler_output", inputs).tobytes()
    for _ in range(2):
        assert quick.run("pooler_output", inputs).tobytes() == expected
    assert quick._quick_weights is not None
    assert usual._quick_weights is None
    quick.unload()
    assert quick.run("pooler_output", inputs).tobytes() == expected
    assert quick._quick_weights is not None
    quick.close()
    with pytest.raises(SiglipOnnxError, match="is closed"):
        quick.run("pooler_output", inputs)


@pytest.mark.export
def test_errors_of_a_graph_are_the_same_for_few_runs(small_bundle: Path, tmp_path: Path) -> None:
    path = move_weights(small_bundle / "onnx" / "text_model_quantized.onnx", tmp_path)
    weights = path.with_name(f"{path.name}_data")
    weights.write_bytes(weights.read_bytes()[:-5000])
    messages = set()
    for few_runs in (False, True):
        tower = session.LazySession(path, exact_int8=True, few_runs=few_runs)
        tower.preload()
        with pytest.raises(BundleError, match=r"text_model_quantized\.onnx cannot be loaded") as raised:
            tower.embed({"input_ids": np.zeros((1, 64), np.int64)})
        messages.add(str(raised.value))
        assert tower._quick_weights is None
    assert len(messages) == 1


def move_weights(path: Path, folder: Path) -> Path:
    """Return a copy of a graph whose weights are all beside it, as those of large models are."""
    import onnx

    copy = folder / path.name
    onnx.save(onnx.load(path), copy, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)
    return copy
