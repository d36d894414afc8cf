"""int8 that holds, q4 and fp16: exact where they can be, near fp32 where they cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from outliers import add_gelu_outliers, add_outliers
from PIL import Image
from support.checkpoints import make_checkpoint, make_naflex_checkpoint
from transformers import SiglipModel

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.cli import main
from siglip_onnx.errors import AccuracyError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.equalize import choose_scale, equalize
from siglip_onnx.export.graph import save_graph
from siglip_onnx.export.int8 import Int8Choices, find_large_channels, quantize_int8
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.q4 import quantize_blocks
from siglip_onnx.export.sensitivity import find_fp32_layers
from siglip_onnx.export.towers import build_towers
from siglip_onnx.export.variants import Calibration, calibrate
from siglip_onnx.verify.accuracy import verify_variants
from siglip_onnx.verify.samples import SAMPLE_TEXTS, sample_images

TOWERS = ("vision", "text")


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers")
    return add_outliers(make_checkpoint(folder / "plain", "square"), folder / "outliers")


@pytest.fixture(scope="module")
def gelu_outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gelu")
    return add_gelu_outliers(make_checkpoint(folder / "plain", "square"), folder / "outliers")


def calibration_of(checkpoint: Path, out: Path) -> dict[str, Calibration]:
    export_bundle(checkpoint, out, precisions=["fp32"])
    return calibrate(open_bundle(out), sample_images(), SAMPLE_TEXTS)


def manifest_of(bundle: Path) -> Any:
    return json.loads((bundle / "manifest.json").read_text())


def write(model: ir.Model, path: Path) -> Path:
    save_graph(model, path)
    return path


def test_outliers_leave_pytorch_as_it_was(outliers: Path) -> None:
    """The test tool itself: what it makes is the same function."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(2, 3, 32, 32)).astype(np.float32))
    before, after = (SiglipModel.from_pretrained(path).eval() for path in (outliers.parent / "plain", outliers))
    with torch.no_grad():
        unit = [torch.nn.functional.normalize(model.get_image_features(pixels)) for model in (before, after)]
    assert_allclose(unit[0].numpy(), unit[1].numpy(), atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
def test_equalized_fp32_is_the_same_bit_for_bit(outliers: Path, tmp_path: Path, tower: str) -> None:
    calibration = calibration_of(outliers, tmp_path / "bundle")[tower]
    checkpoint = open_checkpoint(outliers)
    model = build_towers(checkpoint.weights, checkpoint.config)[tower]
    seams = equalize(model, calibration.ranges)
    assert seams == 2 * 3 + 1  # two layers of three, and the head
    path = write(model, tmp_path / "equalized.onnx")
    plain = siglip_onnx.session.LazySession(calibration.graph)
    for inputs in calibration.inputs:
        assert_array_equal(
            siglip_onnx.session.LazySession(path).run("pooler_output", inputs), plain.run("pooler_output", inputs)
        )


@pytest.mark.parametrize("tower", TOWERS)
def test_int8_with_outliers_fails_plain_and_holds_equalized(outliers: Path, tmp_path: Path, tower: str) -> None:
    calibration = calibration_of(outliers, tmp_path / "bundle")[tower]
    checkpoint = open_checkpoint(outliers)
    plain, equalized = (build_towers(checkpoint.weights, checkpoint.config)[tower] for _ in range(2))
    equalize(equalized, calibration.ranges)
    for model in (plain, equalized):
        quantize_int8(model, Int8Choices())
    assert calibration.cosine_min(write(plain, tmp_path / "plain.onnx")) < 0.99
    assert calibration.cosine_min(write(equalized, tmp_path / "equalized.onnx")) > 0.9995


@pytest.mark.parametrize("exporter", ["native", "optimum"])
def test_export_holds_with_outliers_of_either_kind(
    outliers: Path, gelu_outliers: Path, tmp_path: Path, exporter: str
) -> None:
    for checkpoint in (outliers, gelu_outliers):
        out = tmp_path / checkpoint.parent.name
        (variant,) = export_bundle(checkpoint, out, precisions=["int8"], exporter=exporter)
        assert variant.accuracy.cosine_min > 0.9995
        facts = manifest_of(out)["variants"]["int8"]["quantization"]
        assert facts["vision"]["fp32_layers"] == facts["text"]["fp32_layers"] == {}
        large = facts["vision"]["large_channels"]
        assert len(large) == (0 if checkpoint is outliers else 3)
        assert set(large.values()) <= {3, 4}  # of four channels one may stay small on the samples


def test_large_channels_matter(gelu_outliers: Path, tmp_path: Path) -> None:
    calibration = calibration_of(gelu_outliers, tmp_path / "bundle")["vision"]
    large = find_large_channels(calibration.ranges)
    checkpoint = open_checkpoint(gelu_outliers)
    cosines = []
    for choices in (Int8Choices(), Int8Choices(large_channels=large)):
        model = build_towers(checkpoint.weights, checkpoint.config)["vision"]
        quantize_int8(model, choices)
        cosines.append(calibration.cosine_min(write(model, tmp_path / f"{len(cosines)}.onnx")))
    assert cosines[0] < 0.995
    assert cosines[1] > 0.9995


def test_channels_are_large_against_the_usual_ones_only() -> None:
    usual = np.random.default_rng(0).uniform(1, 2, 128).astype(np.float32)
    assert find_large_channels({"a.fc2": usual, "a.fc1": usual * np.r_[100, np.ones(127)]}) == {}
    usual[[3, 77]] = 50
    assert {layer: found.tolist() for layer, found in find_large_channels({"a.fc2": usual}).items()} == {
        "a.fc2": [3, 77]
    }


def test_scales_are_powers_of_two_of_what_stands_out() -> None:
    activations, weights = np.ones(9, np.float32), np.ones(9, np.float32)
    activations[0], activations[1], weights[2], activations[3] = 64, 3, 64, 0
    assert choose_scale(activations, weights).tolist() == [8, 1, 0.125, 1, 1, 1, 1, 1, 1]
    assert choose_scale(np.zeros(3, np.float32), np.ones(3, np.float32)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("exporter", ["native", "optimum"])
def test_search_leaves_the_fewest_layers_in_fp32(small_checkpoint: Path, tmp_path: Path, exporter: str) -> None:
    """A target that all int8 misses is reached, by fewer than all layers, which the manifest names with their gain."""
    export_bundle(small_checkpoint, tmp_path / "all", precisions=["fp32", "int8"], exporter=exporter)
    reached = verify_variants(open_bundle(tmp_path / "all"), sample_images(), SAMPLE_TEXTS)["int8"]
    target = 1 - (1 - reached.cosine_min) / 4
    (found,) = export_bundle(
        small_checkpoint, tmp_path / "out", precisions=["int8"], min_cosine=target, exporter=exporter
    )
    assert found.accuracy.cosine_min >= target > reached.cosine_min
    facts = manifest_of(tmp_path / "out")["variants"]["int8"]["quantization"]
    kept = facts["vision"]["fp32_layers"] | facts["text"]["fp32_layers"]
    assert 0 < len(kept) < 28
    operators = [
        node.op_type
        for tower in TOWERS
        for node in onnx.load(tmp_path / f"out/onnx/{tower}_model_quantized.onnx", load_external_data=False).graph.node
    ]
    assert operators.count("DynamicQuantizeMatMul") == 28 - len(kept)
    assert not [path.name for path in (tmp_path / "out/onnx").iterdir() if "quantized" not in path.name]


def test_search_in_a_naflex_tower(tmp_path: Path) -> None:
    """Its patch embedding is a linear layer that is never int8, and so is none to switch."""
    checkpoint = make_naflex_checkpoint(tmp_path / "naflex")
    (first,) = export_bundle(checkpoint, tmp_path / "all", precisions=["int8"])
    target = 1 - (1 - first.accuracy.cosine_min) / 4
    (found,) = export_bundle(checkpoint, tmp_path / "out", precisions=["int8"], min_cosine=target)
    assert found.accuracy.cosine_min >= target > first.accuracy.cosine_min
    facts = manifest_of(tmp_path / "out")["variants"]["int8"]["quantization"]
    kept = facts["vision"]["fp32_layers"] | facts["text"]["fp32_layers"]
    assert kept
    assert not [layer for layer in kept if "embedding" in layer]


def test_search_finds_the_layer_that_was_damaged(small_checkpoint: Path, tmp_path: Path) -> None:
    calibration = calibration_of(small_checkpoint, tmp_path / "bundle")["vision"]
    checkpoint = open_checkpoint(small_checkpoint)
    damaged = "vision_model.encoder.layers.1.self_attn.k_proj"
    model = build_towers(checkpoint.weights, checkpoint.config)["vision"]
    quantize_int8(model, Int8Choices())
    scale = model.graph.initializers[f"{damaged}.weight_scale"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * 3, name=scale.name)
    path = write(model, tmp_path / "bundle/onnx/damaged.onnx")
    assert calibration.cosine_min(path) < 0.99
    assert list(find_fp32_layers(calibration.graph, path, calibration.inputs, calibration.expected, 0.99)) == [damaged]
    assert find_fp32_layers(calibration.graph, path, calibration.inputs, calibration.expected, 0.0) == {}


def test_a_target_out_of_reach_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    """The token table stays int8, so that fp32 is never reached."""
    with pytest.raises(AccuracyError, match="int8 reaches only a cosine of"):
        export_bundle(small_checkpoint, tmp_path / "out", precisions=["int8"], min_cosine=0.9999999)
    assert not (tmp_path / "out").exists()


def test_reduced_range_keeps_weights_within_seven_bits(small_checkpoint: Path, tmp_path: Path) -> None:
    (found,) = export_bundle(small_checkpoint, tmp_path / "out", precisions=["int8"], reduce_range=True)
    assert found.accuracy.cosine_min > 0.999
    assert manifest_of(tmp_path / "out")["variants"]["int8"]["quantization"]["vision"]["reduce_range"] is True
    model = onnx.load(tmp_path / "out/onnx/vision_model_quantized.onnx")
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith("weight_int8")]
    assert max(np.abs(weight).max() for weight in weights) == 63


@pytest.mark.parametrize(("rows", "columns"), [(5, 64), (3, 40)])
def test_blocks_of_four_bits(rows: int, columns: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    packed, scales = quantize_blocks(matrix)
    assert (packed.shape, scales.shape) == ((rows, 2, 16), (rows, 2))
    stored = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, 2, 32).astype(np.float32)
    values = ((stored - 8) * scales[..., np.newaxis]).reshape(rows, 64)[:, :columns]
    # At least as near as the plain scale, by which the largest value of a block is met.
    blocks = np.pad(matrix, ((0, 0), (0, 64 - columns))).reshape(rows, 2, 32)
    plain = np.abs(blocks).max(axis=-1, keepdims=True) / 7
    plain_values = (np.rint(blocks / plain) * plain).reshape(rows, 64)[:, :columns]
    assert np.square(values - matrix).sum() < np.square(plain_values - matrix).sum()
    assert (quantize_blocks(np.zeros((2, 32), np.float32))[0] == 0x88).all()


@pytest.mark.parametrize("shape", ["square", "narrow_text_is_projected", "naflex"])
def test_q4_and_fp16_run_and_stay_near(tmp_path: Path, shape: str, images: list[Image.Image]) -> None:
    path = tmp_path / "checkpoint"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    found = export_bundle(checkpoint, tmp_path / "out", precisions=["fp32", "fp16", "q4"])
    accuracy = {variant.name: variant.accuracy for variant in found}
    size = {variant.name: variant.size_bytes for variant in found}
    assert accuracy["fp16"].cosine_min > 0.99999
    assert 0.95 < accuracy["q4"].cosine_min < 0.999
    assert max(size["q4"], size["fp16"]) < size["fp32"]
    for variant in ("fp16", "q4"):
        model = siglip_onnx.load(tmp_path / "out", variant=variant)
        assert model.encode_images(images).dtype == np.float32
        assert manifest_of(tmp_path / "out")["variants"][variant]["quantization"]["vision"]["method"]


def test_fp16_of_a_traced_graph(small_checkpoint: Path, tmp_path: Path) -> None:
    found = export_bundle(small_checkpoint, tmp_path / "out", precisions=["fp16", "q4"], exporter="optimum")
    assert found[0].accuracy.cosine_min > 0.99999
    assert found[1].accuracy.cosine_min > 0.95


def test_the_command_takes_calibration_pictures(
    outliers: Path, tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(images):
        picture.save(folder / f"{number}.png")
    (folder / "zzz.txt").write_text("no picture")
    command = ["export", str(outliers), str(tmp_path / "out"), "--precision", "int8", "--calibration"]
    result = CliRunner().invoke(main, [*command, str(folder)])
    assert result.exit_code == 0, result.stderr
    assert "left out" in result.stderr
    assert "zzz.txt" in result.stderr
    expected = export_bundle(outliers, tmp_path / "expected", precisions=["int8"], calibration_pictures=images)
    assert expected[0].accuracy.cosine_min > 0.9995
    spaces = {siglip_onnx.load(tmp_path / name).embedding_space for name in ("out", "expected")}
    assert len(spaces) == 1

    monkeypatch.setattr(sys.modules["siglip_onnx.cli.export"], "MOST_CALIBRATION", 2)
    result = CliRunner().invoke(main, [*command, str(folder), "--overwrite"])
    assert "of the 5 files in" in result.stderr
    assert "is no folder; --calibration wants" in CliRunner().invoke(main, [*command, str(tmp_path / "none")]).stderr


def test_calibration_pictures_are_used(outliers: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    for name, chosen in (("own", images), ("built_in", None)):
        export_bundle(outliers, tmp_path / name, precisions=["int8"], calibration_pictures=chosen)
    spaces = {siglip_onnx.load(tmp_path / name).embedding_space for name in ("own", "built_in")}
    assert len(spaces) == 2
