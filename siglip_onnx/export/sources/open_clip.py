"""Checkpoints of open_clip, whose vision tower is a timm trunk, with open_clip's own GELU, filter and cleaning.

Sources: ``open_clip/model.py``, ``tokenizer.py`` and ``push_to_hf_hub.py`` of open_clip 3.3,
``timm/models/vision_transformer.py`` of timm 1.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config import (
    NAFLEX,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    RESAMPLE_FILTERS,
    SENTENCEPIECE,
    SIGLIP,
    TOKENIZER,
    read_document,
)
from ...errors import CheckpointError
from ..tokenizer import OPEN_CLIP_CLEANING, find_tokenizer
from .source import TWO_TOWERS, Json, Request, Source
from .tensor import Tensor, Tensors, identity_layer, join_rows, zeros
from .weight_files import TRANSFORMERS_FILES, find_weights, open_weights

_TRUNK, _TEXT = "visual.trunk.", "text."
_ANCHORS = (_TRUNK, "text.transformer.")
_BUFFERS = ("attn_mask",)  # not weights
_NUM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_TRUNK_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)(?:\..*)?")
_NAFLEX_TRUNK = re.compile(r"naflexvit_(base|so400m)_patch(\d+)_siglip(?:\..*)?")
_TANH_TRUNK = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt_patch16)|naflexvit_")
# Settings that the exported computation needs, and others that do not change it. A setting that is in neither is
# refused unless it is off.
_NEEDED: dict[str, Json] = {
    "vision_cfg": {"timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"no_causal_mask": True, "pool_type": "last"},
}
_HARMLESS = {
    "model_cfg": "embed_dim init_logit_bias init_logit_scale custom_text vision_cfg text_cfg",
    "vision_cfg": "image_size image_seq_len timm_model_name timm_model_pretrained timm_proj_bias timm_drop "
    "timm_drop_path patch_dropout",
    "text_cfg": "context_length vocab_size hf_tokenizer_name tokenizer_kwargs width heads layers mlp_ratio proj_bias "
    "proj_type norm_kwargs act_kwargs pad_id eos_id hf_model_pretrained hf_proj_type hf_pooler_type",
}


def open_open_clip(request: Request) -> Source:
    """Open a folder with ``open_clip_config.json``.

    Raises:
        CheckpointError: the folder is incomplete, or its model is not a SigLIP.
    """
    folder, path = request.path, request.path / OPEN_CLIP_CONFIG
    document = read_document(path)
    vision, text = _part(document, path, "model_cfg", "vision_cfg"), _part(document, path, "model_cfg", "text_cfg")
    trunk = _match_trunk(vision, text, path)
    for part, settings in (("model_cfg", document["model_cfg"]), ("vision_cfg", vision), ("text_cfg", text)):
        _check_settings(settings, part, path)
    weight_files = find_weights(folder, (*OPEN_CLIP_WEIGHTS, *TRANSFORMERS_FILES))
    tensors = open_weights(weight_files, request.opened).without_prefix(*_ANCHORS)
    config = _read_config(tensors, vision, text, trunk, path)
    named = Tensors(
        [
            *_vision_tensors(tensors, config["vision_config"]["num_hidden_layers"]),
            *_text_tensors(tensors, config["text_config"]["num_hidden_layers"]),
            *_head(tensors),
        ]
    )
    tensors.check_all_used(weight_files[0], _BUFFERS)
    cleaning = _read_cleaning(text, path)
    tokenizer = find_tokenizer(folder, (TOKENIZER, SENTENCEPIECE)) or request.tokenizer
    if tokenizer is None and request.needs_tokenizer():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}. Download that of {text.get('hf_tokenizer_name')!r}, which {path.name} "
            "names, and give it with --tokenizer FILE."
        )
    return Source(
        layout="open_clip",
        path=folder,
        config_path=path,
        config=config,
        preprocessor_path=path,
        preprocessor=_read_preprocessor(document, config["vision_config"], vision, path),
        tensors=named,
        weight_files=weight_files,
        tokenizer=tokenizer,
        cleaning=cleaning,
        facts={
            "layout": "open_clip",
            "timm_model_name": vision["timm_model_name"],
            "hidden_act": {tower: config[f"{tower}_config"]["hidden_act"] for tower in ("vision", "text")},
            "text_cleaning": f"{cleaning} of open_clip, without ftfy and html.unescape",
        },
    )


def _part(document: Json, path: Path, *keys: str) -> Json:
    part: Any = document
    for key in keys:
        part = part.get(key)
        if not isinstance(part, dict):
            raise CheckpointError(f"{path} has no object {'.'.join(keys)}, as open_clip writes it. Download it again.")
    return dict(part)


def _match_trunk(vision: Json, text: Json, path: Path) -> re.Match[str]:
    if text.get("hf_model_name"):
        raise CheckpointError(f"{path} has the text tower {text['hf_model_name']!r}, which is not that of SigLIP.")
    name = vision.get("timm_model_name")
    if not name:
        raise CheckpointError(
            f"{path} is of a CLIP model of open_clip: vision_cfg has no timm_model_name. {TWO_TOWERS} of SigLIP."
        )
    match = _TRUNK_NAME.fullmatch(str(name)) or _NAFLEX_TRUNK.fullmatch(str(name))
    if match is None:
        raise CheckpointError(
            f"{path} has the vision tower {name!r}; expected a trunk of SigLIP, such as 'vit_base_patch16_siglip_224' "
            "or 'naflexvit_base_patch16_siglip'. Export the checkpoint in the layout of transformers."
        )
    return match


def _check_settings(settings: Json, part: str, path: Path) -> None:
    needed, harmless = _NEEDED.get(part, {}), _HARMLESS[part].split()
    wrong = [key for key, value in needed.items() if settings.get(key) != value]
    wrong += [key for key, value in settings.items() if value and key not in needed and key not in harmless]
    if wrong:
        expected = needed.get(wrong[0], "no such setting")
        raise CheckpointError(
            f"{path} has {part}.{wrong[0]} {settings.get(wrong[0])!r}, expected {expected!r} as in open_clip's SigLIP "
            "models. Another value would change the embeddings."
        )


def _read_config(tensors: Tensors, vision: Json, text: Json, trunk: re.Match[str], path: Path) -> Json:
    """Return ``config.json``: sizes from the weights, the rest from open_clip's config and the trunk's name."""
    is_naflex = trunk.re is _NAFLEX_TRUNK
    if is_naflex:
        patch = tensors[f"{_TRUNK}embeds.proj.weight"].check_dimensions(2)
        grid = tensors[f"{_TRUNK}embeds.pos_embed"].check_dimensions(4).shape
        sizes: Json = {"patch_size": math.isqrt(patch.shape[1] // 3), "num_patches": grid[1] * grid[2]}
    else:
        patch = tensors[f"{_TRUNK}patch_embed.proj.weight"].check_dimensions(4)
        sizes = {"image_size": _image_size(vision), "patch_size": patch.shape[2]}
    tokens = tensors[f"{_TEXT}token_embedding.weight"].check_dimensions(2)
    text_norm, text_act = text.get("norm_kwargs") or {}, text.get("act_kwargs") or {}
    if not isinstance(text_norm, dict) or set(text_norm) - {"eps"} or not isinstance(text_act, dict) or (
        text_act not in ({}, {"approximate": "tanh"}, {"approximate": "none"})
    ):  # fmt: skip
        raise CheckpointError(f"{path} has norm_kwargs {text_norm!r} and act_kwargs {text_act!r}, which are unknown.")
    dim = patch.shape[0]
    return {
        "architectures": ["Siglip2Model" if is_naflex else "SiglipModel"],
        "model_type": NAFLEX if is_naflex else SIGLIP,
        "vision_config": {
            "hidden_size": dim,
            "intermediate_size": tensors[f"{_TRUNK}blocks.0.mlp.fc1.weight"].check_dimensions(2).shape[0],
            "num_hidden_layers": _count_layers(tensors, f"{_TRUNK}blocks."),
            "num_attention_heads": _NUM_HEADS[trunk[1]],
            "hidden_act": "gelu_pytorch_tanh" if _TANH_TRUNK.match(trunk[0]) else "gelu",
            "layer_norm_eps": 1e-6,
            **sizes,
        },
        "text_config": {
            "hidden_size": tokens.shape[1],
            "intermediate_size": tensors[f"{_TEXT}transformer.resblocks.0.mlp.c_fc.weight"]
            .check_dimensions(2)
            .shape[0],
            "num_hidden_layers": _count_layers(tensors, f"{_TEXT}transformer.resblocks."),
            "num_attention_heads": text.get("heads", 8),
            "hidden_act": "gelu_pytorch_tanh" if text_act.get("approximate") == "tanh" else "gelu",
            "layer_norm_eps": text_norm.get("eps", 1e-5),
            "vocab_size": tokens.shape[0],
            "max_position_embeddings": tensors[f"{_TEXT}positional_embedding"].check_dimensions(2).shape[0],
            "projection_size": dim,
        },
    }


def _image_size(vision: Json) -> Any:
    size = vision.get("image_size")
    return size[0] if isinstance(size, list) and len(set(map(str, size))) == 1 else size


def _count_layers(tensors: Tensors, prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def _read_cleaning(text: Json, path: Path) -> str:
    options = text.get("tokenizer_kwargs") or {}
    cleaning = options.get("clean", "whitespace") if isinstance(options, dict) else None
    if not isinstance(cleaning, str) or cleaning not in OPEN_CLIP_CLEANING or set(options) - {"clean"}:
        raise CheckpointError(
            f"{path} has tokenizer_kwargs {options!r}, expected only 'clean', one of {', '.join(OPEN_CLIP_CLEANING)}."
        )
    return cleaning


def _read_preprocessor(document: Json, config: Json, vision: Json, path: Path) -> Json:
    """Return ``preprocessor_config.json``: open_clip's own filter and levels.

    The whole image is squashed; that of a NaFlex model is resized to whole patches, as by timm's ``ResizeToSequence``.
    """
    settings = _part(document, path, "preprocess_cfg")
    if settings.get("resize_mode") != "squash":
        raise CheckpointError(
            f"{path} has resize_mode {settings.get('resize_mode')!r}; images are squashed, never cropped or padded, so "
            "that 'squash' is expected."
        )
    filters = {name: number for number, name in RESAMPLE_FILTERS.items()}
    if str(settings.get("interpolation")) not in filters:
        raise CheckpointError(
            f"{path} has interpolation {settings.get('interpolation')!r}, expected one of {', '.join(filters)}."
        )
    if "num_patches" in config:
        side = _image_size(vision)
        length = vision.get("image_seq_len")
        if length is None and isinstance(side, int):
            length = (side // config["patch_size"]) ** 2
        size: Json = {"patch_size": config["patch_size"], "max_num_patches": length}
    else:
        size = {"size": {"height": config["image_size"], "width": config["image_size"]}}
    return {
        "image_processor_type": "Siglip2ImageProcessor" if "num_patches" in config else "SiglipImageProcessor",
        "do_resize": True,
        **size,
        "resample": filters[str(settings["interpolation"])],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": settings.get("mean"),
        "image_std": settings.get("std"),
    }


def _vision_tensors(tensors: Tensors, layers: int) -> Iterator[tuple[str, Tensor]]:
    old, new = _TRUNK, "vision_model"
    if f"{old}embeds.proj.weight" in tensors:  # NaFlex: a linear layer, and a grid of positions
        positions = tensors[f"{old}embeds.pos_embed"].check_dimensions(4)
        yield f"{new}.embeddings.position_embedding.weight", positions.reshape(-1, positions.shape[-1])
        yield from _both(tensors, f"{old}embeds.proj", f"{new}.embeddings.patch_embedding")
    else:
        yield f"{new}.embeddings.position_embedding.weight", tensors[f"{old}pos_embed"].row(0)
        yield from _both(tensors, f"{old}patch_embed.proj", f"{new}.embeddings.patch_embedding")
    for number in range(layers):
        block, layer = f"{old}blocks.{number}", f"{new}.encoder.layers.{number}"
        yield from _both(tensors, f"{block}.norm1", f"{layer}.layer_norm1")
        yield from _both(tensors, f"{block}.norm2", f"{layer}.layer_norm2")
        for part in ("weight", "bias"):
            yield from _split(tensors[f"{block}.attn.qkv.{part}"], f"{layer}.self_attn", part)
        yield from _both(tensors, f"{block}.attn.proj", f"{layer}.self_attn.out_proj")
        for linear in ("fc1", "fc2"):
            yield from _both(tensors, f"{block}.mlp.{linear}", f"{layer}.mlp.{linear}")
    yield from _both(tensors, f"{old}norm", f"{new}.post_layernorm")
    pool, head = f"{old}attn_pool", f"{new}.head"
    yield f"{head}.probe", tensors[f"{pool}.latent"]
    for part in ("weight", "bias"):
        rows = [tensors[f"{pool}.{name}.{part}"] for name in ("q", "kv")]
        yield f"{head}.attention.in_proj_{part}", join_rows(rows)
    yield from _both(tensors, f"{pool}.proj", f"{head}.attention.out_proj")
    yield from _both(tensors, f"{pool}.norm", f"{head}.layernorm")
    for linear in ("fc1", "fc2"):
        yield from _both(tensors, f"{pool}.mlp.{linear}", f"{head}.mlp.{linear}")


def _text_tensors(tensors: Tensors, layers: int) -> Iterator[tuple[str, Tensor]]:
    old, new = _TEXT, "text_model"
    tokens = tensors[f"{old}token_embedding.weight"]
    yield f"{new}.embeddings.token_embedding.weight", tokens
    yield f"{new}.embeddings.position_embedding.weight", tensors[f"{old}positional_embedding"]
    for number in range(layers):
        block, layer = f"{old}transformer.resblocks.{number}", f"{new}.encoder.layers.{number}"
        yield from _both(tensors, f"{block}.ln_1", f"{layer}.layer_norm1")
        yield from _both(tensors, f"{block}.ln_2", f"{layer}.layer_norm2")
        for part in ("weight", "bias"):
            yield from _split(tensors[f"{block}.attn.in_proj_{part}"], f"{layer}.self_attn", part)
        yield from _both(tensors, f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
        yield from _both(tensors, f"{block}.mlp.c_fc", f"{layer}.mlp.fc1")
        yield from _both(tensors, f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")
    yield from _both(tensors, f"{old}ln_final", f"{new}.final_layer_norm")
    if f"{old}text_projection.weight" in tensors:
        yield from _both(tensors, f"{old}text_projection", f"{new}.head")
    elif f"{old}text_projection" in tensors:  # proj_bias: false
        projection = tensors[f"{old}text_projection"].transpose()
        yield f"{new}.head.weight", projection
        yield f"{new}.head.bias", zeros(projection.name, projection.shape[0])
    else:  # proj_type: none
        yield from identity_layer(f"{new}.head", tokens.shape[1])


def _head(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    for name in ("logit_scale", "logit_bias"):
        yield name, tensors[name].reshape(1)


def _both(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    for part in ("weight", "bias"):
        yield f"{new}.{part}", tensors[f"{old}.{part}"]


def _split(tensor: Tensor, layer: str, part: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the projections that are stored below each other."""
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        yield f"{layer}.{name}.{part}", tensor.part(number, 3)
