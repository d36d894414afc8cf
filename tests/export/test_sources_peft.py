"""LoRA adapters, merged into a local base at export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.numpy import save_file
from support.checkpoints import make_checkpoint, make_single_tower
from support.layouts import Arrays, assert_embeddings_of, big_vision_arrays, read_json, weights_of, write_json

import siglip_onnx
from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.sources.peft import _merge

Q = "vision_model.encoder.layers.0.self_attn.q_proj"
FC = "text_model.encoder.layers.1.mlp.fc1"
TOKENS = "text_model.embeddings.token_embedding"
PATCHES = "vision_model.embeddings.patch_embedding"
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False,
                            "use_rslora": False, "base_model_name_or_path": "someone/base",
                            "peft_version": "0.21.2"}  # fmt: skip


def draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers that follow from the shape."""
    return np.random.default_rng(shape).normal(0, 0.3, shape).astype(np.float32)


def write_adapter(folder: Path, arrays: Arrays, **settings: Any) -> Path:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": array for name, array in arrays.items()}, folder / "adapter_model.safetensors"
    )
    write_json(folder / "adapter_config.json", SETTINGS | settings)
    return folder


def low_rank(layer: str, out: int, width: int, rank: int = 4) -> Arrays:
    return {f"{layer}.lora_A.weight": draw(rank, width), f"{layer}.lora_B.weight": draw(out, rank)}


def test_lora(small_checkpoint: Path, tmp_path: Path, image: Image.Image) -> None:
    arrays = low_rank(Q, 64, 64) | low_rank(FC, 128, 64, rank=2)
    arrays[f"{Q}.base_layer.bias"] = draw(64)
    norm = "text_model.final_layer_norm.weight"
    arrays[norm] = 1 + draw(64)
    adapter = write_adapter(
        tmp_path / "adapter", arrays, alpha_pattern={"layers.1.mlp.fc1": 3}, rank_pattern={"fc1": 2}
    )
    export_bundle(adapter, tmp_path / "out", precisions=["fp32"], base=small_checkpoint)

    merged = Path(shutil.copytree(small_checkpoint, tmp_path / "merged"))
    weights = weights_of(merged)
    weights[f"{Q}.weight"] += 8 / 4 * draw(64, 4) @ draw(4, 64)
    weights[f"{FC}.weight"] += 3 / 2 * draw(128, 2) @ draw(2, 64)
    weights |= {f"{Q}.bias": draw(64), norm: 1 + draw(64)}
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    assert_embeddings_of(merged, tmp_path / "out", image)
    source = siglip_onnx.load(tmp_path / "out").bundle.manifest.source
    assert (source["checkpoint"], source["layout"], source["base"]) == ("adapter", "peft", small_checkpoint.name)


@pytest.mark.parametrize(
    ("arrays", "settings", "layer", "expected"),
    [
        (low_rank(Q, 64, 64), {"use_rslora": True}, Q, lambda w: w + 8 / 2 * draw(64, 4) @ draw(4, 64)),
        (low_rank(f"model.{Q}", 64, 64), {}, Q, lambda w: w + 2 * draw(64, 4) @ draw(4, 64)),
        (
            {f"{TOKENS}.lora_embedding_A": draw(4, 300), f"{TOKENS}.lora_embedding_B": draw(64, 4)}, {},
            TOKENS, lambda w: w + 2 * (draw(64, 4) @ draw(4, 300)).T,
        ),
        (
            {f"{PATCHES}.lora_A.weight": draw(4, 3, 8, 8), f"{PATCHES}.lora_B.weight": draw(64, 4, 1, 1)}, {},
            PATCHES,
            lambda w: w + 2 * np.einsum("or,rchw->ochw", draw(64, 4, 1, 1)[:, :, 0, 0], draw(4, 3, 8, 8)),
        ),
        (
            low_rank(Q, 64, 64), {"alpha_pattern": {f"^{Q}": 2, "q_proj": 4}},
            Q, lambda w: w + draw(64, 4) @ draw(4, 64) / 2,
        ),
        (low_rank(Q, 64, 64), {"alpha_pattern": {"proj": 2}}, Q, lambda w: w + 2 * draw(64, 4) @ draw(4, 64)),
    ],
)  # fmt: skip
def test_kinds_of_adapters(
    small_checkpoint: Path, tmp_path: Path, arrays: Arrays, settings: dict[str, Any], layer: str,
    expected: Callable[[Any], Any],
) -> None:  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", arrays, **settings)
    with open_checkpoint(adapter, base=small_checkpoint) as checkpoint:
        for name, array in weights_of(small_checkpoint).items():
            changed = expected(array) if name == f"{layer}.weight" else array
            assert_allclose(checkpoint.weights[name], changed, atol=1e-5, err_msg=name)


