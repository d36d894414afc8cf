"""Shapes of the small random checkpoints, as keyword arguments of transformers' configurations."""

from typing import Any

# Widths, heads, patches and lengths that differ where real checkpoints differ.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "square": {
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "image_size": 32, "patch_size": 8},
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "vocab_size": 300, "max_position_embeddings": 16},
    },
    "patches_leave_a_rest": {  # as patch 14 at 384 pixels
        "vision": {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 3,
                   "image_size": 45, "patch_size": 7},
        "text": {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 1, "num_attention_heads": 6,
                 "vocab_size": 310, "max_position_embeddings": 64},
    },
    "narrow_text_is_projected": {  # as giant-opt
        "vision": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "image_size": 64, "patch_size": 32, "layer_norm_eps": 1e-5},
        "text": {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 5,
                 "vocab_size": 305, "max_position_embeddings": 24, "projection_size": 96},
    },
}  # fmt: skip
