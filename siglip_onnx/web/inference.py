"""Inference of the server: images and texts to embeddings and matches, cached and measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..head import Floats, match_texts
from ..image.decode import load_image
from ..options import ImageLimits
from .cache import CachedEmbedding, EmbeddingCache
from .errors import as_request_error
from .metrics import Metrics
from .registry import ModelRegistry


@dataclass(frozen=True)
class ImageEmbeddings:
    """An image and its embedding by each of several models."""

    id: str
    width: int
    height: int
    decode_ms: float  # 0 if it was not decoded for this request
    vectors: dict[str, Floats]  # by model id, f32 (D,)
    vision_ms: dict[str, float]  # by model id, 0 if it was cached


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of texts by one model, f32 ``(M, D)``, and milliseconds per text, 0 if it was cached."""

    vectors: Floats
    text_ms: list[float]


class Inference:
    """Runs the registered models on images and texts; each image and text only once while it is cached."""

    def __init__(self, models: ModelRegistry, cache: EmbeddingCache, limits: ImageLimits, metrics: Metrics) -> None:
        self.models = models
        self._cache = cache
        self._limits = limits
        self._metrics = metrics

    def embed_image(self, data: bytes, model_ids: Sequence[str]) -> ImageEmbeddings:
        """Return the embeddings of an image file; what is not cached is computed.

        Raises:
            RequestError: it cannot be decoded.
        """
        image_id = self._cache.image_id(data)
        cached = self._lookup(image_id, model_ids)
        missing = [model_id for model_id in model_ids if model_id not in cached]
        if not missing:
            return _combine(image_id, cached, model_ids)
        image, decode_ms = self.decode(data)
        vision_ms = {}
        for model_id in missing:
            vector, vision_ms[model_id] = self._run_vision(model_id, image)
            cached[model_id] = CachedEmbedding(image.width, image.height, vector)
            self._cache.put(image_id, model_id, cached[model_id])
        return _combine(image_id, cached, model_ids, decode_ms, vision_ms)

    def find_image(self, image_id: str, model_ids: Sequence[str]) -> ImageEmbeddings | None:
        """Return the embeddings of a cached image, or None unless all are cached."""
        cached = self._lookup(image_id, model_ids)
        return _combine(image_id, cached, model_ids) if len(cached) == len(model_ids) else None

    def embed_texts(self, texts: Sequence[str], templates: Sequence[str], model_id: str) -> TextEmbeddings:
        """Return the embeddings of texts in templates.

        Raises:
            TextError: a template has no ``{}``.
        """
        model = self.models[model_id]
        rows, text_ms = [], []
        for text in texts:
            started = time.perf_counter()
            is_cached = not model.missing_labels([text], template=templates)
            rows.append(model.encode_labels([text], template=templates)[0])
            seconds = time.perf_counter() - started
            text_ms.append(0.0 if is_cached else seconds * 1000)
            if not is_cached:
                self._metrics.observe("siglip_request_inference_duration", seconds, tower="text")
        return TextEmbeddings(np.array(rows, np.float32), text_ms)

    def match(self, image: Floats, labels: Floats, texts: list[str], model_id: str) -> list[dict[str, Any]]:
        """Return one match per text, of an image embedding f32 ``(D,)`` and text embeddings f32 ``(M, D)``."""
        logits = self.models[model_id].logits(image[np.newaxis], labels)[0]
        return [match._asdict() for match in match_texts(logits, texts)]

    def decode(self, data: bytes) -> tuple[Image.Image, float]:
        """Return an image file as RGB, and the milliseconds to decode it.

        Raises:
            RequestError: it cannot be decoded.
        """
        started = time.perf_counter()
        try:
            image = load_image(data, limits=self._limits)
        except ImageError as error:
            raise as_request_error(error) from error
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_decode_duration", seconds)
        return image, seconds * 1000

    def _lookup(self, image_id: str, model_ids: Sequence[str]) -> dict[str, CachedEmbedding]:
        entries = {model_id: self._cache.get(image_id, model_id) for model_id in model_ids}
        return {model_id: entry for model_id, entry in entries.items() if entry is not None}

    def _run_vision(self, model_id: str, image: Image.Image) -> tuple[Floats, float]:
        started = time.perf_counter()
        vector = self.models[model_id].encode_images(image)[0]
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_inference_duration", seconds, tower="vision")
        return vector, seconds * 1000


def _combine(
    image_id: str,
    entries: dict[str, CachedEmbedding],
    model_ids: Sequence[str],
    decode_ms: float = 0.0,
    vision_ms: dict[str, float] | None = None,
) -> ImageEmbeddings:
    width, height, _ = entries[model_ids[0]]
    vectors = {model_id: entries[model_id].vector for model_id in model_ids}
    return ImageEmbeddings(
        image_id, width, height, decode_ms, vectors, dict.fromkeys(model_ids, 0.0) | (vision_ms or {})
    )
