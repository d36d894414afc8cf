"""int8 with and without outliers, q4 and fp16: exact where they can be, close to fp32 where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

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
from siglip_onnx.bundle.manifest import graph_path
from siglip_onnx.cli import main
from siglip_onnx.config import TOWERS
from siglip_onnx.errors import AccuracyError
from siglip_onnx.export.calibration import Calibration, prepare_inputs
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.equalize import choose_scale, equalize
from siglip_onnx.export.graph import save_graph
from siglip_onnx.export.int8 import Int8Choices, find_large_channels, quantize_int8
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.q4 import quantize_blocks
from siglip_onnx.export.sensitivity import find_fp32_layers
from siglip_onnx.export.towers import build_towers
from siglip_onnx.session import LazySession
from siglip_onnx.verify.samples import SAMPLE_TEXTS, sample_images


class Fp32(NamedTuple):
    """A checkpoint and the calibration of its fp32 towers."""

    path: Path
    calibration: dict[str, Calibration]

    def tower(self, name: str) -> ir.Model:
        """Return a new fp32 tower, whose weights are read when it is saved."""
        checkpoint = open_checkpoint(self.path)
        return build_towers(checkpoint.weights, checkpoint.config)[name]


def calibrate(path: Path, out: Path) -> Fp32:
    export_bundle(path, out, precisions=["fp32"])
    with open_checkpoint(path) as checkpoint:
        inputs = prepare_inputs(checkpoint, out, sample_images(), SAMPLE_TEXTS)
    return Fp32(path, {tower: Calibration(out / graph_path(tower, "fp32"), inputs[tower]) for tower in TOWERS})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("quantize") / "plain", "square")


@pytest.fixture(scope="module")
def outliers(plain: Path) -> Fp32:
    return calibrate(add_outliers(plain, plain.with_name("outliers")), plain.with_name("outliers_bundle"))


@pytest.fixture(scope="module")
def gelu_outliers(plain: Path) -> Fp32:
    return calibrate(add_gelu_outliers(plain, plain.with_name("gelu")), plain.with_name("gelu_bundle"))


def quantization_of(bundle: Path, variant: str = "int8") -> Any:
    return json.loads((bundle / "manifest.json").read_text())["variants"][variant]["quantization"]


def write(model: ir.Model, path: Path) -> Path:
    save_graph(model, path)
    return path


def test_outliers_leave_pytorch_unchanged(plain: Path, outliers: Fp32) -> None:
    """The test tool itself: what it makes is the same function."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(2, 3, 32, 32)).astype(np.float32))
    before, after = (SiglipModel.from_pretrained(path).eval() for path in (plain, outliers.path))
    with torch.no_grad():
        unit = [torch.nn.functional.normalize(model.get_image_features(pixels)) for model in (before, after)]
    assert_allclose(unit[0].numpy(), unit[1].numpy(), atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
def test_equalized_fp32_is_the_same_bit_for_bit(outliers: Fp32, tmp_path: Path, tower: str) -> None:
    calibration, model = outliers.calibration[tower], outliers.tower(tower)
    assert equalize(model, calibration.ranges) == 2 * 3 + 1  # three seams in each of two layers, and the head
    equalized, original = LazySession(write(model, tmp_path / "equalized.onnx")), LazySession(calibration.graph)
    for inputs in calibration.inputs:
        assert_array_equal(equalized.run("pooler_output", inputs), original.run("pooler_output", inputs))


@pytest.mark.parametrize("tower", TOWERS)
def test_int8_with_outliers_needs_equalization(outliers: Fp32, tmp_path: Path, tower: str) -> None:
    calibration = outliers.calibration[tower]
    unequalized, equalized = outliers.tower(tower), outliers.tower(tower)
    equalize(equalized, calibration.ranges)
    for model in (unequalized, equalized):
        quantize_int8(model, Int8Choices())
    assert calibration.cosine_min(write(unequalized, tmp_path / "plain.onnx")) < 0.99
    assert calibration.cosine_min(write(equalized, tmp_path / "equalized.onnx")) > 0.9995


@pytest.mark.parametrize("exporter", ["native", "optimum"])
@pytest.mark.parametrize(("kind", "num_layers"), [("outliers", 0), ("gelu_outliers", 3)])
def test_exported_int8_is_accurate_with_outliers(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, num_layers: int, exporter: str
) -> None:
    path = request.getfixturevalue(kind).path
    (variant,) = export_bundle(path, tmp_path / "out", precisions=["int8"], exporter=exporter)
    assert variant.accuracy.cosine_min > 0.9995
    facts = quantization_of(tmp_path / "out")
    assert facts["vision"]["fp32_layers"] == facts["text"]["fp32_layers"] == {}
    large = facts["vision"]["large_channels"]
    assert len(large) == num_layers
    assert set(large.values()) <= {3, 4}  # of four channels one may stay small on the samples


def test_int8_with_outliers_after_gelu_needs_large_channels(gelu_outliers: Fp32, tmp_path: Path) -> None:
    calibration = gelu_outliers.calibration["vision"]
    cosines = []
    for choices in (Int8Choices(), Int8Choices(large_channels=find_large_channels(calibration.ranges))):
        model = gelu_outliers.tower("vision")
        quantize_int8(model, choices)
        cosines.append(calibration.cosine_min(write(model, tmp_path / f"{len(cosines)}.onnx")))
    assert cosines[0] < 0.995
    assert cosines[1] > 0.9995


def test_channels_are_large_relative_to_the_usual_ones() -> None:
    usual = np.random.default_rng(0).uniform(1, 2, 128).astype(np.float32)
    assert find_large_channels({"a.fc2": usual, "a.fc1": usual * np.r_[100, np.ones(127)]}) == {}
    usual[[3, 77]] = 50
    large = find_large_channels({"a.fc2": usual})
    assert {layer: channels.tolist() for layer, channels in large.items()} == {"a.fc2": [3, 77]}


def test_scales_are_powers_of_two_and_1_for_usual_channels() -> None:
    activations, weights = np.ones(9, np.float32), np.ones(9, np.float32)
    activations[0], activations[1], weights[2], activations[3] = 64, 3, 64, 0
    assert choose_scale(activations, weights).tolist() == [8, 1, 0.125, 1, 1, 1, 1, 1, 1]
    assert choose_scale(np.zeros(3, np.float32), np.ones(3, np.float32)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("shape", "exporter"), [("square", "native"), ("square", "optimum"), ("naflex", "native")])
def test_search_reaches_the_target_with_few_layers_in_fp32(tmp_path: Path, shape: str, exporter: str) -> None:
    """NaFlex's patch embedding is a linear layer that is never int8, and so never a candidate."""
    path = tmp_path / "checkpoint"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    (all_int8,) = export_bundle(checkpoint, tmp_path / "all", precisions=["int8"], exporter=exporter)
    target = 1 - (1 - all_int8.accuracy.cosine_min) / 4
    out = tmp_path / "out"
    (searched,) = export_bundle(checkpoint, out, precisions=["int8"], min_cosine=target, exporter=exporter)
    assert searched.accuracy.cosine_min >= target > all_int8.accuracy.cosine_min
    facts = quantization_of(out)
    fp32_layers = facts["vision"]["fp32_layers"] | facts["text"]["fp32_layers"]
    assert 0 < len(fp32_layers) < 28
    assert not [layer for layer in fp32_layers if "embedding" in layer]
    operators = [
        node.op_type
        for tower in TOWERS
        for node in onnx.load(out / graph_path(tower, "int8"), load_external_data=False).graph.node
    ]
    assert operators.count("DynamicQuantizeMatMul") == 28 - len(fp32_layers)
    assert not [path.name for path in (out / "onnx").iterdir() if "quantized" not in path.name]


def test_search_finds_a_damaged_layer(plain: Path, tmp_path: Path) -> None:
    fp32 = calibrate(plain, tmp_path / "bundle")
    calibration, model = fp32.calibration["vision"], fp32.tower("vision")
    damaged = "vision_model.encoder.layers.1.self_attn.k_proj"
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
    (variant,) = export_bundle(small_checkpoint, tmp_path / "out", precisions=["int8"], reduce_range=True)
    assert variant.accuracy.cosine_min > 0.999
    assert quantization_of(tmp_path / "out")["vision"]["reduce_range"] is True
    tensors = onnx.load(tmp_path / "out" / graph_path("vision", "int8")).graph.initializer
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.name.endswith("weight_int8")]
    assert max(np.abs(weight).max() for weight in weights) == 63


