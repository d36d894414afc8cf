"""The suite around the package's benchmark: counted operations, commands, accuracy, quantization, the peers."""

import importlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import accuracy
import backends
import catalog
import commands
import draw_demo_set
import limit
import numpy as np
import operations
import outliers
import pytest
import quantization
from support.images import save_all

import siglip_onnx
from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.machine import peak_memory_mb
from siglip_onnx.bench.pytorch import PyTorch
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.config import SiglipConfig, TextConfig, VisionConfig
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.session import int8_saturates


def backend_module(name: str) -> ModuleType:
    module = importlib.import_module(f"backends.{name}")
    for needed in module.NEEDS:
        pytest.importorskip(needed)
    return module


def test_operations_of_the_base_shapes_are_those_counted_elsewhere() -> None:
    vision = VisionConfig(image_size=256, patch_size=16)
    counted = operations.count_operations(SiglipConfig("siglip", vision, TextConfig(vocab_size=250_000)))
    # Profile of open_clip, ViT-B-16-SigLIP-256: 46.8 GFLOP per image, 11.0 per text; the pooled position needs less.
    assert sum(counted["vision"].values()) == pytest.approx(46.8e9, rel=0.01)
    assert 0.9 * 11.0e9 < sum(counted["text"].values()) < 11.0e9


def test_peaks_are_measured_for_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = limit.measure_instructions(1)
    if not peaks:
        pytest.skip("no C compiler, or no x86")
    assert peaks.keys() == {"int8", "fp32"}
    assert min(peaks.values()) > 0
    monkeypatch.setattr(limit, "GEMM_SIZE", 64)
    monkeypatch.setattr(limit, "GEMM_SECONDS", 0.01)
    product = limit.measure_gemm(1)
    assert product.keys() == {"int8", "fp32"}
    assert min(product.values()) > 0


@pytest.mark.parametrize("name", backends.MODULES)
def test_every_peer_answers_as_pytorch_does(
    name: str, small_checkpoint: Path, small_bundle: Path, tmp_path: Path, images: list[Any]
) -> None:
    if name in ("pytorch_compile", "torchao_int8"):
        pytest.skip("compiles for a minute; measured by the suite")
    pytest.importorskip("openvino" if name == "openvino_ir" else "torch")
    module = backend_module(name)
    # The int8 kernels of onnxruntime saturate on CPUs without VNNI; peers run them nevertheless.
    least = 0.9 if name == "optimum_int8" and int8_saturates() else 0.98
    paths = save_all(images, tmp_path)
    reference = PyTorch(configuration(small_bundle, small_checkpoint, tmp_path, "fp32"))
    for variant, (_, about) in module.VARIANTS.items():
        assert about
        work = tmp_path / f"{name}_{variant.partition(',')[0]}"
        peer = configuration(small_bundle, small_checkpoint, work, variant)
        if not work.exists():
            work.mkdir()
            module.prepare(peer, paths)
        backend = module.load(peer)
        inputs = backend.preprocess(backend.decode(paths[1]))
        assert cosine(backend.vision(inputs), reference.vision(inputs)) > least
        ids = backend.tokenize("a red circle")
        assert np.array_equal(ids, reference.tokenize("a red circle"))
        assert cosine(backend.text(ids), reference.text(ids)) > least
        both = backend.vision({"pixel_values": np.repeat(inputs["pixel_values"], 2, axis=0)})
        assert both.shape == (2, 64)
        assert all(path.is_file() for path in module.files(peer))
        assert module.packages(peer)


def configuration(bundle: Path, checkpoint: Path, work: Path, variant: str) -> Configuration:
    return Configuration("peer", "", variant, str(bundle), str(checkpoint), str(work), threads=1)


def cosine(features: Any, expected: Any) -> float:
    return float((features * expected).sum() / np.linalg.norm(features) / np.linalg.norm(expected))


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MODULES", ("pytorch_bf16", "no_such_backend"))
    found = catalog.describe_backends()
    assert found["pytorch_bf16"] == {"bf16": found["pytorch_bf16"]["bf16"]}  # type: ignore[index]
    assert found["no_such_backend"] == "not installed: backends.no_such_backend"


def test_measured_images_are_not_used_for_calibration(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").touch()
    found = catalog.choose_images(tmp_path)
    assert len(found) == len(set(found)) == 40
    assert found[: catalog.NUM_IMAGES] != sorted(found)[: catalog.NUM_IMAGES]  # from the whole folder


def test_whole_commands_are_measured(tmp_path: Path) -> None:
    results = commands.measure_commands(BUNDLE_PATH, IMAGES_PATH / "red_star.png", tmp_path, 1)
    assert results["classify, one image and two texts"]["peak_memory_mb"] > results["--help"]["peak_memory_mb"]
    assert all(result["min_seconds"] > 0 for result in results.values())


def test_a_command_has_its_own_memory() -> None:
    ballast = np.ones(30_000_000)  # 240 MB, which a child must not be charged for
    result = commands.run_command(["--help"])
    assert ballast.sum() == len(ballast)
    assert 5 < result["peak_memory_mb"] < 100
    assert result["seconds"] > 0
    assert peak_memory_mb() > 240
    with pytest.raises(BenchmarkError, match=r"siglip-onnx info --model /nowhere failed: .*was not found"):
        commands.run_command(["info", "--model", "/nowhere"])


def test_the_demo_model_knows_the_drawn_set(tmp_path: Path) -> None:
    draw_demo_set.main(["--per-class", "1", str(tmp_path)], standalone_mode=False)
    dataset = accuracy.read_dataset(tmp_path)
    assert [dataset.texts[sample.labels[0]] for sample in dataset.samples] == dataset.texts
    demo = Configuration("demo", "siglip_onnx.bench.engine", "int8", str(BUNDLE_PATH), threads=1)
    hits = accuracy.answer(demo, dataset, ["{}"])
    top1, top5 = hits.mean(axis=1)
    assert 0.6 < top1 <= top5  # chance is 0.01 and 0.05
    (row,) = accuracy.describe({"demo": hits}, hits)
    assert row["loss_top1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    worse = hits.copy()
    worse[0, np.flatnonzero(hits[0])[:10]] = False
    row = accuracy.describe({"worse": worse}, hits)[0]
    assert row["loss_top1"]["value"] == pytest.approx(0.1)
    assert 0 < row["loss_top1"]["low"] < 0.1 < row["loss_top1"]["high"]


def test_plain_int8_replaces_graphs(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    outliers.add_outliers(small_checkpoint, tmp_path / "outliers")
    shutil.copytree(small_bundle, tmp_path / "bundle")
    before = open_bundle(tmp_path / "bundle").manifest.variants["int8"].files
    quantization.write_plain_int8(tmp_path / "outliers", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.verify_files() == []
    assert bundle.manifest.variants["int8"].files.keys() == before.keys()
    changed = {name for name, facts in before.items() if bundle.manifest.variants["int8"].files[name] != facts}
    assert changed >= {name for name in before if name.endswith(".onnx")}
    assert siglip_onnx.load(tmp_path / "bundle", variant="int8").encode_texts(["a cat"]).shape == (1, 64)
