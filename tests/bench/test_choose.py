"""``bench MODEL --choose``: what it measures, what it refuses, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import make_classifier, make_single_tower
from support.commands import assert_error, run
from support.engines import needs_openvino

import siglip_onnx
from siglip_onnx.bench import choose as module
from siglip_onnx.bench import machine, timer
from siglip_onnx.bench.engine import Engine, packages
from siglip_onnx.bench.run import QUICK, plan_bundle
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.session import CPU_PROVIDER
from siglip_onnx.system.cpu import Cpu
from siglip_onnx.system.threads import available_threads


@pytest.fixture(autouse=True)
def _quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure briefly, with onnxruntime alone, and keep the choice in a cache of the test."""
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timer, "WARM_UP", 1)
    monkeypatch.setattr(module, "_RATE_SECONDS", 0.05)
    monkeypatch.setattr(module, "engines", lambda: [module.Engine("onnxruntime", CPU_PROVIDER)])


def chosen(*arguments: Any) -> dict[str, Any]:
    done = run("bench", *arguments, "--choose", "--json")
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_fastest_variant_above_the_floor_is_kept() -> None:
    document = chosen("demo")
    choice, measured = document["choice"], document["measured"]
    at_first = {row["variant"]: row for row in measured if row["threads"] == available_threads() and row["ms"]}
    assert at_first.keys() == {"fp32", "int8"}
    assert at_first["fp32"]["cosine_min"] == 1
    assert 0.999 < at_first["int8"]["cosine_min"] < 1
    fastest = min(at_first, key=lambda variant: at_first[variant]["ms"]["vision"])
    assert choice["variant"] == fastest
    rates = {row["workers"]: row["images_per_s"] for row in measured if row["images_per_s"]}
    assert rates.keys() == {1, available_threads()}
    assert choice["workers"] == max(rates, key=lambda workers: rates[workers])
    assert choice["measured"]["images_per_s"] == pytest.approx(max(rates.values()), abs=0.01)
    assert json.loads(Path(document["file"]).read_text())["variant"] == choice["variant"]
    assert siglip_onnx.load("demo").variant == choice["variant"]


def test_variant_below_the_floor_is_not_chosen() -> None:
    done = run("bench", "demo", "--choose", "--min-cosine", "0.99999")
    assert done.exit_code == 0, done.output
    assert "below the floor" in done.stdout
    assert "Chosen: fp32" in done.stdout
    done = run("bench", "demo", "--choose", "--min-cosine", "0.99999", "--variant", "int8")
    assert_error(done, 1, "reaches a cosine of 0.99999 to fp32; the best of those measured has 0.999")


def test_candidates_without_time_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SHARE", 0)
    monkeypatch.setattr(module, "DEFAULT_ORDER", ("fp32", "int8"))
    document = chosen("demo", "--seconds", "1")
    assert document["choice"]["variant"] == "fp32"
    problems = {row["variant"]: row["problem"] for row in document["measured"] if row["problem"]}
    assert problems == {"int8": "no time was left; raise --seconds"}


def test_default_variant_is_always_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SHARE", 0)
    document = chosen("demo", "--seconds", "1")
    assert {row["variant"] for row in document["measured"] if row["ms"]} == {"fp32", "int8"}


@pytest.mark.parametrize(
    "options", [("--choose", "--quick"), ("--choose", "--markdown"), ("--min-cosine", "0.9"), ("--seconds", "3")]
)
def test_options_that_do_not_go_together(options: tuple[str, ...]) -> None:
    done = run("bench", "demo", *options)
    assert done.exit_code == 2
    assert "--choose" in done.output


@needs_openvino
def test_both_engines_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for flags, names in ((("avx2",), ["onnxruntime", "OpenVINO"]), (("amx_bf16",), ["onnxruntime", "OpenVINO",
                                                                                   "OpenVINO bf16"])):  # fmt: skip
        monkeypatch.setattr(machine, "read_cpu", lambda flags=flags: Cpu("x86_64", "a CPU", flags))
        assert [engine.name for engine in module.engines()] == names


@needs_openvino
def test_bench_measures_variants_with_a_provider() -> None:
    bundle = open_bundle(BUNDLE_PATH)
    plan = plan_bundle(bundle, ["fp32"], [], [], checkpoint=None, threads=1, limits=QUICK, providers=("", "OpenVINO"))
    assert [each.name for each in plan.configurations] == ["siglip_onnx fp32", "siglip_onnx fp32, OpenVINO"]
    assert plan.reference == "siglip_onnx fp32"
    ours, openvino = map(Engine, plan.configurations)
    inputs = ours.preprocess(ours.decode(IMAGES_PATH / "red_star.png"))
    assert openvino.model.providers == ["OpenVINO"]
    np.testing.assert_allclose(openvino.vision(inputs), ours.vision(inputs), atol=1e-4)
    assert packages(plan.configurations[1]) == ("openvino",)


@pytest.mark.parametrize("kind", ["vision", "text", "classifier"])
def test_models_of_one_tower(tmp_path: Path, small_checkpoint: Path, kind: str) -> None:
    if kind == "classifier":
        checkpoint = make_classifier(
            small_checkpoint, tmp_path / kind, labels=("a", "b", "c"), problem_type="single_label_classification"
        )
    else:
        checkpoint = make_single_tower(small_checkpoint, tmp_path / kind, kind)
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32", "int8"])
    document = chosen(tmp_path / "out", "--min-cosine", "0.99")
    tower = "text" if kind == "text" else "vision"
    assert all(row["ms"].keys() == {tower} for row in document["measured"] if row["ms"])
    assert document["choice"]["measured"]["images_per_s"] > 0


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("siglip_onnx.cli.bench.choose", lambda *_, **__: pytest.fail("it was measured"))
    result = run("bench", BUNDLE_PATH, "--choose")
    assert_error(result, 4, "cannot be used: Not a directory. Choose another folder with SIGLIP_ONNX_CACHE")
