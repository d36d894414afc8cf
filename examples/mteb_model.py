"""Evaluate a bundle with MTEB: ``python mteb_model.py MODEL TASK ...``; its images must be on the Hub or in the cache.

In a program: ``mteb.evaluate(MtebModel("demo", variant="int8"), tasks)``. Needs the package mteb, which needs PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import mteb
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

import siglip_onnx


class MtebModel(AbsEncoder):  # type: ignore[misc]  # mteb is not typed here
    """A bundle with both towers as an encoder of texts and images.

    Each variant has a name of its own, ``siglip_onnx/NAME-VARIANT``, so that MTEB keeps their results apart.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        device: str | None = None,  # noqa: ARG002 - given by MTEB
        **options: Any,
    ) -> None:
        """Open a model by name; ``options`` are those of ``siglip_onnx.load``. ``device`` is MTEB's, and has no effect.

        Raises:
            ModelNotFoundError, BundleError: as ``siglip_onnx.load`` raises them.
        """
        name = model if revision is None else f"{model}@{revision}"
        self.model = siglip_onnx.load(name, **{"workers": "auto", **options})
        manifest, variant = self.model.bundle.manifest, self.model.variant
        published = "/" in manifest.model_name
        self.mteb_model_meta = ModelMeta(
            loader=MtebModel,
            name=f"siglip_onnx/{manifest.model_name.replace('/', '--')}-{variant}",
            revision=self.model.embedding_space,
            adapted_from=manifest.model_name if published else None,
            memory_usage_mb=manifest.variants[variant].size_bytes / 1e6,
            embed_dim=self.model.embedding_dim,
            max_tokens=self.model.text.tokenize(["a"]).shape[1],
            modalities=["text", "image"],
            framework=["ONNX"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            open_weights=True if published else None,
            **dict.fromkeys(
                ("release_date", "languages", "n_parameters", "license", "public_training_code",
                 "public_training_data", "training_datasets")
            ),
        )  # fmt: skip

    def encode(self, inputs: Iterable[dict[str, Any]], **_: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return embeddings f32 ``(N, D)`` of batches with a text, an image or both, whose embeddings are added."""
        rows = []
        for batch in inputs:
            parts = []
            if "text" in batch:
                parts.append(self.model.encode_texts(batch["text"]))
            if "image" in batch:
                parts.append(self.model.encode_images(batch["image"]))
            if not parts:
                raise ValueError(f"A batch has {', '.join(batch)}; expected text or image, which this model embeds.")
            rows.append(np.sum(parts, axis=0))
        return np.concatenate(rows)


if __name__ == "__main__":
    result = mteb.evaluate(MtebModel(sys.argv[1]), mteb.get_tasks(tasks=sys.argv[2:]))
    for task in result.task_results:
        print(f"{task.task_name}: {task.get_score():.4f}")
