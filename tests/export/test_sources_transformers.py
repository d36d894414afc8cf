"""Checkpoints of transformers 5, wrapped checkpoints, and those that are refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import save_file
from support.checkpoints import make_checkpoint, make_naflex_checkpoint
from support.layouts import (
    SAVED_BY_TRANSFORMERS_5,
    assert_embeddings_of,
    read_json,
    weights_of,
    write_json,
    write_transformers5,
)

import siglip_onnx
from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.pipeline import export_bundle


@pytest.fixture(scope="module")
def transformers5(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers5(small_checkpoint, tmp_path_factory.mktemp("layouts") / "v5")


def test_transformers_5(transformers5: Path, small_checkpoint: Path, tmp_path: Path, image: Image.Image) -> None:
    lines: list[str] = []
    export_bundle(transformers5, tmp_path / "out", precisions=["fp32"], report=lines.append)
    assert any("Ignoring projection_dim, use_cache of" in line for line in lines)
    assert_embeddings_of(small_checkpoint, tmp_path / "out", image)
    preprocessor = read_json(tmp_path / "out" / "preprocessor_config.json")
    assert preprocessor["size"] == {"height": 32, "width": 32}
    assert read_json(tmp_path / "out" / "config.json")["vision_config"]["image_size"] == 32
    assert siglip_onnx.load(tmp_path / "out").bundle.preprocessor.resample == 2


def test_files_that_transformers_5_wrote(tmp_path: Path) -> None:
    """Logits equal those that transformers 5.23 computed itself, on its own pixels and ids; see its README.md."""
    export_bundle(SAVED_BY_TRANSFORMERS_5, tmp_path / "out", precisions=["fp32"])
    model = siglip_onnx.load(tmp_path / "out")
    expected = np.load(SAVED_BY_TRANSFORMERS_5 / "expected.npz")
    assert_array_equal(model.tokenize(["a red star", "六つの卵"]), expected["input_ids"])
    images = model.vision.session.embed({"pixel_values": expected["pixel_values"]})
    texts = model.text.session.embed({"input_ids": expected["input_ids"].astype(np.int64)})
    np.testing.assert_allclose(model.logits(images, texts), expected["logits"], atol=1e-5)


def test_naflex_of_transformers_5(tmp_path: Path) -> None:
    plain = make_naflex_checkpoint(tmp_path / "naflex")
    with open_checkpoint(write_transformers5(plain, tmp_path / "v5")) as checkpoint, open_checkpoint(plain) as expected:
        assert checkpoint.config == expected.config
        assert checkpoint.preprocessor == expected.preprocessor
        assert checkpoint.weights.shape("logit_bias") == (1,)


def test_configs_of_transformers_4_are_copied(small_checkpoint: Path, small_bundle: Path) -> None:
    assert (small_bundle / "preprocessor_config.json").read_bytes() == (
        small_checkpoint / "preprocessor_config.json"
    ).read_bytes()
    config = read_json(small_bundle / "config.json")
    assert config.pop("transformers.js_config") == {"use_external_data_format": True}
    assert config == read_json(small_checkpoint / "config.json")


def test_nested_settings_come_before_flat_ones_as_in_transformers(transformers5: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(transformers5, tmp_path / "both"))
    nested = read_json(both / "processor_config.json")["image_processor"]
    write_json(both / "preprocessor_config.json", nested | {"resample": 3})
    with open_checkpoint(both) as checkpoint:
        assert checkpoint.preprocessor.resample == 2
    write_json(both / "processor_config.json", {"processor_class": "SiglipProcessor"})
    with open_checkpoint(both) as checkpoint:
        assert checkpoint.preprocessor.resample == 3


def edited(checkpoint: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    copy = Path(shutil.copytree(checkpoint, folder))
    config = read_json(copy / "config.json")
    change(config)
    write_json(copy / "config.json", config)
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(model_type="clip"), "is of a CLIP model"),
        (lambda d: (d.clear(), d.update(architecture="vit_base_patch16_siglip_224")), "single tower of timm"),
        (lambda d: d.update(model_type=["siglip"]), r"a model_type that is not a name \(\['siglip'\]\)"),
        (lambda d: d.update(quantization={"group_size": 64, "bits": 4}), "is of quantized MLX weights"),
        (lambda d: d.update(quantization_config={"quant_method": "gptq"}), "is of quantized weights"),
        (lambda d: d["vision_config"].update(image_size=[32, 64]), r"image_size \[32, 64\], expected a number"),
        (lambda d: d["vision_config"].update(num_registers=4), "has num_registers"),
        (lambda d: d["vision_config"].update(hidden_size=10**40), r"hidden_size of \d+ bits, expected at most"),
    ],
)
def test_other_models_are_named(
    transformers5: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_bundle(edited(transformers5, tmp_path / "copy", change), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_weights_of_mlx_have_their_channels_last(small_checkpoint: Path, tmp_path: Path, image: Image.Image) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "mlx"))
    weights = weights_of(copy)
    name = "vision_model.embeddings.patch_embedding.weight"
    channels_last = np.ascontiguousarray(weights[name].transpose(0, 2, 3, 1))
    save_file(weights | {name: channels_last}, copy / "model.safetensors", {"format": "mlx"})
    lines: list[str] = []
    export_bundle(copy, tmp_path / "out", precisions=["fp32"], report=lines.append)
    assert any("has the weights of MLX" in line for line in lines)
    assert_embeddings_of(small_checkpoint, tmp_path / "out", image)
    with pytest.raises(CheckpointError, match="has the layout of MLX, which transformers cannot load"):
        export_bundle(copy, tmp_path / "traced", exporter="optimum")


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "mmproj.gguf"):
        with pytest.raises(CheckpointError, match="is of GGUF files"):
            open_checkpoint(path)


def test_sentence_transformers(transformers5: Path, tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped"
    shutil.copytree(transformers5, wrapped / "0_Transformer")
    kind = "sentence_transformers.models"
    modules = [{"path": "0_Transformer", "type": f"{kind}.Transformer"}, {"path": "1", "type": f"{kind}.Normalize"}]
    write_json(wrapped / "modules.json", modules)
    with open_checkpoint(wrapped) as checkpoint, open_checkpoint(transformers5) as plain:
        assert checkpoint.config == plain.config
    write_json(wrapped / "modules.json", [*modules, {"path": "2_Dense", "type": f"{kind}.Dense"}])
    with pytest.raises(CheckpointError, match="with a Dense module, which changes the embeddings"):
        open_checkpoint(wrapped)
    write_json(wrapped / "modules.json", [{"path": "../transformers5", "type": f"{kind}.Transformer"}])
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged"):
        open_checkpoint(wrapped)


def test_weights_behind_a_prefix(small_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    weights = weights_of(copy)
    save_file({f"module.{name}": array for name, array in weights.items()}, copy / "model.safetensors")
    with open_checkpoint(copy) as checkpoint:
        for name, array in weights.items():
            assert_array_equal(checkpoint.weights[name], array)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vision_model.encoder.layers.0.self_attn.q_proj.lora_A", (4, 64)),  # of loralib, not merged
        ("vision_model.embeddings.prompt_tokens", (1, 8, 64)),
        ("text_model.encoder.layers.2.layer_norm1.weight", (64,)),
    ],
)
def test_weights_of_a_tower_that_would_be_left_out_are_refused(
    small_checkpoint: Path, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    weights = weights_of(copy) | {"vision_model.embeddings.position_ids": np.arange(16)[np.newaxis]}
    save_file(weights, copy / "model.safetensors")
    open_checkpoint(copy).opened.close()
    save_file(weights | {name: np.ones(shape, np.float32)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has 1 weights that its config.json does not imply, .*'{name}'"):
        open_checkpoint(copy)
    tower = "text" if name.startswith("vision") else "vision"
    open_checkpoint(copy, tower=tower).opened.close()


def test_weights_outside_the_towers_are_reported(small_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    weights = {f"model.{name}": array for name, array in weights_of(copy).items()}
    save_file(weights | {"vision_projection.weight": np.eye(64, dtype=np.float32)}, copy / "model.safetensors")
    lines: list[str] = []
    open_checkpoint(copy, report=lines.append).opened.close()
    assert [line for line in lines if "Ignoring 1 weights" in line and "'vision_projection.weight'" in line]


def test_files_of_two_models_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    weights = weights_of(copy)
    model = {f"model.{name}": array for name, array in weights.items()}
    last = "vision_model.encoder.layers.1.layer_norm2.bias"
    for average in (weights | {last: weights[last] + 1}, {k: v for k, v in weights.items() if k != last}):
        save_file(model | {f"ema_model.{name}": array for name, array in average.items()}, copy / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"has '.*patch_embedding\.weight' and '.*'; expected one model"):
            open_checkpoint(copy)


def test_a_module_that_is_registered_twice_is_one_model(small_checkpoint: Path, tmp_path: Path) -> None:
    """As by ``self.vision = self.model.vision_model``; and losses have a scale of their own."""
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    weights = weights_of(copy)
    model = {f"model.{name}": array for name, array in weights.items()}
    tower = {name.replace("_model", ""): array for name, array in weights.items() if name.startswith("vision_model.")}
    heads = {"logit_scale": np.ones(1, np.float32), "loss.logit_bias": np.ones(1, np.float32)}
    lines: list[str] = []
    for others in (tower, heads):
        save_file(model | others, copy / "model.safetensors")
        with open_checkpoint(copy, report=lines.append) as checkpoint:
            for name, array in weights.items():
                assert_array_equal(checkpoint.weights[name], array)
    assert [line for line in lines if "Ignoring 2 weights" in line and "'logit_scale'" in line]


def test_a_weight_beside_a_tower_without_a_name_is_reported(small_checkpoint: Path, tmp_path: Path) -> None:
    """transformers 5 writes the parts of a tower alone at the top."""
    tower = Path(shutil.copytree(small_checkpoint, tmp_path / "tower"))
    write_json(tower / "config.json", read_json(tower / "config.json")["vision_config"])
    weights = {
        name.removeprefix("vision_model."): array
        for name, array in weights_of(tower).items()
        if name.startswith("vision_model.")
    }
    save_file(weights | {"projection.weight": np.eye(64, dtype=np.float32)}, tower / "model.safetensors")
    lines: list[str] = []
    open_checkpoint(tower, report=lines.append).opened.close()
    assert [line for line in lines if "Ignoring 1 weights" in line and "'projection.weight'" in line]
    save_file(weights | {"head.prompt": np.eye(64, dtype=np.float32)}, tower / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not imply, the first is"):
        open_checkpoint(tower)


def test_shards_stay_in_their_folder(small_checkpoint: Path, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", "square", max_shard_size="100KB")
    secret = Path(shutil.copy(small_checkpoint / "model.safetensors", tmp_path / "secret.safetensors"))
    index = sharded / "model.safetensors.index.json"
    document = read_json(index)
    for name in ("../secret.safetensors", str(secret), "sub\\..\\..\\secret.safetensors", "", 7, None):
        write_json(index, {"weight_map": dict.fromkeys(document["weight_map"], name)})
        with pytest.raises(CheckpointError, match="is damaged"):
            export_bundle(sharded, tmp_path / "out")
    write_json(index, document)
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.unlink()
    first.symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link that leads outside the checkpoint"):
        export_bundle(sharded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_files_stay_in_their_folder(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A link in an archive of a stranger could make a bundle of private weights."""
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    if (copy / name).exists():
        shutil.move(copy / name, tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} is a link that leads outside the checkpoint"):
        export_bundle(copy, tmp_path / "out")


def test_truncated_weights(transformers5: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(transformers5, tmp_path / "copy"))
    content = (copy / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        (copy / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            export_bundle(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    arrays = {name: array.astype(np.int32) for name, array in weights_of(transformers5).items()}
    save_file(arrays, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="is of type I32, expected one of F32"):
        export_bundle(copy, tmp_path / "out")
