"""Compare the family and the sizes that a checkpoint states with those of a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..config import NAFLEX, SIGLIP, SINGLE_TOWERS, TOWERS, SiglipConfig
from ..errors import CheckpointError

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "num_patches", "max_position_embeddings", "vocab_size", "projection_size",
)  # fmt: skip


def check_sizes(reference: Any, config: SiglipConfig, checkpoint: object) -> None:
    """Check that a checkpoint's ``config.json``, or a config of transformers, states the family and sizes of the model.

    Raises:
        CheckpointError: it states others.
    """
    for tower in TOWERS:
        ours, theirs = getattr(config, tower), _get(reference, f"{tower}_config") or reference
        if ours is None:
            continue
        family = _family(reference) or _family(theirs)
        if family not in (None, config.model_type):
            raise CheckpointError(
                f"{checkpoint} is of model_type {family!r}, but the model is of {config.model_type!r}. Give the "
                "checkpoint that it was exported from."
            )
        defaults = asdict(type(ours)()) if family else {}  # published files rely on them
        for name in _SIZES:
            expected, found = getattr(ours, name, None), _get(theirs, name)
            found = defaults.get(name) if found is None else found
            found = found[0] if isinstance(found, list | tuple) and found else found
            if None not in (expected, found) and expected != found:
                raise CheckpointError(
                    f"{checkpoint} has {name} {found!s:.20} in its {tower} tower, but the model has {expected}. Give "
                    "the checkpoint that it was exported from."
                )


def _family(document: Any) -> str | None:
    """Return the family that a config's ``model_type`` names, ``siglip`` or ``siglip2``, or None."""
    model_type = str(_get(document, "model_type"))
    family = SINGLE_TOWERS.get(model_type, (model_type, ""))[0]
    return family if family in (SIGLIP, NAFLEX) else None


def _get(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
