"""The second exporter: what optimum traces of PyTorch must be what ``towers.py`` says by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose
from outliers import add_outliers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.checkpoints import make_naflex_checkpoint
from support.commands import run_without

import siglip_onnx
from siglip_onnx.cli import main
from siglip_onnx.export.layers import layer_cosines
from siglip_onnx.export.pipeline import export_bundle

TEXTS = ["a photo of a cat", "赤い丸", ""]


@pytest.fixture(scope="module")
def traced(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint``, traced by optimum."""
    out = tmp_path_factory.mktemp("traced") / checkpoint.name
    export_bundle(checkpoint, out, exporter="optimum")
    return out


@pytest.mark.parametrize(("variant", "error"), [("fp32", 1e-5), ("int8", 0.05)])
def test_both_exporters_agree(
    bundle: Path, traced: Path, images: list[Image.Image], variant: str, error: float
) -> None:
    native, other = (siglip_onnx.load(path, variant=variant) for path in (bundle, traced))
    assert_allclose(other.encode_images(images), native.encode_images(images), atol=error)
    assert_allclose(other.encode_texts(TEXTS), native.encode_texts(TEXTS), atol=error)
    assert native.embedding_space != other.embedding_space


def test_the_same_layers_are_quantized(bundle: Path, traced: Path) -> None:
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (bundle, traced)]
    native, other = (manifest["variants"]["int8"]["quantization"] for manifest in manifests)
    assert native == other
    assert manifests[1]["source"]["exporter"].endswith("optimum")


def test_the_traced_graph_is_another_graph(bundle: Path, traced: Path) -> None:
    """Otherwise the two would not check each other."""
    operators = [
        {node.op_type for node in onnx.load(path / "onnx" / "vision_model.onnx", load_external_data=False).graph.node}
        for path in (bundle, traced)
    ]
    assert "MultiHeadAttention" in operators[0]
    assert "MultiHeadAttention" not in operators[1]
    assert "Softmax" in operators[1]


def test_the_layers_of_a_traced_graph_are_found(traced: Path, images: list[Image.Image]) -> None:
    bundle = siglip_onnx.bundle.open_bundle(traced)
    inputs = siglip_onnx.load(traced).preprocess(images[:1])
    cosines = layer_cosines(bundle, "int8", "vision", inputs)
    assert next(iter(cosines)) == "vision_model.encoder.layers.0"
    assert len(cosines) == bundle.config.vision.num_hidden_layers + 1


def test_naflex_of_any_grid(tmp_path: Path, images: list[Image.Image]) -> None:
    checkpoint = make_naflex_checkpoint(tmp_path / "naflex")
    for exporter in ("native", "optimum"):
        export_bundle(checkpoint, tmp_path / exporter, exporter=exporter)
    for patches in (None, 9, 100):
        native, traced = (
            siglip_onnx.load(tmp_path / exporter, variant="fp32", max_num_patches=patches)
            for exporter in ("native", "optimum")
        )
        assert_allclose(traced.encode_images(images), native.encode_images(images), atol=1e-5)
    (inputs,) = native.preprocess(images[0])
    padded = {
        name: np.pad(array, [(0, 0), (0, 3)] + [(0, 0)] * (array.ndim - 2), constant_values=0 if "mask" in name else 3)
        for name, array in inputs.items()
    }
    tower = traced.vision.session
    assert_allclose(tower.run("pooler_output", padded), tower.run("pooler_output", inputs), atol=1e-5)


def test_weights_that_are_the_same_stay_apart(small_checkpoint: Path, tmp_path: Path) -> None:
    """A tracer that finds one tensor twice keeps it once; to rescale one layer must not rescale the other."""
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    first, second = (f"vision_model.encoder.layers.{number}" for number in (0, 1))
    for name in [name for name in weights if name.endswith(".bias")]:
        weights[name] = torch.zeros_like(weights[name])
    for part in ("self_attn.q_proj.weight", "layer_norm1.weight", "mlp.fc1.weight"):
        weights[f"{second}.{part}"] = weights[f"{first}.{part}"].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    checkpoint = add_outliers(checkpoint, tmp_path / "outliers")
    (found,) = export_bundle(checkpoint, tmp_path / "out", precisions=["int8"], exporter="optimum")
    assert found.accuracy.cosine_min > 0.999


def test_the_command(small_checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", str(small_checkpoint), str(tmp_path / "out"), "--exporter", "optimum", "--precision", "fp32"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    assert "Tracing the PyTorch model" in result.stderr


def test_without_optimum_the_extra_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", small_checkpoint, tmp_path / "out", "--exporter", "optimum"]
    found = run_without("optimum.exporters.onnx", *command)
    assert found.returncode != 0
    assert 'pip install "siglip-onnx[optimum]"' in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()
