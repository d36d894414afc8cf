"""The second exporter: the graphs that optimum traces agree with the hand-written ones of ``towers.py``."""

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
from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.pipeline import export_bundle

TEXTS = ["a photo of a cat", "赤い丸", ""]


@pytest.fixture(scope="module")
def traced(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint``, exported by the command with optimum."""
    out = tmp_path_factory.mktemp("traced") / checkpoint.name
    result = CliRunner().invoke(main, ["export", str(checkpoint), str(out), "--exporter", "optimum"])
    assert result.exit_code == 0, result.stderr
    assert "Tracing the PyTorch model" in result.stderr
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


def test_equal_weights_of_two_layers_are_rescaled_separately(small_checkpoint: Path, tmp_path: Path) -> None:
    """A tracer stores equal tensors once; rescaling one layer must not rescale the other."""
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    first, second = (f"vision_model.encoder.layers.{number}" for number in (0, 1))
    for name in [name for name in weights if name.endswith(".bias")]:
        weights[name] = torch.zeros_like(weights[name])
    for part in ("self_attn.q_proj.weight", "layer_norm1.weight", "mlp.fc1.weight"):
        weights[f"{second}.{part}"] = weights[f"{first}.{part}"].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    checkpoint = add_outliers(checkpoint, tmp_path / "outliers")
    (variant,) = export_bundle(checkpoint, tmp_path / "out", precisions=["int8"], exporter="optimum")
    assert variant.accuracy.cosine_min > 0.999


def test_weights_that_transformers_does_not_find_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    """It would initialize them at random; the native exporter finds them behind their prefix."""
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    weights = {f"module.{name}": weight for name, weight in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not find 'vision_model\..*Use --exporter native"):
        export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"], exporter="optimum")
    assert not (tmp_path / "out").exists()


def test_without_a_package_of_optimum_the_extra_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", small_checkpoint, tmp_path / "out", "--exporter", "optimum"]
    result = run_without("torch", *command)
    assert result.returncode != 0
    assert "--exporter optimum needs torch" in result.stderr
    assert '[optimum]"' in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
