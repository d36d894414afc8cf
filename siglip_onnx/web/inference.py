"""The served models by id, and their inference: images and texts to embeddings and matches, cached and measured."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..head import Floats, match_texts
from ..image.decode import load_image
from ..model import SigLIP
from ..system.lru_cache import LRUCache
from .errors import RequestError, as_request_error
from .metrics import Metrics
from .settings import Limits


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
        return [_describe_model(model_id, model) for model_id, model in self._models.items()]


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


def _describe_model(model_id: str, model: SigLIP) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "id": model_id,
        "name": manifest.model_name,
        "variant": model.variant,
        "description": manifest.description,
        "knows": manifest.description,  # the name of version 0.1
        "embedding_dim": model.embedding_dim,
        "embedding_space": model.embedding_space,
        "providers": model.providers,
        "size_bytes": manifest.variants[model.variant].size_bytes,
    }


class CachedEmbedding(NamedTuple):
    """Width and height of an image, and its embedding f32 ``(D,)`` by one model; not its pixels."""

    width: int
    height: int
    vector: Floats


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

    def __init__(self, models: ModelRegistry, limits: Limits, metrics: Metrics) -> None:
        self.models, self._limits, self._metrics = models, limits.image, metrics
        self._cache: LRUCache[tuple[str, str], CachedEmbedding] = LRUCache(limits.cached_images)  # by image and model
        self._key = secrets.token_bytes(32)  # without it an id would tell others which image it belongs to

    def embed_image(self, data: bytes, model_ids: Sequence[str]) -> ImageEmbeddings:
        """Return the embeddings of an image file; what is not cached is computed.

        Raises:
            RequestError: it cannot be decoded.
        """
        image_id = hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()
        cached = self._lookup(image_id, model_ids)
        missing = [model_id for model_id in model_ids if model_id not in cached]
        if not missing:
            return _combine(image_id, cached, model_ids)
        image, decode_ms = self.decode(data)
        vision_ms = {}
        for model_id in missing:
            vector, vision_ms[model_id] = self._run_vision(model_id, image)
            cached[model_id] = CachedEmbedding(image.width, image.height, vector)
            self._cache.put((image_id, model_id), cached[model_id])
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
        entries = {model_id: self._cache.get((image_id, model_id)) for model_id in model_ids}
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
