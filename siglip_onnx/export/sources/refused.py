"""Name the layouts and models that are not exported, so that their users know what they have."""

from __future__ import annotations

from pathlib import Path

from ...config import NAFLEX, SIGLIP
from ...errors import CheckpointError
from .source import TWO_TOWERS, Json

EXPORTED = "both towers, one of them, or an image classifier"


def refuse_config(document: Json, path: Path) -> None:
    """Raise for a ``config.json`` of something other than a SigLIP, or of quantized weights.

    Raises:
        CheckpointError: it says what the checkpoint is.
    """
    kind = _name_kind(document)
    if kind:
        raise CheckpointError(f"{path} is of {kind}. Export a SigLIP in floating point: {EXPORTED}.")


def _name_kind(document: Json) -> str | None:
    """Return what a ``config.json`` describes if that is not a SigLIP in floating point."""
    model_type = str(document.get("model_type"))
    kinds = {
        f"a CLIP model (model_type {model_type!r}, expected {SIGLIP!r} or {NAFLEX!r})": "clip" in model_type
        and "siglip" not in model_type,
        f"a single tower of timm ({document.get('architecture')!r})": "architecture" in document
        and "model_type" not in document,
        f"a model_type that is not a name ({model_type:.50})": not isinstance(document.get("model_type", ""), str),
        "quantized MLX weights": bool(document.get("quantization")),
        "quantized weights (quantization_config)": bool(document.get("quantization_config")),
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def refuse_gguf(path: Path) -> None:
    """Raise for a GGUF file, or a folder of some.

    Raises:
        CheckpointError: it is one.
    """
    if path.suffix == ".gguf" or any(path.glob("*.gguf")):
        raise CheckpointError(f"{path} is of GGUF files, which have no text tower. {TWO_TOWERS}.")
