"""LoRA, rsLoRA and DoRA adapters of PEFT, merged into the checkpoint they were trained on.

The result is that of ``merge_and_unload``. Before the merge PEFT ignores an adapter of the MAP head's ``out_proj``,
whose weight PyTorch's attention reads directly; training therefore leaves that adapter at zero.

Source: ``tuners/lora/`` and ``utils/save_and_load.py`` of peft 0.21.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import PREPROCESSOR_CONFIG, TOWERS, find_preprocessor_document, read_document
from ...errors import CheckpointError
from ...layouts import ADAPTER_CONFIG
from ...system.names import check_name
from ..tokenizer import find_tokenizer
from .hugging_face import copied_file
from .source import Json, Request, Source
from .tensor import Tensor, Tensors
from .weight_files import find_weights, open_weights

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX, _TOWERS = "base_model.model.", {tower: f"{tower}_model." for tower in TOWERS}
# Other settings than these are refused if they are on: they change what the weights mean.
_KNOWN = frozenset(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying eva_config exclude_modules
    inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_bias lora_dropout megatron_core
    modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules
    task_type use_dora use_rslora
    """.split()  # noqa: SIM905 - shorter than a list
)
_PLAIN_INITS = (
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # others, for example PiSSA, also change the base's weights
_MAX_PATTERNS = 10_000  # more than the layers of a model
_LITERAL = re.compile(r"\^?[\w.]+")
_PARTS = re.compile(
    r"(.+)\.(lora_(?:A|B)\.weight|lora_embedding_(?:A|B)|lora_B\.bias|lora_magnitude_vector)(?:\.weight)?"
)


def open_peft(request: Request, open_base: Callable[[Request], Source]) -> Source:
    """Open an adapter's folder and merge it into its base, which ``open_base`` opens.

    Raises:
        CheckpointError: the base is not given, is another one, or the adapter is of an unsupported kind.
    """
    path = request.path / ADAPTER_CONFIG
    settings = read_document(path)
    _check_settings(settings, path)
    base_path = _find_base(request, settings)
    weight_files = find_weights(request.path, ADAPTER_WEIGHTS)
    adapter = open_weights(weight_files, request.opened)
    adapter = Tensors({name.removeprefix(_PREFIX): tensor for name, tensor in adapter.items()})
    tokenizer = request.path if find_tokenizer(request.path) else None
    base = open_base(replace(request, path=base_path, base=None, tokenizer=request.tokenizer or tokenizer))
    base = _with_own_settings(base, tokenizer, request)
    return replace(
        base,
        layout="peft",
        path=request.path,
        tensors=_merge(base.tensors, adapter, settings, path, _find_prefixes(adapter, base.kind, settings)),
        weight_files=(*base.weight_files, *weight_files),
        facts={
            "layout": "peft",
            "base": base_path.resolve().name,
            **{f"base_{key}": value for key, value in base.facts.items()},
        },
    )


def _with_own_settings(base: Source, tokenizer: Path | None, request: Request) -> Source:
    """Return the base with the settings of images and the tokenizer that were saved with the adapter."""
    names = []
    found = find_preprocessor_document(request.path)
    if found and base.preprocessor:
        path, document = found
        files = {name: content for name, content in base.files.items() if name != PREPROCESSOR_CONFIG}
        files |= copied_file(path, document)
        base = replace(base, preprocessor_path=path, preprocessor=document, files=files)
        names.append(path.name)
    if tokenizer and base.tokenizer:
        base = replace(base, tokenizer=tokenizer, cleaning=None)
        names.append("the tokenizer")
    if names:
        request.report(f"Using {' and '.join(names)} of {request.path}, not of its base")
    return base


def _check_settings(settings: Json, path: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} is of peft_type {settings.get('peft_type')!r}, expected 'LORA'. Merge the adapter with PEFT and "
            "export the result."
        )
    unknown = sorted(key for key, value in settings.items() if value and key not in _KNOWN)
    if settings.get("init_lora_weights", True) not in _PLAIN_INITS:
        unknown.append(f"init_lora_weights {settings['init_lora_weights']!r}")
    if unknown:
        raise CheckpointError(
            f"{path} has {', '.join(unknown)}, which may change what the adapter's weights mean. Merge it with PEFT "
            "(merge_and_unload) and export the result."
        )