@pytest.mark.parametrize(("rows", "columns"), [(5, 64), (3, 40)])
def test_blocks_of_four_bits(rows: int, columns: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    packed, scales = quantize_blocks(matrix)
    assert (packed.shape, scales.shape) == ((rows, 2, 16), (rows, 2))
    stored = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, 2, 32).astype(np.float32)
    values = ((stored - 8) * scales[..., np.newaxis]).reshape(rows, 64)[:, :columns]
    # Closer than with the plain scale, at which the largest value of a block is exact.
    blocks = np.pad(matrix, ((0, 0), (0, 64 - columns))).reshape(rows, 2, 32)
    plain_scale = np.abs(blocks).max(axis=-1, keepdims=True) / 7
    plain_values = (np.rint(blocks / plain_scale) * plain_scale).reshape(rows, 64)[:, :columns]
    assert np.square(values - matrix).sum() < np.square(plain_values - matrix).sum()
    assert (quantize_blocks(np.zeros((2, 32), np.float32))[0] == 0x88).all()


@pytest.mark.parametrize(
    ("shape", "exporter"),
    [("square", "native"), ("narrow_text_is_projected", "native"), ("naflex", "native"), ("square", "optimum")],
)
def test_q4_and_fp16_are_close_to_fp32(tmp_path: Path, shape: str, exporter: str, images: list[Image.Image]) -> None:
    path, out = tmp_path / "checkpoint", tmp_path / "out"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    variants = export_bundle(checkpoint, out, precisions=["fp32", "fp16", "q4"], exporter=exporter)
    accuracy = {variant.name: variant.accuracy for variant in variants}
    size = {variant.name: variant.size_bytes for variant in variants}
    assert accuracy["fp16"].cosine_min > 0.99999
    assert 0.95 < accuracy["q4"].cosine_min < 0.999
    assert max(size["q4"], size["fp16"]) < size["fp32"]
    for name in ("fp16", "q4"):
        assert siglip_onnx.load(out, variant=name).encode_images(images).dtype == np.float32
        assert quantization_of(out, name)["vision"]["method"]


