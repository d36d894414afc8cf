"""Checkpoints of open_clip: names, GELU, projection, filter and cleaning of texts."""

from __future__ import annotations

import copy
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import save_file
from support.layouts import (
    OPEN_CLIP_CONFIG,
    assert_embeddings_of,
    make_wide_checkpoint,
    make_wide_naflex_checkpoint,
    open_clip_weights,
    weights_of,
    write_json,
)

import siglip_onnx
from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.tokenizer import OPEN_CLIP_CLEANING, write_tokenizer
from siglip_onnx.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wide_checkpoint(tmp_path_factory.mktemp("wide") / "reference")


@pytest.fixture
def open_clip(reference: Path, tmp_path: Path) -> Path:
    """``reference`` as open_clip saves it."""
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(open_clip_weights(reference), folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", OPEN_CLIP_CONFIG)
    shutil.copy(reference / "spiece.model", folder)
    return folder


def test_open_clip(open_clip: Path, reference: Path, tmp_path: Path, image: Image.Image) -> None:
    export_bundle(open_clip, tmp_path / "out", precisions=["fp32"])
    assert_embeddings_of(reference, tmp_path / "out", image)
    model = siglip_onnx.load(tmp_path / "out")
    source = model.bundle.manifest.source
    assert source["layout"] == "open_clip"
    assert source["hidden_act"] == {"vision": "gelu", "text": "gelu"}
    assert source["text_cleaning"] == "canonicalize of open_clip, without ftfy and html.unescape"
    assert model.bundle.preprocessor.resample == 3


@pytest.mark.parametrize("settings", [{"image_size": 40}, {"image_size": 32, "image_seq_len": 25}])
def test_naflex_model_of_open_clip(tmp_path: Path, image: Image.Image, settings: dict[str, int]) -> None:
    reference = make_wide_naflex_checkpoint(tmp_path / "reference")
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(open_clip_weights(reference), folder / "open_clip_model.safetensors")
    shutil.copy(reference / "spiece.model", folder)
    config = copy.deepcopy(OPEN_CLIP_CONFIG)
    edit(config, "vision", timm_model_name="naflexvit_base_patch16_siglip", **settings)
    edit(config, "text", act_kwargs={"approximate": "tanh"}, width=48)
    write_json(folder / "open_clip_config.json", config)
    models = []
    for source in (reference, folder):
        export_bundle(source, tmp_path / f"{source.name}_bundle", precisions=["fp32"])
        models.append(siglip_onnx.load(tmp_path / f"{source.name}_bundle"))
    expected, model = models
    assert model.bundle.config == expected.bundle.config
    assert model.bundle.preprocessor == expected.bundle.preprocessor
    assert_array_equal(model.encode_images(image), expected.encode_images(image))
    assert_array_equal(model.encode_texts(["a red circle"]), expected.encode_texts(["a red circle"]))
    del config["model_cfg"]["vision_cfg"]["image_size"]
    config["model_cfg"]["vision_cfg"].pop("image_seq_len", None)
    write_json(folder / "open_clip_config.json", config)
    with pytest.raises(CheckpointError, match="max_num_patches None"):
        open_checkpoint(folder)


def test_texts_are_cleaned_as_open_clip_does(open_clip: Path, reference: Path, tmp_path: Path) -> None:
    export_bundle(open_clip, tmp_path / "out", precisions=["fp32"])
    export_bundle(reference, tmp_path / "plain", precisions=["fp32"])
    model, plain = siglip_onnx.load(tmp_path / "out"), siglip_onnx.load(tmp_path / "plain")
    for text, cleaned in (
        ("a_b", "a b"),
        ("  Two\tDOGS,\nplay!  ", "two dogs play"),
        ("a </s> b", "a s b"),
        ("</s>", "s"),
        ("<unk>", "unk"),
        ("_", ""),
        ("赤い、丸", "赤い、丸"),
    ):
        assert_array_equal(model.tokenize([text]), plain.tokenize([cleaned]), err_msg=text)


@pytest.mark.parametrize("cleaning", ["lower", "canonicalize"])
def test_capital_sigma_is_lowered_as_by_python(cleaning: str) -> None:
    """Σ becomes ς at the end of a word, and σ elsewhere; the letters of the texts are those that the rule names."""
    steps = OPEN_CLIP_CLEANING[cleaning]
    document = {"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}}
    normalizer = {"type": "Sequence", "normalizers": steps}
    cleaner = tokenizers.Tokenizer.from_str(json.dumps(document | {"normalizer": normalizer})).normalizer
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ΣΣΣΑaO·\u0301\u0345ªʰ犬1"), rng.integers(1, 8))) for _ in range(2000)]
    for word in ["ΟΔΟΣ", "ΣΟΦΟΣ ΑΣ", "Σ", "ΑΣ.", *words]:
        expected = "".join(letter for letter in word if letter not in string.punctuation).lower()
        assert cleaner.normalize_str(word).replace(".", "") == expected, word


def test_the_published_tokenizer_follows_the_cleaning(tmp_path: Path) -> None:
    """A prefix only where the published Metaspace has one, and the padding token that its config names."""
    vocab = [
        ["<pad>", 0.0],
        ["</s>", 0.0],
        ["<unk>", 0.0],
        ["▁", -3.0],
        ["a", -1.0],
        ["▁a", -1.5],
        ["▁b", -1.5],
        ["b", -2.0],
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": True}
    for scheme, expected in (("always", [5, 6, 1, 0]), ("never", [4, 6, 1, 0])):
        document = {
            "version": "1.0",
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace | {"prepend_scheme": scheme}]},
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab},
        }
        write_json(tmp_path / "tokenizer.json", document)
        write_json(tmp_path / "tokenizer_config.json", {"pad_token": {"content": "<pad>"}})
        for cleaning in ("lower", "canonicalize"):
            write_tokenizer(tmp_path, tmp_path / "out.json", text_length=4, vocab_size=9, cleaning=cleaning)
            assert_array_equal(Tokenizer(tmp_path / "out.json", 4)([" A  b "]), [expected])
    for damaged in ([], {"type": "Sequence", "normalizers": [1]}, {"type": "Nothing"}):
        write_json(
            tmp_path / "tokenizer.json", document | {"normalizer": damaged, "model": document["model"] | {"vocab": 7}}
        )
        with pytest.raises(CheckpointError, match=r"is not a tokenizer of SigLIP"):
            write_tokenizer(tmp_path, tmp_path / "out.json", text_length=4, vocab_size=9, cleaning="lower")


