"""Compare the sizes that a checkpoint states with those of a model."""

from __future__ import annotations

from typing import Any

from ..config import TOWERS, SiglipConfig
from ..errors import CheckpointError

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "num_patches", "max_position_embeddings", "vocab_size", "projection_size",
)  # fmt: skip


def check_sizes(reference: Any, config: SiglipConfig, checkpoint: object) -> None:
    """Check that a checkpoint's ``config.json``, or a config of transformers, states the sizes of the model.

    Raises:
        CheckpointError: it states others.
    """
    for tower in TOWERS:
        ours, theirs = getattr(config, tower), _get(reference, f"{tower}_config") or reference
        for name in _SIZES if ours is not None else ():
            expected, found = getattr(ours, name, None), _get(theirs, name)
            found = found[0] if isinstance(found, list | tuple) and found else found
            if None not in (expected, found) and expected != found:
                raise CheckpointError(
                    f"{checkpoint} has {name} {found!s:.20} in its {tower} tower, but the model has {expected}. Give "
                    "the checkpoint that it was exported from."
                )


def _get(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
