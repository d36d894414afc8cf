"""SigLIP as two ONNX graphs, to be read beside ``modeling_siglip.py`` of transformers 4.57."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..bundle.manifest import FEATURES, LOGITS, POOLED
from ..config import TEXT, VISION, NaflexVisionConfig, SiglipConfig, TextConfig, VisionConfig
from .checkpoint import Weights
from .graph import GraphBuilder, graph_input

Floats = NDArray[np.float32]


def build_towers(
    weights: Weights, config: SiglipConfig, vision_outputs: Collection[str] = (POOLED,)
) -> dict[str, ir.Model]:
    """Return the towers in fp32, ``vision`` and ``text``; ``vision_outputs`` are those of :func:`pool`."""
    towers = {}
    if isinstance(config.vision, NaflexVisionConfig):
        towers[VISION] = naflex_vision_tower(weights, config.vision, vision_outputs)
    elif config.vision is not None:
        towers[VISION] = vision_tower(weights, config.vision, vision_outputs)
    if config.text is not None:
        towers[TEXT] = text_tower(weights, config.text)
    return towers


def vision_tower(weights: Weights, config: VisionConfig, outputs: Collection[str]) -> ir.Model:
    """``pixel_values`` f32 ``(N, 3, S, S)`` to the outputs of :func:`pool`: ``SiglipVisionTransformer``."""
    graph = GraphBuilder(weights, config.layer_norm_eps, config.hidden_act)
    size = config.image_size
    pixel_values = graph_input("pixel_values", ir.DataType.FLOAT, ["batch", config.num_channels, size, size])
    x = patch_embeddings(graph, pixel_values, config)
    for number in range(config.num_hidden_layers):
        x = encoder_layer(graph, x, f"vision_model.encoder.layers.{number}", config.num_attention_heads)
    x = graph.layer_norm(x, "vision_model.post_layernorm")
    return graph.build("vision_model", [pixel_values], pool(graph, x, weights, config, outputs))


def naflex_vision_tower(weights: Weights, config: NaflexVisionConfig, outputs: Collection[str]) -> ir.Model:
    """Patches of an image of any size to the outputs of :func:`pool`: ``Siglip2VisionTransformer``.

    ``pixel_values`` f32 ``(N, P, patch)``, ``pixel_attention_mask`` i32 ``(N, P)`` with 0 for padding, and
    ``position_embeddings`` f32 ``(N, P, D)``, already resized to each image's grid: no ONNX operator resizes
    exactly as PyTorch does.
    """
    graph = GraphBuilder(weights, config.layer_norm_eps, config.hidden_act)
    patch = config.num_channels * config.patch_size**2
    pixel_values = graph_input("pixel_values", ir.DataType.FLOAT, ["batch", "patches", patch])
    mask = graph_input("pixel_attention_mask", ir.DataType.INT32, ["batch", "patches"])
    positions = graph_input("position_embeddings", ir.DataType.FLOAT, ["batch", "patches", config.hidden_size])
    x = graph.add(graph.linear(pixel_values, "vision_model.embeddings.patch_embedding"), positions)
    for number in range(config.num_hidden_layers):
        x = encoder_layer(graph, x, f"vision_model.encoder.layers.{number}", config.num_attention_heads, mask=mask)
    x = graph.layer_norm(x, "vision_model.post_layernorm")
    inputs = [pixel_values, mask, positions]
    return graph.build("vision_model", inputs, pool(graph, x, weights, config, outputs, mask=mask))


def text_tower(weights: Weights, config: TextConfig) -> ir.Model:
    """``input_ids`` i64 ``(M, T)`` to ``pooler_output`` f32 ``(M, D)``: ``SiglipTextTransformer``.

    Only the last position is pooled, so the last layer computes only that one.
    """
    graph = GraphBuilder(weights, config.layer_norm_eps, config.hidden_act)
    input_ids = graph_input("input_ids", ir.DataType.INT64, ["batch", config.max_position_embeddings])
    tokens = graph.op("Gather", graph.table("text_model.embeddings.token_embedding.weight"), input_ids)
    x = graph.add(tokens, graph.weight("text_model.embeddings.position_embedding.weight"))
    *layers, last_layer = [f"text_model.encoder.layers.{number}" for number in range(config.num_hidden_layers)]
    for layer in layers:
        x = encoder_layer(graph, x, layer, config.num_attention_heads)
    x = encoder_layer(graph, x, last_layer, config.num_attention_heads, last_position_only=True)
    x = graph.layer_norm(x, "text_model.final_layer_norm")
    pooled = graph.op("Squeeze", x, graph.constant([1], "pooled_axis"))
    return graph.build("text_model", [input_ids], {POOLED: graph.linear(pooled, "text_model.head")})


def patch_embeddings(graph: GraphBuilder, pixel_values: ir.Value, config: VisionConfig) -> ir.Value:
    """Cut into patches, embed each, add its position: ``(N, P, D)``."""
    layer, patch = "vision_model.embeddings", [config.patch_size, config.patch_size]
    weight, bias = graph.weight(f"{layer}.patch_embedding.weight"), graph.weight(f"{layer}.patch_embedding.bias")
    grid = graph.op("Conv", pixel_values, weight, bias, kernel_shape=patch, strides=patch)
    rows = graph.op("Reshape", grid, graph.constant([0, config.hidden_size, -1], "patch_rows"))
    patches = graph.op("Transpose", rows, perm=[0, 2, 1])
    return graph.add(patches, graph.weight(f"{layer}.position_embedding.weight"))


def encoder_layer(
    graph: GraphBuilder,
    x: ir.Value,
    layer: str,
    num_heads: int,
    *,
    mask: ir.Value | None = None,
    last_position_only: bool = False,
) -> ir.Value:
    """One pre-norm transformer layer; with ``last_position_only`` it returns only that row, ``(N, 1, D)``."""
    normed = graph.layer_norm(x, f"{layer}.layer_norm1")
    queries_from = normed
    if last_position_only:
        x, queries_from = last_position(graph, x), last_position(graph, normed)
    x = graph.add(x, self_attention(graph, queries_from, normed, f"{layer}.self_attn", num_heads, mask))
    x = graph.add(x, mlp(graph, graph.layer_norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp"))
    x.name = layer  # shown by tools that display graphs
    return x


def self_attention(
    graph: GraphBuilder, queries_from: ir.Value, keys_from: ir.Value, layer: str, num_heads: int, mask: ir.Value | None
) -> ir.Value:
    """Attention of the positions ``queries_from`` to the positions ``keys_from``, in most layers the same ones."""
    query = graph.linear(queries_from, f"{layer}.q_proj")
    key, value = graph.linear(keys_from, f"{layer}.k_proj"), graph.linear(keys_from, f"{layer}.v_proj")
    return graph.linear(graph.attention(query, key, value, num_heads, mask), f"{layer}.out_proj")


def mlp(graph: GraphBuilder, x: ir.Value, layer: str) -> ir.Value:
    """Two linear layers with a GELU between them."""
    return graph.linear(graph.gelu(graph.linear(x, f"{layer}.fc1")), f"{layer}.fc2")


def last_position(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """``(N, T, D)`` to ``(N, 1, D)``."""
    return graph.op("Gather", x, graph.constant([-1], "last_position"), axis=1)


def pool(
    graph: GraphBuilder,
    x: ir.Value,
    weights: Weights,
    config: VisionConfig | NaflexVisionConfig,
    outputs: Collection[str],
    *,
    mask: ir.Value | None = None,
) -> dict[str, ir.Value]:
    """Return outputs by name from the last layer's patches ``(N, P, D)``, which are ``last_hidden_state`` themselves.

    With ``logits`` f32 ``(N, M)``, those of ``SiglipForImageClassification`` or ``Siglip2ForImageClassification``,
    ``pooler_output`` is the mean over patches that they are computed from; without, it is that of the MAP head.
    """
    named = {}
    if LOGITS in outputs:
        named[POOLED] = mean_of_patches(graph, x, mask)
        named[LOGITS] = graph.linear(named[POOLED], "classifier")
    elif POOLED in outputs:
        named[POOLED] = map_head(graph, x, weights, config, mask=mask)
    return named | ({FEATURES: x} if FEATURES in outputs else {})


def mean_of_patches(graph: GraphBuilder, x: ir.Value, mask: ir.Value | None) -> ir.Value:
    """``(N, P, D)`` to ``(N, D)``; patches whose ``mask`` ``(N, P)`` is 0 do not count."""
    axis = graph.constant([1], "patches_axis")
    if mask is None:
        return graph.op("ReduceMean", x, axis, keepdims=0)
    seen = graph.op("Unsqueeze", graph.op("Cast", mask, to=ir.DataType.FLOAT), axis)
    shares = graph.op("Div", seen, graph.op("ReduceSum", seen, graph.constant([2], "seen_axis"), keepdims=1))
    return graph.op("Squeeze", graph.matmul(shares, x), axis)


def map_head(
    graph: GraphBuilder,
    x: ir.Value,
    weights: Weights,
    config: VisionConfig | NaflexVisionConfig,
    *,
    mask: ir.Value | None = None,
) -> ir.Value:
    """Attention pooling by a learned probe, ``(N, P, D)`` to ``(N, D)``: ``SiglipMultiheadAttentionPoolingHead``.

    The probe's query is the same for every image, so it is multiplied into the key projection at export. Values are
    projected after averaging, which leaves one row per head to project instead of ``P``. The key bias is omitted: it
    would shift all scores of a head by the same amount, which softmax ignores.
    """
    layer, dim, num_heads = "vision_model.head", config.hidden_size, config.num_attention_heads
    head_dim = dim // num_heads
    scores = graph.matmul(x, graph.constant(fold_probe(weights, layer, num_heads), f"{layer}.probe_key"))
    scores = graph.op("Transpose", scores, perm=[0, 2, 1])
    if mask is not None:
        scores = hide_padding(graph, scores, mask)
    shares = graph.op("Softmax", scores, axis=-1)
    averages = graph.op("Unsqueeze", graph.matmul(shares, x), graph.constant([2], f"{layer}.per_head_axis"))

    def value_per_head(in_proj: Floats) -> Floats:
        return in_proj[2 * dim :].reshape(num_heads, head_dim, dim).transpose(0, 2, 1)

    values = graph.matmul(averages, graph.weight(f"{layer}.attention.in_proj_weight", value_per_head))
    heads = graph.op("Reshape", values, graph.constant([0, dim], f"{layer}.join_heads"))
    bias = graph.weight(f"{layer}.attention.in_proj_bias", lambda in_proj: in_proj[2 * dim :])
    x = graph.linear(graph.add(heads, bias), f"{layer}.attention.out_proj")
    return graph.add(x, mlp(graph, graph.layer_norm(x, f"{layer}.layernorm"), f"{layer}.mlp"))


def hide_padding(graph: GraphBuilder, scores: ir.Value, mask: ir.Value) -> ir.Value:
    """Set scores ``(N, H, P)`` to the lowest value where ``mask`` ``(N, P)`` is 0."""
    seen = graph.op("Unsqueeze", graph.op("Cast", mask, to=ir.DataType.BOOL), graph.constant([1], "heads_axis"))
    lowest = graph.constant(np.array(np.finfo(np.float32).min, np.float32), "hidden_score")
    return graph.op("Where", seen, scores, lowest)


def fold_probe(weights: Weights, layer: str, num_heads: int) -> Floats:
    """Return the key projection times the scaled query of the probe, ``(D, H)``: from a patch to a score per head."""
    probe = weights[f"{layer}.probe"].reshape(-1).astype(np.float64)
    weight = weights[f"{layer}.attention.in_proj_weight"].astype(np.float64)
    bias = weights[f"{layer}.attention.in_proj_bias"].astype(np.float64)
    dim = probe.size
    query = (weight[:dim] @ probe + bias[:dim]).reshape(num_heads, -1)
    key = weight[dim : 2 * dim].reshape(num_heads, -1, dim)
    folded: Floats = np.einsum("hk,hkd->dh", query / np.sqrt(query.shape[1]), key).astype(np.float32)
    return folded
