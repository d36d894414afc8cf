"""Give a checkpoint the activation outliers of real vision transformers without changing its answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def add_outliers(checkpoint: Path, out: Path, *, channels: int = 6, factor: float = 60.0, seed: int = 0) -> Path:
    """Write ``out``: in each layer some channels of every LayerNorm and of the values are ``factor`` times as large.

    The weights that read them are divided by it, so that the function stays the same, except for a quantizer.
    """
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name in weights if name.endswith("layer_norm1.weight")]:
        layer = name.removesuffix(".layer_norm1.weight")
        attention = [f"{layer}.self_attn.{projection}_proj" for projection in ("q", "k", "v")]
        grow(weights, f"{layer}.layer_norm1", attention, pick(weights, name, channels, generator), factor)
        grow(weights, f"{layer}.layer_norm2", [f"{layer}.mlp.fc1"], pick(weights, name, channels, generator), factor)
        output = [f"{layer}.self_attn.out_proj"]
        grow(weights, f"{layer}.self_attn.v_proj", output, pick(weights, name, channels, generator), factor)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def add_gelu_outliers(checkpoint: Path, out: Path, *, channels: int = 4, factor: float = 60.0, seed: int = 0) -> Path:
    """Write ``out``, another model: some channels after each GELU are large, and no weight before it can undo that."""
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name in weights if name.endswith(".mlp.fc1.weight")]:
        layer = name.removesuffix(".fc1.weight")
        chosen = torch.randperm(weights[name].shape[0], generator=generator)[:channels]
        weights[name][chosen] *= factor
        weights[f"{layer}.fc1.bias"][chosen] *= factor
        weights[f"{layer}.fc2.weight"][:, chosen] /= factor
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def pick(weights: Weights, name: str, channels: int, generator: torch.Generator) -> torch.Tensor:
    """Return random channels of a weight."""
    return torch.randperm(len(weights[name]), generator=generator)[:channels]


def grow(weights: Weights, producer: str, consumers: list[str], channels: torch.Tensor, factor: float) -> None:
    """Multiply the channels that one layer writes, and divide the weights that read them."""
    weights[f"{producer}.weight"][channels] *= factor
    weights[f"{producer}.bias"][channels] *= factor
    for consumer in consumers:
        weights[f"{consumer}.weight"][:, channels] /= factor
