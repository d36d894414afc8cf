"""What ``bench --choose`` kept: used by ``load``, replaced by explicit arguments, ignored where it does not hold."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import run

import siglip_onnx
from siglip_onnx.bundle.folder import Bundle, open_bundle
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.doctor import choices
from siglip_onnx.hub.choice import Choice, apply_choice, choice_path, write_choice
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.session import CPU_PROVIDER

FP32 = Choice("demo", "fp32", CPU_PROVIDER, threads=1, workers=2)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The demo model, with a cache of its own."""
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    return open_bundle(BUNDLE_PATH)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_load_and_commands_use_it_until_it_is_deleted(demo: Bundle) -> None:
    assert siglip_onnx.load("demo").variant == "int8"
    path = write_choice(demo, FP32)
    model = siglip_onnx.load("demo")
    assert (model.variant, model.providers) == ("fp32", [CPU_PROVIDER])
    done = run("classify", IMAGES_PATH / "red_star.png", "--text", "a red star", "--json")
    assert json.loads(done.stdout)["variant"] == "fp32"
    assert choices().answer == "demo: fp32 with CPUExecutionProvider, threads: 1, workers: 2"
    path.unlink()
    assert siglip_onnx.load("demo").variant == "int8"
    assert choices().answer.startswith("none")


def test_explicit_arguments_win(demo: Bundle) -> None:
    write_choice(demo, replace(FP32, threads=3))
    assert siglip_onnx.load("demo", variant="int8").variant == "int8"
    assert siglip_onnx.load("demo", providers=[CPU_PROVIDER]).variant == "int8"
    chosen = apply_choice(demo, RuntimeOptions())
    assert (chosen.variant, chosen.providers, chosen.threads, chosen.workers) == ("fp32", (CPU_PROVIDER,), 3, 1)
    assert apply_choice(demo, RuntimeOptions(threads=2)).threads == 2
    many = apply_choice(demo, RuntimeOptions(workers=4))
    assert (many.workers, many.threads) == (4, None)
    auto = apply_choice(demo, RuntimeOptions(workers=4), auto_workers=True)
    assert (auto.workers, auto.threads) == (2, None)


def test_search_uses_the_variant_of_the_vectors(demo: Bundle, tmp_path: Path) -> None:
    write_choice(demo, FP32)
    images = Path(shutil.copytree(IMAGES_PATH, tmp_path / "images"))
    for _ in range(2):  # a new index, and an old one
        done = run("search", images, "--text", "a red star", "--json", "--index", tmp_path / "index")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["variant"] == "int8"


def test_options_of_the_provider_are_kept(demo: Bundle) -> None:
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    write_choice(demo, replace(FP32, settings=settings))
    assert apply_choice(demo, RuntimeOptions()).providers == ((CPU_PROVIDER, settings),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu": "Another CPU"}, "it was measured on .* Another CPU, and this process has"),
        ({"cpus": 4096}, "it was measured on 4096 CPUs"),
        ({"versions": {"siglip_onnx": "0.0.1"}}, "it was measured with siglip_onnx 0.0.1"),
        ({"variant": "q4"}, "no variant q4 any more"),
        ({"provider": "OpenVINO"}, "openvino None, which is not installed"),
        ({"threads": "two"}, "it cannot be read"),
        ({"threads": 0}, "it has 0 threads"),
        ({"workers": -1}, "and -1 workers"),
        ({"provider": "NopeExecutionProvider"}, "which this onnxruntime does not have"),
    ],
)
def test_stale_choice_is_ignored_with_one_line(
    demo: Bundle, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], message: str
) -> None:
    edit(write_choice(demo, FP32), **changes)
    with caplog.at_level(logging.WARNING):
        assert siglip_onnx.load("demo").variant == "int8"
    (record,) = caplog.records
    assert str(choice_path(demo)) in record.getMessage()
    assert re.search(message, record.getMessage())
    if "variant" not in changes:
        assert choices().state == "warning"


def test_choice_is_that_of_one_manifest(demo: Bundle, tmp_path: Path) -> None:
    write_choice(demo, FP32)
    copy = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "copy"))
    assert siglip_onnx.load(copy).variant == "fp32"
    manifest = copy / "manifest.json"
    manifest.write_text(replace(demo.manifest, description="another").to_json())
    assert siglip_onnx.load(copy).variant == "int8"


def test_damaged_file_of_the_chosen_variant_is_found(demo: Bundle, tmp_path: Path) -> None:
    write_choice(demo, FP32)
    copy = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "copy"))
    graph = copy / "onnx" / "vision_model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(siglip_onnx.BundleError, match=r"vision_model\.onnx: sha256"):
        siglip_onnx.load(copy)


def test_reading_it_is_fast_and_imports_nothing(demo: Bundle) -> None:
    write_choice(demo, FP32)
    code = """
import sys, siglip_onnx
from siglip_onnx.hub.choice import apply_choice
model = siglip_onnx.load("demo", variant="int8")
before = set(sys.modules)
siglip_onnx.load("demo")
print(sorted(set(sys.modules) - before))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    options = RuntimeOptions()
    times = []
    for _ in range(50):
        began = time.perf_counter()
        apply_choice(demo, options)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.001
