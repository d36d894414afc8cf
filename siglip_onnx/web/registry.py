"""Served models by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..model import SigLIP
from .errors import RequestError


class ModelRegistry:
    """One or more models under the ids that requests use."""

    def __init__(self, models: Sequence[SigLIP]) -> None:
        self._models = assign_ids(models)

    def __getitem__(self, model_id: str) -> SigLIP:
        return self._models[model_id]

    def warm_up(self) -> None:
        """Load every tower and run it once."""
        for model in self._models.values():
            model.encode_images(Image.new("RGB", (64, 64)))
            model.encode_texts(["warm-up"])

    def select(self, ids: Sequence[str] | None) -> list[str]:
        """Return the ids that a request names, without repetition; all if it names none.

        Raises:
            RequestError: an id is unknown.
        """
        if any(model_id not in self._models for model_id in ids or ()):
            raise RequestError(
                422, "unknown_model", f"A model of this request is not served; use {', '.join(self._models)}."
            )
        return list(dict.fromkeys(ids or self._models))

    def describe(self) -> list[dict[str, Any]]:
        """Return a description of each model for clients."""
        return [_describe(model_id, model) for model_id, model in self._models.items()]


def assign_ids(models: Sequence[SigLIP]) -> Mapping[str, SigLIP]:
    """Return models by id: ``name/variant``, with a number where two would be equal."""
    by_id: dict[str, SigLIP] = {}
    for model in models:
        name = model_id = f"{model.bundle.manifest.model_name}/{model.variant}"
        number = 2
        while model_id in by_id:
            model_id = f"{name}/{number}"
            number += 1
        by_id[model_id] = model
    return by_id


def _describe(model_id: str, model: SigLIP) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "id": model_id,
        "name": manifest.model_name,
        "variant": model.variant,
        "description": manifest.knows,
        "knows": manifest.knows,  # the name of version 0.1
        "embedding_dim": model.embedding_dim,
        "embedding_space": model.embedding_space,
        "providers": model.providers,
        "size_bytes": manifest.variants[model.variant].size_bytes,
    }
