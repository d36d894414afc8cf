"""qdq, static int8: standard operators, ranges that generalize, vectors that do not depend on the rest of a batch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from outliers import add_gelu_outliers, add_outliers
from support.checkpoints import make_checkpoint, make_naflex_checkpoint

from siglip_onnx.bundle.manifest import graph_path
from siglip_onnx.config import TOWERS
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.graph import save_graph
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.qdq import StaticRange, quantize_static, static_ranges
from siglip_onnx.export.towers import build_towers
from siglip_onnx.session import LazySession


def facts_of(bundle: Path, tower: str) -> Any:
    return json.loads((bundle / "manifest.json").read_text())["variants"]["qdq"]["quantization"][tower]


@pytest.mark.parametrize(
    ("shape", "exporter"),
    [("square", "native"), ("narrow_text_is_projected", "native"), ("naflex", "native"), ("square", "optimum")],
)
def test_static_int8_is_close_and_has_only_standard_operators(tmp_path: Path, shape: str, exporter: str) -> None:
    path, out = tmp_path / "checkpoint", tmp_path / "out"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    fp32, qdq = export_bundle(checkpoint, out, precisions=["fp32", "qdq"], exporter=exporter)
    assert qdq.accuracy.cosine_min > 0.999
    assert qdq.size_bytes < 0.6 * fp32.size_bytes
    for tower in TOWERS:
        model = onnx.load(out / graph_path(tower, "qdq"))
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain for entry in model.opset_import} == {""}
        operators = Counter(node.op_type for node in model.graph.node)
        facts = facts_of(out, tower)
        static = facts["linear_layers"] - len(facts["f32_activations"])
        assert 0 < operators["QuantizeLinear"] <= static
        assert operators["DequantizeLinear"] == operators["QuantizeLinear"] + facts["linear_layers"]
        assert 1 <= facts["margin_mean"] <= facts["margin_max"]


@pytest.mark.parametrize("add", [add_outliers, add_gelu_outliers])
def test_static_int8_is_accurate_with_outliers(tmp_path: Path, add: Any) -> None:
    path = add(make_checkpoint(tmp_path / "plain", "square"), tmp_path / "outliers")
    (variant,) = export_bundle(path, tmp_path / "out", precisions=["qdq"])
    assert variant.accuracy.cosine_min > 0.999


@pytest.mark.parametrize("tower", TOWERS)
def test_vectors_do_not_depend_on_the_rest_of_a_batch(tmp_path: Path, tower: str) -> None:
    """Dynamic int8 has one scale for all inputs of a batch, so that there another input changes the vector."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "square")
    export_bundle(checkpoint, tmp_path / "out", precisions=["int8", "qdq"])
    rng = np.random.default_rng(0)
    alone: dict[str, np.ndarray[Any, Any]]
    if tower == "vision":
        alone = {"pixel_values": rng.uniform(-0.1, 0.1, (1, 3, 32, 32)).astype(np.float32)}
        others = rng.choice([-1, 1], (3, 3, 32, 32)).astype(np.float32)
    else:
        alone, others = {"input_ids": np.zeros((1, 16), np.int64)}, rng.integers(0, 300, (3, 16))
    batch = {name: np.concatenate([array, others]) for name, array in alone.items()}
    changes = {}
    for variant in ("int8", "qdq"):
        session = LazySession(tmp_path / "out" / graph_path(tower, variant), threads=1)
        changes[variant] = np.abs(session.embed(batch)[0] - session.embed(alone)[0]).max()
    assert changes["qdq"] < 1e-6
    assert changes["int8"] > 1e-4


def test_a_range_has_the_margin_of_the_quarter_that_exceeds_the_others() -> None:
    usual = np.array([1, 2, 0.5, 1, 1, 1.6, 1, 1], np.float32)
    by_input = [{"a.fc1": np.array([value, 0.1], np.float32), "a.fc2": np.ones(2, np.float32)} for value in usual]
    ranges = static_ranges(by_input, {})
    assert ranges == {"a.fc1": StaticRange(2, 2), "a.fc2": StaticRange(1, 1)}
    assert [range_.generalizes for range_ in ranges.values()] == [False, True]
    assert static_ranges(by_input, {"a.fc1": np.array([0])})["a.fc1"].largest == pytest.approx(0.1)


def test_activations_whose_range_does_not_generalize_stay_f32(small_checkpoint: Path, tmp_path: Path) -> None:
    """They are then not clipped, however small the range was that calibration saw."""
    layer = "vision_model.encoder.layers.0.mlp.fc1"
    outputs = []
    for name, margin in (("static", 1.0), ("f32", 2.0)):
        with open_checkpoint(small_checkpoint) as checkpoint:
            model = build_towers(checkpoint.weights, checkpoint.config)["vision"]
            names = [weight.removesuffix(".weight") for weight in model.graph.initializers]
            ranges = dict.fromkeys(names, StaticRange(10, 1)) | {layer: StaticRange(1e-3, margin)}
            facts = quantize_static(model, ranges, {})
            save_graph(model, tmp_path / f"{name}.onnx")
        assert facts["f32_activations"] == ({} if name == "static" else {layer: 2.0})
        session = LazySession(tmp_path / f"{name}.onnx")
        outputs.append(session.embed({"pixel_values": np.ones((1, 3, 32, 32), np.float32)})[0])
    with open_checkpoint(small_checkpoint) as checkpoint:
        save_graph(build_towers(checkpoint.weights, checkpoint.config)["vision"], tmp_path / "fp32.onnx")
    expected = LazySession(tmp_path / "fp32.onnx").embed({"pixel_values": np.ones((1, 3, 32, 32), np.float32)})[0]
    clipped, kept = (float(output @ expected) for output in outputs)
    assert clipped < 0.99
    assert kept > 0.995


def test_search_leaves_layers_of_static_int8_in_fp32(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "square")
    (all_int8,) = export_bundle(checkpoint, tmp_path / "all", precisions=["qdq"])
    target = 1 - (1 - all_int8.accuracy.cosine_min) / 3
    (searched,) = export_bundle(checkpoint, tmp_path / "out", precisions=["qdq"], min_cosine=target)
    assert searched.accuracy.cosine_min >= target > all_int8.accuracy.cosine_min
    assert facts_of(tmp_path / "out", "vision")["fp32_layers"] | facts_of(tmp_path / "out", "text")["fp32_layers"]
    assert not [path.name for path in (tmp_path / "out" / "onnx").iterdir() if "qdq" not in path.name]


def test_expanded_attention_is_that_of_onnxruntime(small_checkpoint: Path, tmp_path: Path) -> None:
    """Without a quantized layer the graph computes the same as in fp32, up to rounding of the fp16 patch embedding."""
    with open_checkpoint(small_checkpoint) as checkpoint:
        model = build_towers(checkpoint.weights, checkpoint.config)["vision"]
        names = [weight.removesuffix(".weight") for weight in model.graph.initializers]
        save_graph(model, tmp_path / "fp32.onnx")
        quantize_static(model, dict.fromkeys(names, StaticRange(1, 1)), {}, fp32_layers=names)
        save_graph(model, tmp_path / "expanded.onnx")
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)}
    fp32, expanded = (LazySession(tmp_path / f"{name}.onnx").embed(pixels) for name in ("fp32", "expanded"))
    assert_allclose(expanded, fp32, atol=2e-4)
    assert not [node for node in onnx.load(tmp_path / "expanded.onnx").graph.node if node.domain]
    assert_array_equal(fp32.shape, expanded.shape)
