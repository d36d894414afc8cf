"""Calibrated rounding of 4-bit weights: closer outputs than by rounding to nearest, on inputs it was not fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from support.checkpoints import make_checkpoint, make_naflex_checkpoint

from siglip_onnx.bundle.manifest import graph_path
from siglip_onnx.config import TOWERS
from siglip_onnx.export.calibration import linear_layers, prepare_inputs, session_of
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.int8 import NEVER_QUANTIZED
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.q4 import dequantize_blocks, quantize_blocks
from siglip_onnx.export.rounding import _inverse_factor, round_weight, split
from siglip_onnx.session import LazySession
from siglip_onnx.verify.samples import SAMPLE_TEXTS, sample_images


@pytest.mark.parametrize(("rank", "most", "least"), [(8, 0.3, 0.0), (400, 1.1, 0.7)])
def test_error_of_correlated_inputs_is_compensated(rank: int, most: float, least: float) -> None:
    """On few directions much, on all directions nothing: there rounding to nearest is best."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(rank, 72)) if rank < 72 else np.eye(400, 72)
    rows = (rng.normal(size=(2, 1000, rank)) @ mixing + 0.01 * rng.normal(size=(2, 1000, 72))).astype(np.float32)
    weight = rng.normal(size=(40, 72)).astype(np.float32)
    rounded = dequantize_blocks(*round_weight(weight, rows[0].T @ rows[0]), 72)
    nearest = dequantize_blocks(*quantize_blocks(weight), 72)
    error, error_of_nearest = (np.square(rows[1] @ (values - weight).T).sum() for values in (rounded, nearest))
    assert least < error / error_of_nearest < most


def test_channels_that_are_always_zero_are_rounded_too() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    rounded = dequantize_blocks(*round_weight(weight, np.zeros((40, 40), np.float32)), 40)
    assert_allclose(rounded, dequantize_blocks(*quantize_blocks(weight), 40), atol=1e-6)


@pytest.mark.parametrize("size", [1, 64, 65, 200])
def test_factor_of_the_inverse(size: int) -> None:
    rows = np.random.default_rng(0).normal(size=(3 * size, size))
    gram = rows.T @ rows
    factor = _inverse_factor(gram).astype(np.float64)
    damped = gram + 0.01 * np.diagonal(gram).mean() * np.eye(size)
    assert_allclose(factor, np.triu(factor))
    assert_allclose(factor.T @ factor @ damped, np.eye(size), atol=1e-3)


@pytest.mark.parametrize("exporter", ["native", "optimum"])
@pytest.mark.parametrize("shape", ["square", "naflex"])
def test_parts_make_up_the_tower(tmp_path: Path, shape: str, exporter: str) -> None:
    """One after the other they compute what the tower computes, and each linear layer is in one of them."""
    if (shape, exporter) == ("naflex", "optimum"):
        pytest.skip("covered by the other three")
    path, out = tmp_path / "checkpoint", tmp_path / "out"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    export_bundle(checkpoint, out, precisions=["fp32"], exporter=exporter)
    with open_checkpoint(checkpoint) as opened:
        inputs = prepare_inputs(opened, out, sample_images()[-1:], SAMPLE_TEXTS[:1])
    for tower in TOWERS:
        graph = out / graph_path(tower, "fp32")
        model = onnx.load(graph, load_external_data=False)
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer}
        values: dict[str, Any] = {**weights, **inputs[tower][0]}
        layers: list[str] = []
        for part in split(model, NEVER_QUANTIZED):
            layers += part.sources
            with session_of(part.model, graph.parent) as session:
                known = {value.name: values[value.name] for value in part.model.graph.input}
                values[part.end] = session.run(part.end, known)
        assert sorted(layers) == sorted(layer for layer in linear_layers(model) if "patch_embedding" not in layer)
        expected = LazySession(graph).run("pooler_output", inputs[tower][0])
        assert_allclose(values["pooler_output"], expected, atol=1e-5)


def test_q4_is_closer_than_by_rounding_to_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "square")
    (calibrated,) = export_bundle(checkpoint, tmp_path / "calibrated", precisions=["q4"])
    monkeypatch.setattr("siglip_onnx.export.variants.round_calibrated", lambda *_: {})
    (nearest,) = export_bundle(checkpoint, tmp_path / "nearest", precisions=["q4"])
    assert nearest.size_bytes == calibrated.size_bytes
    for tower in TOWERS:
        closer, farther = (getattr(each.accuracy, f"{tower}_cosine_mean") for each in (calibrated, nearest))
        assert 1 - closer < 0.7 * (1 - farther)
