"""Write a small checkpoint in the layouts of other libraries, by the inverse of what the exporter does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file
from support.checkpoints import save_randomized
from transformers import (
    AutoModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import siglip_onnx

Arrays = dict[str, NDArray[Any]]


SAVED_BY_TRANSFORMERS_5 = Path(__file__).parent / "saved_by_transformers_5"


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document."""
    path.write_text(json.dumps(document), encoding="utf-8")


def weights_of(checkpoint: Path) -> Arrays:
    """Return the weights of a checkpoint by transformers' names."""
    weights: Arrays = load_file(checkpoint / "model.safetensors")
    return weights


def write_transformers5(checkpoint: Path, out: Path) -> Path:
    """Write ``checkpoint``, which transformers 4 saved, as transformers 5.24 does: other configs, the same weights."""
    out.mkdir()
    weights = weights_of(checkpoint)
    weights |= {name: weights[name].reshape(()) for name in ("logit_scale", "logit_bias")}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config = read_json(checkpoint / "config.json")
    config.pop("torch_dtype", None)
    size = config["vision_config"].get("image_size")
    config |= {"dtype": "float32", "transformers_version": "5.24.0", "use_cache": True, "projection_dim": 512}
    config["vision_config"] |= {"vision_use_head": True, "dtype": "float32"}
    image_processor = read_json(checkpoint / "preprocessor_config.json") | {"do_convert_rgb": True}
    if size is not None:
        config["vision_config"]["image_size"] = [size, size]
        image_processor["size"] = size
    write_json(out / "config.json", config)
    image_processor.pop("processor_class", None)
    write_json(
        out / "processor_config.json", {"image_processor": image_processor, "processor_class": "SiglipProcessor"}
    )
    shutil.copy(checkpoint / "spiece.model", out)
    return out