def _find_base(request: Request, settings: Json) -> Path:
    """Return the base that the user gave, or the folder next to the adapter that the adapter names."""
    name = str(settings.get("base_model_name_or_path") or "")
    if request.base is None:
        home = request.path.resolve().parent
        for candidate in (name, name.replace("\\", "/").rstrip("/").rpartition("/")[2]):
            try:
                check_name(candidate)
            except ValueError:
                continue
            if (home / candidate).is_dir() and not (home / candidate / ADAPTER_CONFIG).exists():
                return home / candidate
        raise CheckpointError(
            f"{request.path} holds a LoRA adapter without its base, {name!r}. Download that checkpoint and give its "
            "folder with --base FOLDER."
        )
    if not request.base.is_dir() or (request.base / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{request.base} is not the folder of a checkpoint. Give that of {name!r} with --base.")
    return request.base


def _find_prefixes(adapter: Tensors, kind: str, settings: Json) -> tuple[str, str]:
    """Return what the adapter's names begin with, and what those of the base have in its place.

    They may begin with ``model.``, for example. transformers 5 names the layers of a single tower without the tower.
    """
    for anchor in _TOWERS.values():
        for name in adapter:
            prefix, found, _ = name.partition(anchor)
            if found and (not prefix or prefix.endswith(".")):
                return prefix, ""
    mapping = settings.get("auto_mapping")
    class_name = str(mapping.get("base_model_class") if isinstance(mapping, dict) else None)
    return "", next((anchor for tower, anchor in _TOWERS.items() if tower == kind or tower.title() in class_name), "")


def _merge(
    base: Tensors, adapter: Tensors, settings: Json, path: Path, prefixes: tuple[str, str] = ("", "")
) -> Tensors:
    """Return the weights of the base, those that the adapter changes merged when they are read."""
    if not adapter:
        raise CheckpointError(f"{path} has no tensors, so it would change nothing. Download the adapter again.")
    _check_patterns(settings, path)
    old, new = prefixes
    merged, layers = Tensors(base), dict[str, dict[str, Tensor]]()
    for name, tensor in adapter.items():
        if match := _PARTS.fullmatch(name):
            layers.setdefault(match[1], {})[match[2].removesuffix(".weight")] = tensor
        else:  # saved whole: a bias, or a module of modules_to_save
            target = new + name.replace(".base_layer.", ".").removeprefix(old)
            _check_shape(base, target, tensor.shape, path)
            merged[target] = tensor
    for name, parts in layers.items():
        layer, alpha = new + name.removeprefix(old), _alpha(settings, name, path)
        _check_shape(base, f"{layer}.weight", None, path)
        weight = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = _merge_weight(weight, parts, alpha, settings, path)
        if "lora_B.bias" in parts:
            if "lora_A" not in parts:
                raise CheckpointError(f"{path} has lora_B.bias of {layer!r} without lora_A. Download it again.")
            bias, added = merged[f"{layer}.bias"], parts["lora_B.bias"]
            _check_shape(base, f"{layer}.bias", added.shape, path)
            merged[f"{layer}.bias"] = bias.change(
                bias.shape, _adding(added, _scale(alpha, parts["lora_A"].shape[0], settings))
            )
    return merged


def _check_shape(base: Tensors, name: str, shape: tuple[int, ...] | None, path: Path) -> None:
    if name not in base:
        if name.startswith("classifier."):
            raise CheckpointError(
                f"{path} has a classifier, but neither it nor its base has the labels. Merge the adapter with PEFT "
                "(merge_and_unload), save the result with its labels (id2label), and export that."
            )
        raise CheckpointError(
            f"{path} changes {name!r}, which its base does not have. If it was trained on another one, give that with "
            "--base; otherwise merge it with PEFT (merge_and_unload) and export the result."
        )
    if shape is not None and base[name].shape != shape:
        raise _other_base(name, base[name].shape, shape, path)


def _other_base(name: str, shape: tuple[int, ...], adapter: object, path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was trained on another base: {name!r} has shape {shape} there, but the adapter's has {adapter}. Give "
        "the right one with --base."
    )


def _merge_weight(weight: Tensor, parts: Mapping[str, Tensor], alpha: float, settings: Json, path: Path) -> Tensor:
    """Return the weight plus the scaled product of the two low-rank matrices, for DoRA with rows of given lengths."""
    is_embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    if not set(names) <= parts.keys():
        raise CheckpointError(f"{path} lacks one of the two matrices for {weight.name!r}. Download the adapter again.")
    first, second = (parts[name] for name in names)
    rank = first.shape[0] if first.shape else 0
    size_in, size_out = (math.prod(first.shape[1:]), second.shape[0] if second.shape else 0)
    rows, columns = (weight.shape[0], math.prod(weight.shape[1:])) if weight.shape else (0, 0)
    sizes = (size_in, size_out) if is_embedding else (size_out, size_in)
    if not rank or sizes != (rows, columns) or math.prod(second.shape) != size_out * rank:
        raise _other_base(weight.name, weight.shape, (first.shape, second.shape), path)
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None and (is_embedding or math.prod(magnitude.shape) != rows):
        raise CheckpointError(
            f"{path} has a DoRA magnitude of shape {magnitude.shape} for {weight.name!r} of {rows} rows."
        )
    if (magnitude is None) == bool(settings.get("use_dora")):
        raise CheckpointError(
            f"{path} has use_dora {settings.get('use_dora')!r}, but its weights are of the other kind."
        )
    scale = _scale(alpha, rank, settings)

    def change(old: NDArray[Any]) -> NDArray[Any]:
        product = _float(second).reshape(size_out, rank) @ _float(first).reshape(rank, size_in) * np.float32(scale)
        new = old.astype(np.float32).reshape(rows, columns) + (product.T if is_embedding else product)
        if magnitude is not None:
            new *= _float(magnitude).reshape(-1, 1) / np.linalg.norm(new, axis=1, keepdims=True)
        return new.reshape(weight.shape)

    return weight.change(weight.shape, change)


def _check_patterns(settings: Json, path: Path) -> None:
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_LITERAL.fullmatch(pattern) for pattern in patterns):
        raise CheckpointError(f"{path} has an alpha_pattern {patterns!r:.200}, expected the ends of layers' names.")
    if len(patterns) > _MAX_PATTERNS:
        raise CheckpointError(
            f"{path} has an alpha_pattern of {len(patterns):,} names, expected at most {_MAX_PATTERNS:,}."
        )


def _alpha(settings: Json, layer: str, path: Path) -> float:
    """Return a layer's ``lora_alpha``: that of the first pattern that its name ends with, or the general one."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if f".{layer}".endswith(f".{pattern}") or pattern == f"^{layer}":
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
        raise CheckpointError(f"{path} has lora_alpha {alpha!r}, expected a number.")
    return float(alpha)


def _scale(alpha: float, rank: int, settings: Json) -> float:
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adding(added: Tensor, scale: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda bias: bias.astype(np.float32) + np.float32(scale) * _float(added)


def _float(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.read(), np.float32)