def test_a_file_of_marqo_has_a_prefix(open_clip: Path, reference: Path) -> None:
    (open_clip / "open_clip_model.safetensors").unlink()
    weights = {f"model.{name}": array for name, array in open_clip_weights(reference).items()}
    save_file(weights, open_clip / "model.safetensors")
    write_json(open_clip / "config.json", {"model_type": "siglip", "auto_map": {}, "open_clip_model_name": "x"})
    with open_checkpoint(open_clip) as checkpoint:
        assert checkpoint.layout == "open_clip"
        for name, array in weights_of(reference).items():
            assert_array_equal(checkpoint.weights[name], array)


def test_weights_of_transformers_are_preferred(open_clip: Path, reference: Path) -> None:
    for file in reference.iterdir():
        shutil.copy(file, open_clip)
    with open_checkpoint(open_clip) as checkpoint:
        assert checkpoint.layout == "transformers"


def test_no_projection_is_the_identity(tmp_path: Path, image: Image.Image) -> None:
    reference = make_wide_checkpoint(tmp_path / "reference", identity=True)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    weights = open_clip_weights(reference)
    del weights["text.text_projection.weight"], weights["text.text_projection.bias"]
    save_file(weights, folder / "open_clip_model.safetensors")
    config = copy.deepcopy(OPEN_CLIP_CONFIG)
    del config["model_cfg"]["text_cfg"]["proj_bias"]
    config["model_cfg"]["text_cfg"] |= {"proj_type": "none", "width": 48}
    write_json(folder / "open_clip_config.json", config)
    tokenizer = reference / "spiece.model"
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json\. Download that of 'timm/ViT-B-16-SigLIP'"):
        export_bundle(folder, tmp_path / "out")
    export_bundle(folder, tmp_path / "out", precisions=["fp32"], tokenizer=tokenizer)
    assert_embeddings_of(reference, tmp_path / "out", image)