def test_calibration_images(
    outliers: Fp32, tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command and the function use them: the vectors are those of their ranges, not of the built-in samples'."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    (folder / "zzz.txt").write_text("not an image")
    command = ["export", str(outliers.path), str(tmp_path / "command"), "--precision", "int8", "--calibration"]
    result = CliRunner().invoke(main, [*command, str(folder)])
    assert result.exit_code == 0, result.stderr
    assert "skipped" in result.stderr
    assert "zzz.txt" in result.stderr
    for name, chosen in (("own", images), ("built_in", None)):
        (variant,) = export_bundle(outliers.path, tmp_path / name, precisions=["int8"], calibration_images=chosen)
        assert variant.accuracy.cosine_min > 0.9995
    spaces = {name: siglip_onnx.load(tmp_path / name).embedding_space for name in ("command", "own", "built_in")}
    assert spaces["command"] == spaces["own"] != spaces["built_in"]

    monkeypatch.setattr("siglip_onnx.cli.export.MOST_CALIBRATION", 2)
    result = CliRunner().invoke(main, [*command, str(folder), "--overwrite"])
    assert "using 2 of the 5 files in" in result.stderr
    refused = CliRunner().invoke(main, [*command, str(tmp_path / "none")])
    assert "is not a folder; --calibration expects" in refused.stderr