def make_wide_checkpoint(path: Path, *, identity: bool = False) -> Path:
    """Write a checkpoint with the 12 heads of all base models, exact GELU in both towers, and a narrow text tower.

    With ``identity`` the text tower is not narrow, and its projection changes nothing.
    """
    torch.manual_seed(5)
    sizes = {"intermediate_size": 80, "num_hidden_layers": 2, "hidden_act": "gelu"}
    vision = {"hidden_size": 48, "num_attention_heads": 12, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 48 if identity else 40, "num_attention_heads": 4, "projection_size": 48, "vocab_size": 300,
            "max_position_embeddings": 16}  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text | sizes, vision_config=vision | sizes))
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(path)
    save_randomized(model, path, "5GB")
    if identity:
        weights = weights_of(path)
        weights["text_model.head.weight"] = np.eye(48, dtype=np.float32)
        weights["text_model.head.bias"] = np.zeros(48, np.float32)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def make_wide_naflex_checkpoint(path: Path) -> Path:
    """Write a NaFlex checkpoint with the 12 heads of the base model, and bicubic images as in open_clip."""
    torch.manual_seed(6)
    sizes = {"intermediate_size": 80, "num_hidden_layers": 2, "hidden_size": 48}
    vision = {"num_attention_heads": 12, "num_patches": 16, "patch_size": 8}
    text = {"num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 16}
    model = Siglip2Model(Siglip2Config(text_config=text | sizes, vision_config=vision | sizes))
    Siglip2ImageProcessor(patch_size=8, max_num_patches=25, resample=3).save_pretrained(path)
    return save_randomized(model, path, "5GB")


OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 48,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
                       "timm_model_pretrained": False, "timm_proj": "none"},
        "text_cfg": {"context_length": 16, "vocab_size": 300, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
                     "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 40, "heads": 4, "layers": 2,
                     "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic",
                       "resize_mode": "squash"},
}  # fmt: skip
_OPEN_CLIP_NAMES = (
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"vision_model\.post_layernorm", "visual.trunk.norm"),
    (r"vision_model\.head\.attention\.out_proj", "visual.trunk.attn_pool.proj"),
    (r"vision_model\.head\.layernorm", "visual.trunk.attn_pool.norm"),
    (r"vision_model\.head\.mlp", "visual.trunk.attn_pool.mlp"),
    (r"text_model\.embeddings\.token_embedding", "text.token_embedding"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (r"text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"text_model\.final_layer_norm", "text.ln_final"),
    (r"text_model\.head", "text.text_projection"),
    (r"(visual\.\S+)layer_norm", r"\1norm"),
    (r"(visual\.trunk\.blocks\S+)self_attn\.out_proj", r"\1attn.proj"),
    (r"(text\.\S+)layer_norm(\d)", r"\1ln_\2"),
    (r"(text\.\S+)self_attn\.out_proj", r"\1attn.out_proj"),
    (r"(text\.\S+)fc1", r"\1c_fc"),
    (r"(text\.\S+)fc2", r"\1c_proj"),
)


def open_clip_weights(checkpoint: Path) -> Arrays:
    """Return the weights of ``checkpoint`` by the names of open_clip and timm."""
    weights, named = weights_of(checkpoint), {}
    for tower, old, new in (
        ("vision_model", "visual.trunk.blocks.{}.attn.qkv.{}", "self_attn"),
        ("text_model", "text.transformer.resblocks.{}.attn.in_proj_{}", "self_attn"),
    ):
        for number in range(2):
            for part in ("weight", "bias"):
                rows = [f"{tower}.encoder.layers.{number}.{new}.{name}_proj.{part}" for name in "qkv"]
                named[old.format(number, part)] = np.concatenate([weights.pop(name) for name in rows])
    head = "vision_model.head"
    named["visual.trunk.attn_pool.latent"] = weights.pop(f"{head}.probe")
    positions = weights.pop("vision_model.embeddings.position_embedding.weight")
    if weights["vision_model.embeddings.patch_embedding.weight"].ndim == 2:  # NaFlex
        side = round(len(positions) ** 0.5)
        named["visual.trunk.embeds.pos_embed"] = positions.reshape(1, side, side, -1)
        for part in ("weight", "bias"):
            patches = weights.pop(f"vision_model.embeddings.patch_embedding.{part}")
            named[f"visual.trunk.embeds.proj.{part}"] = patches
    else:
        named["visual.trunk.pos_embed"] = positions[np.newaxis]
    for part in ("weight", "bias"):
        rows = weights.pop(f"{head}.attention.in_proj_{part}")
        named[f"visual.trunk.attn_pool.q.{part}"], named[f"visual.trunk.attn_pool.kv.{part}"] = rows[:48], rows[48:]
    for name in ("logit_scale", "logit_bias"):
        named[name] = weights.pop(name).reshape(())
    for name, array in weights.items():
        renamed = name
        for pattern, replacement in _OPEN_CLIP_NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        named[renamed] = array
    return {name: np.ascontiguousarray(array) for name, array in named.items()}


def big_vision_arrays(checkpoint: Path, *, scan: bool) -> Arrays:
    """Return the weights of ``checkpoint`` as big_vision names and shapes them; ``scan`` stacks the layers."""
    weights = weights_of(checkpoint)
    config = read_json(checkpoint / "config.json")
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]
    arrays = {
        "img/embedding/kernel": kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0),
        "img/embedding/bias": weights["vision_model.embeddings.patch_embedding.bias"],
        "img/MAPHead_0/probe": weights["vision_model.head.probe"],
        "txt/Embed_0/embedding": weights["text_model.embeddings.token_embedding.weight"],
        "txt/pos_embedding": weights["text_model.embeddings.position_embedding.weight"][np.newaxis],
        "t": weights["logit_scale"],
        "b": weights["logit_bias"],
    }
    positions = weights["vision_model.embeddings.position_embedding.weight"]
    side = round(len(positions) ** 0.5)
    arrays["img/pos_embedding"] = positions.reshape(side, side, -1) if kernel.ndim == 2 else positions[np.newaxis]

    def linear(old: str, new: str) -> None:
        arrays[f"{new}/kernel"], arrays[f"{new}/bias"] = weights[f"{old}.weight"].T, weights[f"{old}.bias"]

    def norm(old: str, new: str) -> None:
        arrays[f"{new}/scale"], arrays[f"{new}/bias"] = weights[f"{old}.weight"], weights[f"{old}.bias"]

    def attention(rows: list[tuple[NDArray[Any], NDArray[Any]]], out: str, new: str, heads: int) -> None:
        dim = len(rows[0][1])
        for name, (weight, bias) in zip(("query", "key", "value"), rows, strict=True):
            arrays[f"{new}/{name}/kernel"] = weight.T.reshape(dim, heads, -1)
            arrays[f"{new}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{new}/out/kernel"] = weights[f"{out}.weight"].T.reshape(heads, -1, dim)
        arrays[f"{new}/out/bias"] = weights[f"{out}.bias"]

    for tower, old, new in (("vision", "vision_model", "img/Transformer"), ("text", "text_model", "txt/Encoder_0")):
        heads = config[f"{tower}_config"]["num_attention_heads"]
        for number in range(config[f"{tower}_config"]["num_hidden_layers"]):
            layer, block = f"{old}.encoder.layers.{number}", f"{new}/encoderblock_{number}"
            norm(f"{layer}.layer_norm1", f"{block}/LayerNorm_0")
            norm(f"{layer}.layer_norm2", f"{block}/LayerNorm_1")
            rows = [tuple(weights[f"{layer}.self_attn.{name}_proj.{part}"] for part in ("weight", "bias"))
                    for name in "qkv"]  # fmt: skip
            attention(rows, f"{layer}.self_attn.out_proj", f"{block}/MultiHeadDotProductAttention_0", heads)
            linear(f"{layer}.mlp.fc1", f"{block}/MlpBlock_0/Dense_0")
            linear(f"{layer}.mlp.fc2", f"{block}/MlpBlock_0/Dense_1")
    norm("vision_model.post_layernorm", "img/Transformer/encoder_norm")
    norm("text_model.final_layer_norm", "txt/Encoder_0/encoder_norm")
    head, pool = "vision_model.head", "img/MAPHead_0"
    joined = zip(
        *(np.split(weights[f"{head}.attention.in_proj_{part}"], 3) for part in ("weight", "bias")), strict=True
    )
    heads = config["vision_config"]["num_attention_heads"]
    attention(list(joined), f"{head}.attention.out_proj", f"{pool}/MultiHeadDotProductAttention_0", heads)
    norm(f"{head}.layernorm", f"{pool}/LayerNorm_0")
    linear(f"{head}.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0")
    linear(f"{head}.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1")
    linear("text_model.head", "txt/head")
    if scan:
        stacked = {re.sub(r"encoderblock_\d+", "encoderblock", name) for name in arrays if "encoderblock_" in name}
        for name in stacked:
            layers = sorted(key for key in arrays if re.sub(r"encoderblock_\d+", "encoderblock", key) == name)
            arrays[name] = np.stack([arrays.pop(key) for key in layers])
    return {f"params/{name}": array for name, array in arrays.items()}


@torch.no_grad()
def assert_embeddings_of(checkpoint: Path, bundle: Path, image: Image.Image) -> None:
    """Compare the fp32 embeddings of ``bundle`` with those of the PyTorch model of ``checkpoint``."""
    model = siglip_onnx.load(bundle, variant="fp32")
    reference = AutoModel.from_pretrained(checkpoint).eval()
    (inputs,) = model.preprocess([image])
    pixels = reference.get_image_features(torch.from_numpy(inputs["pixel_values"]))
    texts = reference.get_text_features(torch.from_numpy(model.tokenize(["a photo of a cat", "赤い丸"])))
    for features, embeddings in (
        (pixels, model.encode_images(image)),
        (texts, model.encode_texts(["a photo of a cat", "赤い丸"])),
    ):
        expected = torch.nn.functional.normalize(features).numpy()
        assert_allclose(embeddings, expected, atol=1e-5, rtol=0)
        assert np.abs(expected).max() > 0.05