@pytest.mark.parametrize(
    ("trunk", "act"),
    [
        ("vit_base_patch16_siglip_512.v2_webli", "gelu"),
        ("vit_base_patch32_siglip_256", "gelu_pytorch_tanh"),
        ("vit_large_patch16_siglip_384", "gelu"),
        ("vit_large_patch16_siglip_512", "gelu_pytorch_tanh"),
        ("vit_so400m_patch14_siglip_378", "gelu"),
        ("vit_so400m_patch16_siglip_256", "gelu_pytorch_tanh"),
        ("vit_giantopt_patch16_siglip_384", "gelu_pytorch_tanh"),
    ],
)
def test_gelu_of_trunks(open_clip: Path, trunk: str, act: str) -> None:
    config = copy.deepcopy(OPEN_CLIP_CONFIG)
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = trunk
    config["model_cfg"]["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    write_json(open_clip / "open_clip_config.json", config)
    with open_checkpoint(open_clip) as checkpoint:
        assert (checkpoint.config.vision.hidden_act, checkpoint.config.text.hidden_act) == (act, "gelu_pytorch_tanh")
        assert checkpoint.config.vision.num_attention_heads == (12 if "base" in trunk else 16)


def edit(document: dict[str, Any], part: str, **values: Any) -> None:
    {"model": document["model_cfg"], "vision": document["model_cfg"]["vision_cfg"],
     "text": document["model_cfg"]["text_cfg"], "images": document["preprocess_cfg"]}[part].update(values)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: edit(d, "vision", timm_model_name=None), "is of a CLIP model of open_clip"),
        (lambda d: edit(d, "vision", timm_model_name="vit_base_patch16_siglip_gap_224"), "vision tower 'vit_base_patc"),
        (lambda d: edit(d, "vision", timm_model_name="naflexvit_base_patch16_siglip"), "lacks the weight .*embeds"),
        (lambda d: edit(d, "vision", timm_model_name="naflexvit_base_patch16_map"), "expected a trunk of SigLIP"),
        (lambda d: edit(d, "text", hf_model_name="facebook/nllb-200"), "text tower 'facebook/nllb-200'"),
        (lambda d: edit(d, "text", pool_type="argmax"), "text_cfg.pool_type 'argmax', expected 'last'"),
        (lambda d: edit(d, "text", no_causal_mask=False), "text_cfg.no_causal_mask False, expected True"),
        (lambda d: edit(d, "text", qk_norm=True), "text_cfg.qk_norm True, expected 'no such setting'"),
        (lambda d: edit(d, "text", tokenizer_kwargs={"clean": "x"}), "expected only 'clean', one of whitespace"),
        (lambda d: edit(d, "text", act_kwargs={"approximate": "y"}), "which are unknown"),
        (lambda d: edit(d, "text", heads="12"), "num_attention_heads '12'"),
        (lambda d: edit(d, "vision", image_size=10**30), "image_size of 100 bits"),
        (lambda d: edit(d, "vision", image_size=64), "position_embedding.weight' has shape"),
        (lambda d: edit(d, "model", quick_gelu=True), "model_cfg.quick_gelu"),
        (lambda d: edit(d, "images", resize_mode="shortest"), "resize_mode 'shortest'"),
        (lambda d: edit(d, "images", interpolation="random"), "interpolation 'random'"),
        (lambda d: edit(d, "images", interpolation=["bicubic"]), "interpolation"),
        (lambda d: edit(d, "text", tokenizer_kwargs={"clean": []}), "expected only 'clean'"),
        (lambda d: edit(d, "images", mean=[0.5]), "image_mean .* expected 3 finite"),
        (lambda d: d.update(model_cfg=[]), "has no object model_cfg"),
        (lambda d: d.pop("preprocess_cfg"), "has no object preprocess_cfg"),
    ],
)
def test_configs_that_are_refused(
    open_clip: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    config = copy.deepcopy(OPEN_CLIP_CONFIG)
    change(config)
    write_json(open_clip / "open_clip_config.json", config)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(open_clip, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["open_clip"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("visual.trunk.blocks.1.attn.qkv.weight", None, "lacks the weight 'visual.trunk.blocks.1.attn.qkv.weight'"),
        ("visual.trunk.blocks.1.attn.qkv.weight", (145, 48), "expected a multiple of 3 rows"),
        ("visual.trunk.pos_embed", (1, 15, 48), r"has shape \(15, 48\), but config.json implies \(16, 48\)"),
        ("visual.trunk.patch_embed.proj.weight", (48, 3), "expected 4 dimensions"),
        ("text.token_embedding.weight", (), "expected 2 dimensions"),
        ("logit_bias", (2,), r"which cannot become \(1,\)"),
    ],
)
def test_weights_that_are_refused(
    open_clip: Path, reference: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    weights = open_clip_weights(reference)
    del weights[name]
    if shape is not None:
        weights[name] = np.zeros(shape, np.float32)
    save_file(weights, open_clip / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export_bundle(open_clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_would_be_left_out_are_refused(open_clip: Path, reference: Path) -> None:
    weights = open_clip_weights(reference) | {"text.attn_mask": np.zeros((16, 16), np.float32)}
    save_file(weights, open_clip / "open_clip_model.safetensors")
    open_checkpoint(open_clip).opened.close()
    save_file(weights | {"visual.trunk.blocks.0.ls1.gamma": np.ones(48)}, open_clip / "open_clip_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has 1 weights that a SigLIP does not have, .*'visual\.trunk\.blocks\.0\.ls1"
    ):
        open_checkpoint(open_clip)


def test_a_second_scale_is_refused(open_clip: Path, reference: Path) -> None:
    weights = {f"model.{name}": array for name, array in open_clip_weights(reference).items()}
    save_file(weights | {"logit_scale": np.ones(1, np.float32)}, open_clip / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has 'logit_scale' and 'model\.logit_scale'; expected one model"):
        open_checkpoint(open_clip)


def test_a_folder_without_config(open_clip: Path, reference: Path) -> None:
    (open_clip / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has open_clip_model\.safetensors, but not the open_clip_config\.json"):
        open_checkpoint(open_clip)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(reference / name, open_clip)
    (open_clip / "open_clip_model.safetensors").rename(open_clip / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has weights of open_clip, but no open_clip_config\.json"):
        open_checkpoint(open_clip)


def test_a_folder_without_weights(open_clip: Path) -> None:
    (open_clip / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has neither open_clip_model"):
        open_checkpoint(open_clip)
