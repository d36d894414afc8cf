"""Write a checkpoint of the demo model from the fp32 graphs of its bundle; the original checkpoint was not kept.

    python scripts/recover_demo.py CHECKPOINT

It can be exported again, and the loss of trained weights in each variant can be measured without training:
``benchmarks/accuracy.py SET --checkpoint CHECKPOINT``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.config import TOKENIZER
from siglip_onnx.demo import BUNDLE_PATH as DEMO_PATH

Floats = NDArray[np.float32]
_TOKENS, _POSITIONS = "token_embedding.weight", "position_embedding.weight"
_HEAD = "vision_model.head"


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the checkpoint."""
    bundle = open_bundle(DEMO_PATH)
    weights: dict[str, Floats] = {}
    for name in bundle.manifest.variants["fp32"].files:
        if name.endswith(".onnx"):
            weights |= read_weights(bundle.path / name)
    weights |= unfold_probe(weights.pop(f"{_HEAD}.probe_key"), weights)
    weights |= {name: as_parameter(value) for name, value in bundle.manifest.head.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json", TOKENIZER):
        shutil.copyfile(bundle.path / name, out / name)


def read_weights(path: Path) -> dict[str, Floats]:
    """Return the weights of a tower's fp32 graph, named and laid out as in a checkpoint."""
    weights = {}
    for name, value in ir.load(path).graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            array = value.const_value.numpy()
            weights[str(name)] = np.ascontiguousarray(array.T if is_transposed(str(name), array) else array)
    return weights


def is_transposed(name: str, array: NDArray[Any]) -> bool:
    """Say whether a graph has a weight as (in, out), and a checkpoint as (out, in)."""
    return name.endswith(".weight") and array.ndim == 2 and not name.endswith((_TOKENS, _POSITIONS))


def unfold_probe(probe_key: Floats, weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the MAP head's parameters that give the same scores and values as the folded ones of the graph.

    ``probe_key`` is f32 ``(D, H)``. Of the many projections that it may come from, the one is taken whose queries are
    the bias alone: ``sqrt(D / H)`` in the first place of each head, and 0 elsewhere.
    """
    dim, num_heads = probe_key.shape
    head_dim = dim // num_heads
    query_bias, key = np.zeros((num_heads, head_dim), np.float32), np.zeros((num_heads, head_dim, dim), np.float32)
    query_bias[:, 0], key[:, 0] = np.sqrt(head_dim), probe_key.T
    value = weights[f"{_HEAD}.attention.in_proj_weight"].transpose(0, 2, 1).reshape(dim, dim)
    value_bias = weights[f"{_HEAD}.attention.in_proj_bias"]
    biases = np.concatenate([query_bias.reshape(-1), np.zeros_like(value_bias), value_bias])
    nothing = np.zeros((dim, dim), np.float32)
    return {
        f"{_HEAD}.probe": np.zeros((1, 1, dim), np.float32),
        f"{_HEAD}.attention.in_proj_weight": np.concatenate([nothing, key.reshape(dim, dim), value]),
        f"{_HEAD}.attention.in_proj_bias": biases,
    }


def as_parameter(value: float) -> Floats:
    """Return one of the head's two numbers as checkpoints have them."""
    return np.array([value], np.float32)


if __name__ == "__main__":
    main()
