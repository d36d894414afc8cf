"""The suite around the package's benchmark: counted operations, commands, accuracy, LoadGen, the peers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from siglip_onnx.bench.contestant import Configuration
from siglip_onnx.bench.pytorch import PyTorch
from siglip_onnx.config import SiglipConfig, TextConfig, VisionConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import backends  # noqa: E402
import catalog  # noqa: E402
import limit  # noqa: E402
import processes  # noqa: E402


def backend(name: str) -> ModuleType:
    module = importlib.import_module(f"backends.{name}")
    for needed in module.NEEDS:
        pytest.importorskip(needed)
    return module


def test_operations_of_the_base_shapes_are_those_counted_elsewhere() -> None:
    vision = VisionConfig(image_size=256, patch_size=16)
    found = limit.count_operations(SiglipConfig("siglip", vision, TextConfig(vocab_size=250_000)))
    # Profile of open_clip, ViT-B-16-SigLIP-256: 46.8 GFLOP a picture, 11.0 a text; the pooled position needs less.
    assert sum(found["vision"].values()) == pytest.approx(46.8e9, rel=0.01)
    assert 0.9 * 11.0e9 < sum(found["text"].values()) < 11.0e9


def test_the_peak_of_the_instructions_is_no_less_than_that_of_a_product() -> None:
    peaks = limit.measure_instructions(1)
    if not peaks:
        pytest.skip("no C compiler, or no x86")
    left, right = np.ones((256, 256), np.float32), np.ones((256, 256), np.float32)
    assert peaks["int8"] > peaks["fp32"] > 1e9
    assert 0 < limit.time_gemm("MatMul", left, right, 1) < 1.5 * peaks["fp32"]


@pytest.mark.parametrize("name", backends.MODULES)
def test_every_peer_answers_as_pytorch_does(
    name: str, small_checkpoint: Path, small_bundle: Path, tmp_path: Path, images: list[Any]
) -> None:
    if name in ("pytorch_compile", "torchao_int8"):
        pytest.skip("compiles for a minute; measured by the suite")
    pytest.importorskip("openvino" if name == "openvino_ir" else "torch")
    module = backend(name)
    paths = []
    for number, picture in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    reference = PyTorch(configuration(small_bundle, small_checkpoint, tmp_path, "fp32"))
    for variant, (_, about) in module.VARIANTS.items():
        assert about
        work = tmp_path / f"{name}_{variant}"
        work.mkdir()
        one = configuration(small_bundle, small_checkpoint, work, variant)
        module.prepare(one, paths)
        contestant = module.load(one)
        inputs = contestant.preprocess(contestant.decode(paths[1]))
        assert nearness(contestant.vision(inputs), reference.vision(inputs)) > 0.98
        ids = contestant.tokenize("a red circle")
        assert np.array_equal(ids, reference.tokenize("a red circle"))
        assert nearness(contestant.text(ids), reference.text(ids)) > 0.98
        both = contestant.vision({"pixel_values": np.repeat(inputs["pixel_values"], 2, axis=0)})
        assert both.shape == (2, 64)
        assert all(path.is_file() for path in module.files(one))
        assert module.packages(one)


def configuration(bundle: Path, checkpoint: Path, work: Path, variant: str) -> Configuration:
    return Configuration("peer", "", variant, str(bundle), str(checkpoint), str(work), threads=1)


def nearness(found: Any, expected: Any) -> float:
    return float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MODULES", ("pytorch_bf16", "no_such_backend"))
    found = catalog.describe_backends()
    assert found["pytorch_bf16"] == {"bf16": found["pytorch_bf16"]["bf16"]}  # type: ignore[index]
    assert found["no_such_backend"] == "not installed: backends.no_such_backend"


def test_pictures_to_measure_are_none_of_those_to_calibrate(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").touch()
    found = catalog.choose_pictures(tmp_path)
    assert len(found) == len(set(found)) == 40
    assert found[: catalog.NUM_PICTURES] != sorted(found)[: catalog.NUM_PICTURES]  # from the whole folder


def test_whole_commands_are_measured(tmp_path: Path) -> None:
    picture = ROOT / "siglip_onnx" / "demo" / "images" / "red_star.png"
    found = processes.measure_commands(ROOT / "siglip_onnx" / "demo" / "bundle", picture, tmp_path, 1)
    assert found["classify, one picture and two texts"]["peak_memory_mb"] > found["--help"]["peak_memory_mb"]
    assert all(one["min_seconds"] > 0 for one in found.values())


def test_a_drawn_set_has_a_folder_per_class(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "draw_demo_set.py"), str(tmp_path / "set"), "--per-class", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "100 pictures of 100 classes" in done.stderr
    dataset = accuracy.read_dataset(tmp_path / "set", {"a red star": "a star, red"})
    assert len(dataset.paths) == len(dataset.texts) == 100
    assert "a star, red" in dataset.texts
    assert [dataset.texts[number] for number in dataset.classes] == dataset.texts


def test_the_demo_model_knows_the_drawn_set(tmp_path: Path) -> None:
    import draw_demo_set

    draw_demo_set.main(["--per-class", "1", str(tmp_path)], standalone_mode=False)
    dataset = accuracy.read_dataset(tmp_path, {})
    bundle = ROOT / "siglip_onnx" / "demo" / "bundle"
    one = Configuration("demo", "siglip_onnx.bench.engine", "int8", str(bundle), threads=1)
    found = accuracy.ask(one, dataset, ["{}"])
    top1, top5 = found.mean(axis=1)
    assert 0.6 < top1 <= top5  # chance is 0.01 and 0.05
    (row,) = accuracy.describe({"demo": found}, found)
    assert row["loss_top1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    worse = found.copy()
    worse[0, np.flatnonzero(found[0])[:10]] = False
    row = accuracy.describe({"worse": worse}, found)[0]
    assert row["loss_top1"]["value"] == pytest.approx(0.1)
    assert 0 < row["loss_top1"]["low"] < 0.1 < row["loss_top1"]["high"]


def test_a_tie_is_no_right_answer() -> None:
    assert accuracy.rank_of(np.array([3.0, 1.0, 2.0], np.float32), 0) == 0
    assert accuracy.rank_of(np.array([3.0, 3.0, 2.0], np.float32), 0) == 1
    assert accuracy.rank_of(np.array([3.0, 1.0, 2.0], np.float32), 1) == 2


def test_loadgen_asks_the_vision_tower(small_bundle: Path, tmp_path: Path, images: list[Any]) -> None:
    pytest.importorskip("mlperf_loadgen")
    import loadgen

    paths = []
    for number, picture in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    one = Configuration("int8", "siglip_onnx.bench.engine", "int8", str(small_bundle), threads=1)
    found, features = loadgen.in_fresh_process(loadgen.run_scenarios, one, paths, loadgen.SCENARIOS, 1.0)
    assert [scenario["scenario"] for scenario in found] == ["SingleStream", "Offline"]
    assert found[0]["Result is"] == "VALID"
    assert any("percentile latency" in key for key in found[0])
    assert any("Samples per second" in key for key in found[1])
    assert features.shape == (len(images), 64)
    assert "unofficial" in loadgen.LABEL
    assert json.dumps(found)