def test_dora_and_bias(small_checkpoint: Path, tmp_path: Path) -> None:
    arrays = low_rank(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": 1 + draw(64), f"{Q}.lora_B.bias": draw(64)}
    adapter = write_adapter(tmp_path / "adapter", arrays, use_dora=True, lora_bias=True)
    weights = weights_of(small_checkpoint)
    with open_checkpoint(adapter, base=small_checkpoint) as checkpoint:
        weight = checkpoint.weights[f"{Q}.weight"]
        assert_allclose(np.linalg.norm(weight, axis=1), np.abs(1 + draw(64)), rtol=1e-5)
        direction = weights[f"{Q}.weight"] + 2 * draw(64, 4) @ draw(4, 64)
        cosines = (weight * direction).sum(axis=1) / np.linalg.norm(weight, axis=1) / np.linalg.norm(direction, axis=1)
        assert_allclose(cosines * np.sign(1 + draw(64)), 1, rtol=1e-5)
        assert_allclose(checkpoint.weights[f"{Q}.bias"], weights[f"{Q}.bias"] + 2 * draw(64), atol=1e-6)


@pytest.mark.parametrize("name", ["vision", "text"])
def test_a_single_tower_has_no_name_in_transformers_5(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    arrays = low_rank("encoder.layers.0.self_attn.q_proj", 64, 64)
    mapping = {"base_model_class": f"Siglip{name.title()}Model", "parent_library": "transformers"}
    tower = make_single_tower(small_checkpoint, tmp_path / "tower", name)
    of_base = write_adapter(tmp_path / "of_base", arrays, auto_mapping=mapping)
    of_tower = write_adapter(tmp_path / "of_tower", arrays, alpha_pattern={"^encoder.layers.0.self_attn.q_proj": 8})
    weight = f"{name}_model.encoder.layers.0.self_attn.q_proj.weight"
    expected = weights_of(small_checkpoint)[weight] + 2 * draw(64, 4) @ draw(4, 64)
    for adapter, base in ((of_base, small_checkpoint), (of_tower, tower)):
        with open_checkpoint(adapter, base=base) as checkpoint:
            assert_allclose(checkpoint.weights[weight], expected, atol=1e-5)


def test_settings_saved_with_the_adapter_are_used(small_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", low_rank(Q, 64, 64))
    settings = read_json(small_checkpoint / "preprocessor_config.json")
    write_json(adapter / "preprocessor_config.json", settings | {"image_mean": [0.48, 0.45, 0.4], "resample": 1})
    shutil.copy(small_checkpoint / "spiece.model", adapter)
    write_json(adapter / "tokenizer_config.json", {"do_lower_case": False})
    lines: list[str] = []
    export_bundle(adapter, tmp_path / "out", precisions=["fp32"], base=small_checkpoint, report=lines.append)
    assert f"Using preprocessor_config.json and the tokenizer of {adapter}, not of its base" in lines
    preprocessor = siglip_onnx.load(tmp_path / "out").bundle.preprocessor
    assert (preprocessor.resample, preprocessor.levels.image_mean) == (1, (0.48, 0.45, 0.4))
    written = (tmp_path / "out" / "preprocessor_config.json").read_bytes()
    assert written == (adapter / "preprocessor_config.json").read_bytes()
    tokens = siglip_onnx.load(tmp_path / "out").tokenize(["A CAT", "a cat"])
    assert (tokens[0] != tokens[1]).any()
    (adapter / "preprocessor_config.json").unlink()
    write_json(adapter / "processor_config.json", {"image_processor": settings | {"resample": 0}})
    with open_checkpoint(adapter, base=small_checkpoint) as checkpoint:
        assert checkpoint.preprocessor.resample == 0
    big_vision = tmp_path / "big_vision"
    big_vision.mkdir()
    np.savez(big_vision / "model.npz", **big_vision_arrays(small_checkpoint, scan=False))
    with open_checkpoint(adapter, base=big_vision) as checkpoint:  # has no tokenizer itself
        assert checkpoint.tokenizer == adapter


def test_the_base_is_found_next_to_the_adapter(small_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", low_rank(Q, 64, 64), base_model_name_or_path="google/base")
    with pytest.raises(CheckpointError, match="holds a LoRA adapter without its base, 'google/base'"):
        export_bundle(adapter, tmp_path / "out")
    base = Path(shutil.copytree(small_checkpoint, tmp_path / "base"))
    with open_checkpoint(adapter) as checkpoint:
        assert checkpoint.weight_files == (base / "model.safetensors", adapter / "adapter_model.safetensors")
    secret = Path(shutil.copytree(small_checkpoint, tmp_path / "home" / "secret"))
    for name in (str(secret), "../home/secret", "home/../home/secret", "", "adapter"):
        shutil.rmtree(adapter)
        write_adapter(adapter, low_rank(Q, 64, 64), base_model_name_or_path=name)
        with pytest.raises(CheckpointError, match="without its base"):
            open_checkpoint(adapter)
    with pytest.raises(CheckpointError, match="is not the folder of a checkpoint"):
        open_checkpoint(adapter, base=adapter)
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json, so it is not an adapter"):
        open_checkpoint(base, base=base)


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ({}, {"peft_type": "LOHA"}, "peft_type 'LOHA', expected 'LORA'"),
        ({}, {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which may change what"),
        ({}, {"fan_in_fan_out": True}, "has fan_in_fan_out, which may change"),
        ({}, {"trainable_token_indices": [1]}, "has trainable_token_indices"),
        (low_rank(Q, 64, 64), {"alpha_pattern": {"(a+)+": 2}}, "has an alpha_pattern"),
        (low_rank(Q, 64, 64), {"alpha_pattern": dict.fromkeys(map(str, range(10_001)), 2)}, "of 10,001 names"),
        (low_rank(Q, 64, 64), {"lora_alpha": "8"}, "lora_alpha '8', expected a number"),
        (low_rank(Q, 64, 64), {"use_dora": True}, "use_dora True, but its weights are of the other kind"),
        (low_rank(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": draw(63)}, {"use_dora": True}, "magnitude of shape"),
        (low_rank(Q, 96, 96), {}, r"trained on another base: .* has shape \(64, 64\) there"),
        ({f"{Q}.lora_A.weight": draw(4, 64)}, {}, "lacks one of the two matrices"),
        ({f"{Q}.lora_A.weight": draw(4), f"{Q}.lora_B.weight": draw(64)}, {}, "trained on another base"),
        (low_rank("vision_model.encoder.layers.7.self_attn.q_proj", 64, 64), {}, "which its base does not have"),
        ({"classifier.weight": draw(3, 64)}, {}, r"neither it nor its base has the labels.*merge_and_unload.*id2label"),
        (low_rank("encoder.layers.0.self_attn.q_proj", 64, 64), {}, "otherwise merge it with PEFT"),
        ({f"{Q}.base_layer.bias": draw(63)}, {}, "trained on another base"),
        ({f"{Q}.lora_A.weight": draw(4, 64), f"{Q}.lora_B.weight": np.full((64, 4), np.nan, np.float32)}, {}, "NaN"),
    ],
)  # fmt: skip
def test_adapters_that_are_refused(
    small_checkpoint: Path, tmp_path: Path, arrays: Arrays, settings: dict[str, Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", arrays, **settings)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(adapter, tmp_path / "out", base=small_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_without_its_config(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", low_rank(Q, 64, 64))
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has adapter_model\.safetensors, but not the adapter_config\.json"):
        open_checkpoint(adapter)


def test_another_base_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", low_rank(Q, 64, 64))
    other = make_checkpoint(tmp_path / "other", "narrow_text_is_projected")
    with pytest.raises(CheckpointError, match="was trained on another base"):
        export_bundle(adapter, tmp_path / "out", base=other)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither adapter_model\.safetensors nor adapter_model\.bin"):
        export_bundle(adapter, tmp_path / "out", base=other)


def test_adapter_without_tensors_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has no tensors, so it would change nothing"):
        _merge({}, {}, {}, Path("adapter"))
