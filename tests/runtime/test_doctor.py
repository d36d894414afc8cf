"""Findings of ``doctor`` for machines in all states, and the stored answers behind its self-test."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.commands import run

from siglip_onnx import doctor as doctor_module
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.demo import BUNDLE_PATH, GOLDEN_PATH
from siglip_onnx.demo.golden import MIN_COSINE, Agreement, compare, read_golden, write_golden
from siglip_onnx.errors import BundleError
from siglip_onnx.hub.cache import PARTIAL, models_folder, repository_folder
from siglip_onnx.session import LazySession, runtime_version
from siglip_onnx.system import threads
from siglip_onnx.system.cpu import Cpu, int8_kernels, read_cpu

X86, ARM = "x86_64", "aarch64"


@pytest.mark.parametrize(
    ("architecture", "flags", "safe", "fast", "why"),
    [
        (X86, ("avx2", "avx512_vnni"), False, True, "VNNI"),
        (X86, ("avx2", "avx_vnni"), True, True, "VNNI"),
        (X86, ("avx2",), False, False, "--reduce-range"),
        (X86, ("avx2", "avx512f"), True, True, "within 7 bits"),
        (ARM, ("asimd", "asimddp"), False, True, "dot product"),
        (ARM, ("asimd",), False, False, "no int8 instructions"),
        ("riscv64", ("avx",), False, False, "no int8 instructions"),
        (X86, (), False, False, "does not list"),
    ],
)
def test_int8_kernels_of_a_cpu(architecture: str, flags: tuple[str, ...], safe: bool, fast: bool, why: str) -> None:
    found = int8_kernels(Cpu(architecture, "a CPU", flags), saturation_safe=safe)
    assert found.fast == fast
    assert why in found.why


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        ("model name\t: Fast 1\nflags\t\t: fpu avx2 sse avx_vnni\n", "Fast 1", ("avx2", "avx_vnni")),
        ("processor : 0\nFeatures : fp asimd i8mm\n", None, ("asimd", "i8mm")),
        ("\xff nonsense", None, ()),
    ],
)
def test_cpuinfo(tmp_path: Path, text: str, name: str | None, flags: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="latin-1")
    found = read_cpu(tmp_path / "cpuinfo")
    assert found.flags == flags
    assert name is None or found.name == name
    assert read_cpu(tmp_path / "missing").flags == ()


def test_this_machine_is_healthy() -> None:
    found = run("doctor", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["healthy"] is True
    findings = document["findings"]
    assert list(findings) == [
        "versions", "onnxruntime", "int8", "threads", "memory", "providers", "openvino", "telemetry", "demo files",
        "self-test", "cache", "choices",
    ]  # fmt: skip
    assert findings["versions"]["facts"]["packages"]["onnxruntime"]
    assert findings["threads"]["facts"]["used"] >= 1
    assert findings["telemetry"]["facts"]["off"] is True
    assert findings["self-test"]["facts"]["found"]["image_cosine_min"] >= MIN_COSINE
    table = run("doctor")
    assert table.exit_code == 0
    assert "self-test   cosine to the stored answers" in table.stdout


@pytest.mark.parametrize(("exact", "advice"), [(True, "The exact kernels"), (False, "with every kernel")])
def test_wrong_int8_is_reported_with_advice(monkeypatch: pytest.MonkeyPatch, exact: bool, advice: str) -> None:
    embed = LazySession.embed

    def saturating(session: LazySession, inputs: dict[str, np.ndarray]) -> np.ndarray:
        right = exact and session._exact_int8 is True
        return embed(session, inputs) if right else -embed(session, inputs)

    monkeypatch.setattr(LazySession, "embed", saturating)
    found = run("doctor")
    assert found.exit_code == 4
    assert "self-test   FAILURE" in found.stdout
    assert advice in found.stdout
    assert "fp32" in found.stdout


def test_agreement_of_nan_does_not_hold() -> None:
    assert not Agreement(float("nan"), 1.0).holds
    assert not Agreement(1.0, float("nan")).holds
    assert Agreement(MIN_COSINE, 1.0).holds


def test_damaged_files_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(b"PK nonsense")
    monkeypatch.setattr(doctor_module, "GOLDEN_PATH", tmp_path / "golden.npz")
    monkeypatch.setattr(doctor_module, "verify_folder", lambda _path: ["onnx/x: missing"])
    found = json.loads(run("doctor", "--json").stdout)["findings"]
    assert found["demo files"]["state"] == found["self-test"]["state"] == "failure"
    assert "Install siglip_onnx again" in found["self-test"]["answer"]


def test_a_memory_limit_below_one_worker_per_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_threads", lambda: 8)
    monkeypatch.setattr(doctor_module, "available_threads", lambda: 8)
    for module in (threads, doctor_module):
        monkeypatch.setattr(module, "memory_limits", lambda: {"machine_bytes": 16_000_000_000, "cgroup_bytes": 10**9})
    found = doctor_module.memory()
    assert (found.state, found.facts["default_workers"]) == ("warning", 3)
    assert found.answer == "16.0 GB, limited to 1.0 GB by a cgroup; workers by default: 3"
    assert "3 of 8 workers" in found.advice


def make_distribution(folder: Path, name: str, version: str) -> None:
    """Write what pip records of an installed wheel that owns the module ``onnxruntime``."""
    record = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (record / "top_level.txt").write_text("onnxruntime\n")


def test_two_owners_of_onnxruntime_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = doctor_module.runtime()
    assert alone.state == "ok"
    assert alone.answer == f"{runtime_version()}, installed by onnxruntime {runtime_version()}"
    make_distribution(tmp_path, "onnxruntime-gpu", "1.20.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor_module.runtime()
    assert found.state == "warning"
    assert "onnxruntime-gpu 1.20.1: they overwrite" in found.answer
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu" in found.advice
    assert found.facts["distributions"] == {"onnxruntime": runtime_version(), "onnxruntime-gpu": "1.20.1"}


def test_another_version_than_the_recorded_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "owners_of", lambda _module: {"onnxruntime-openvino": "1.2.3"})
    assert "openvino 1.2.3, which is another version" in doctor_module.runtime().answer
    monkeypatch.setattr(doctor_module, "runtime_version", lambda: "1.2.3+cu12")
    assert doctor_module.runtime().state == "ok"
    monkeypatch.setattr(doctor_module, "owners_of", lambda _module: {})  # built from source, on the path
    assert doctor_module.runtime().answer.endswith("installed by no distribution")


def test_a_small_quota_and_telemetry_give_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpus": 8, "affinity": 8, "cgroup_quota": 0.5}
    monkeypatch.setattr(doctor_module, "thread_limits", lambda: limits)
    assert doctor_module.threads().state == "warning"
    monkeypatch.setattr(doctor_module, "thread_limits", lambda: limits | {"cgroup_quota": 2.0})
    assert doctor_module.threads().state == "ok"
    monkeypatch.setattr(doctor_module, "telemetry_state", lambda: {"off": False})
    assert "import siglip_onnx before onnxruntime" in doctor_module.telemetry().advice


@pytest.mark.parametrize(("first", "expected"), [("siglip_onnx.session", "True"), ("onnxruntime", "False")])
def test_telemetry_is_off_if_onnxruntime_is_imported_second(first: str, expected: str) -> None:
    code = f"import {first}; from siglip_onnx.system.telemetry import telemetry_state; print(telemetry_state()['off'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == expected


def test_health_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    assert doctor_module.cache().state == "warning"
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    assert doctor_module.cache().state == "ok"
    partial = repository_folder("a/b") / f"{'0' * 40}{PARTIAL}"
    partial.mkdir(parents=True)
    assert "leftovers: 1" in doctor_module.cache().answer
    model = models_folder() / "a--b" / ("1" * 40)
    model.mkdir()
    (model / "manifest.json").write_text("{}")
    record = {"name": "a/b", "revision": "1" * 40, "kind": "bundle", "pulled": 0.0}
    model.with_name(f"{model.name}.json").write_text(json.dumps(record))
    found = doctor_module.cache()
    assert found.state == "failure"
    assert "a/b@111111111111" in found.answer
    assert "models pull" in found.advice


@pytest.mark.export
def test_stored_answers_are_those_of_the_shipped_model() -> None:
    import make_golden

    golden, demo = read_golden(GOLDEN_PATH), open_bundle(BUNDLE_PATH)
    assert golden.provenance["weights_sha256"] == demo.manifest.source["weights_sha256"], "run scripts/make_golden.py"
    made = make_golden.make_golden(demo)
    assert (made.images, made.texts) == (golden.images, golden.texts)
    assert compare(golden, made.image_embeddings, made.text_embeddings).holds
    np.testing.assert_allclose(np.linalg.norm(golden.image_embeddings, axis=1), 1, atol=1e-6)


@pytest.mark.export
@pytest.mark.parametrize("source", ["small_checkpoint", "small_bundle"])
def test_the_script_takes_checkpoints_and_bundles(request: pytest.FixtureRequest, tmp_path: Path, source: str) -> None:
    import make_golden

    out = tmp_path / "golden.npz"
    done = CliRunner().invoke(make_golden.main, [str(request.getfixturevalue(source)), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert read_golden(out).provenance["kernels"] == "fp32"


def test_answers_of_another_model(tmp_path: Path) -> None:
    golden = read_golden(GOLDEN_PATH)
    with pytest.raises(BundleError, match="they are of different models"):
        compare(golden, golden.image_embeddings[:, :5], golden.text_embeddings)
    write_golden(replace(golden, texts=("犬",)), tmp_path / "golden.npz")
    assert read_golden(tmp_path / "golden.npz").texts == ("犬",)
