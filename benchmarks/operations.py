"""Count the operations of the towers for one input.

A multiply-add counts as two operations. Only necessary operations are counted: the text tower pools the last position,
so its last layer needs only that one.
"""

from __future__ import annotations

from collections.abc import Mapping

from siglip_onnx.config import EncoderConfig, NaflexVisionConfig, SiglipConfig


def count_operations(config: SiglipConfig) -> Mapping[str, dict[str, float]]:
    """Return the operations of each tower for one input: linear layers, and all other multiplications."""
    vision, text = config.both()
    side = 0 if isinstance(vision, NaflexVisionConfig) else vision.image_size // vision.patch_size
    patches = vision.num_patches if isinstance(vision, NaflexVisionConfig) else side**2
    width, length = vision.hidden_size, text.max_position_embeddings
    layers = vision.num_hidden_layers
    linear, other = layers * layer_linear(vision, patches, patches), layers * attention(vision, patches, patches)
    linear += layer_linear(vision, 1, patches)  # the MAP head is a layer with one query
    other += attention(vision, 1, patches) + 2.0 * patches * vision.num_channels * vision.patch_size**2 * width
    full, last = text.num_hidden_layers - 1, 1
    return {
        "vision": {"linear": linear, "other": other},
        "text": {
            "linear": full * layer_linear(text, length, length) + layer_linear(text, last, length)
            + 2.0 * text.hidden_size * text.embedding_dim,
            "other": full * attention(text, length, length) + attention(text, last, length),
        },
    }  # fmt: skip


def layer_linear(shape: EncoderConfig, queries: int, tokens: int) -> float:
    """Return the operations of a layer's linear layers: q, out and MLP on the queries, k and v on all tokens."""
    width = shape.hidden_size
    return 2.0 * (queries * (2 * width**2 + 2 * width * shape.intermediate_size) + tokens * 2 * width**2)


def attention(shape: EncoderConfig, queries: int, tokens: int) -> float:
    """Return the operations of both products of attention."""
    return 2.0 * 2 * queries * tokens * shape.hidden_size
