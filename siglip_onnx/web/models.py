"""The models that the server runs side by side, and the pictures that they have seen."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..head import Floats, match_texts
from ..image.decode import load_image
from ..model import SigLIP
from ..system.lru_cache import LRUCache
from .errors import RequestError, as_request_error, invalid
from .limits import Limits
from .metrics import Metrics

_Kept = tuple[int, int, Floats]  # width, height, embedding


@dataclass(frozen=True)
class PictureSource:
    """A picture as a request gives it: its bytes, a URL, or the id of one that was seen before."""

    data: bytes | None = None
    url: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class SeenPicture:
    """What is kept of a picture: not its pixels."""

    id: str
    width: int
    height: int
    decode_ms: float  # 0 if it was not decoded for this request
    vectors: dict[str, Floats]  # by model, f32 (D,)
    vision_ms: dict[str, float]  # by model, 0 if it was kept


class PictureCache:
    """LRU cache of embeddings by image and model."""

    def __init__(self, size: int) -> None:
        self._entries: LRUCache[tuple[str, str], _Kept] = LRUCache(size)

    def get(self, picture: str, model: str) -> _Kept | None:
        """Return width, height and embedding, or None."""
        return self._entries.get((picture, model))

    def put(self, picture: str, model: str, entry: _Kept) -> None:
        """Store width, height and embedding."""
        self._entries.put((picture, model), entry)


class ServedModels:
    """One or more models by id, asked about the same pictures and texts."""

    def __init__(self, models: Sequence[SigLIP], limits: Limits, metrics: Metrics) -> None:
        self._models = name_models(models)
        self._limits = limits
        self._metrics = metrics
        self._cache = PictureCache(limits.cached_pictures)
        self._key = secrets.token_bytes(32)  # an id must not tell others which picture it is of

    @property
    def ids(self) -> list[str]:
        """The models' ids, in the order given."""
        return list(self._models)

    def warm_up(self) -> None:
        """Load every tower and run it once."""
        for model in self._models.values():
            model.encode_images(Image.new("RGB", (64, 64)))
            model.encode_texts(["warm-up"])

    def choose(self, ids: Sequence[str] | None) -> list[str]:
        """Return the models that a request wants, all if it names none.

        Raises:
            RequestError: an unknown one.
        """
        unknown = [name for name in ids or () if name not in self._models]
        if unknown:
            raise RequestError(422, "unknown_model", f"There is no such model; there are {', '.join(self._models)}.")
        return list(dict.fromkeys(ids)) if ids else self.ids

    def describe(self) -> list[dict[str, Any]]:
        """Return what clients should know of each model."""
        described = []
        for name, model in self._models.items():
            manifest = model.bundle.manifest
            variant = manifest.variants[model.variant]
            described.append(
                {
                    "id": name,
                    "name": manifest.model_name,
                    "variant": model.variant,
                    "description": manifest.description,
                    "knows": manifest.description,  # the name in version 0.1
                    "embedding_dim": model.embedding_dim,
                    "embedding_space": model.embedding_space,
                    "providers": model.providers,
                    "size_bytes": variant.size_bytes,
                }
            )
        return described

    def space(self, model: str) -> str:
        """Return a model's embedding space."""
        return self._models[model].embedding_space

    def see(self, source: PictureSource, models: Sequence[str]) -> SeenPicture:
        """Return a picture's embeddings; what is not kept is decoded and embedded.

        Raises:
            RequestError: it cannot be decoded, or only an id is given and it is not kept.
        """
        identity = source.id or self._identify(source.data or b"")
        kept = {model: found for model in models if (found := self._cache.get(identity, model)) is not None}
        missing = [model for model in models if model not in kept]
        decode_ms, vision_ms = 0.0, dict.fromkeys(models, 0.0)
        if missing:
            if source.data is None:
                raise RequestError(404, "unknown_picture", "That picture is not kept any more; send it again.")
            picture, decode_ms = self._decode(source.data)
            for model in missing:
                embedding, vision_ms[model] = self._embed(model, picture)
                kept[model] = (picture.width, picture.height, embedding)
                self._cache.put(identity, model, kept[model])
        width, height, _ = kept[models[0]]
        return SeenPicture(identity, width, height, decode_ms, {model: kept[model][2] for model in models}, vision_ms)

    def read(self, texts: Sequence[str], templates: Sequence[str], model: str) -> tuple[Floats, list[float]]:
        """Return the embeddings f32 ``(M, D)`` of texts in their templates, and the milliseconds of each."""
        rows, milliseconds = [], []
        for text in texts:
            started = time.perf_counter()
            known = not self._models[model].missing_labels([text], template=templates)
            rows.append(self._models[model].encode_labels([text], template=templates)[0])
            seconds = time.perf_counter() - started
            milliseconds.append(0.0 if known else seconds * 1000)
            if not known:
                self._metrics.observe("siglip_request_inference_duration", seconds, tower="text")
        return np.array(rows, np.float32), milliseconds

    def match(self, picture: SeenPicture, labels: Floats, texts: list[str], model: str) -> list[dict[str, Any]]:
        """Return one match per text."""
        logits = self._models[model].logits(picture.vectors[model][np.newaxis], labels)[0]
        return [match._asdict() for match in match_texts(logits, texts)]

    def check_decodes(self, data: bytes) -> None:
        """Raise the error of bytes that are no picture."""
        self._decode(data)

    def _decode(self, data: bytes) -> tuple[Image.Image, float]:
        started = time.perf_counter()
        try:
            picture = load_image(data, limits=self._limits.picture)
        except ImageError as error:
            raise as_request_error(error) from error
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_decode_duration", seconds)
        return picture, seconds * 1000

    def _embed(self, model: str, picture: Image.Image) -> tuple[Floats, float]:
        """Return a picture's embedding f32 ``(D,)`` and the milliseconds it took."""
        started = time.perf_counter()
        embedding = self._models[model].encode_images(picture)[0]
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_inference_duration", seconds, tower="vision")
        return embedding, seconds * 1000

    def _identify(self, data: bytes) -> str:
        return hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()


def name_models(models: Sequence[SigLIP]) -> dict[str, SigLIP]:
    """Return models by id: ``name/variant``, numbered where two would be the same."""
    named: dict[str, SigLIP] = {}
    for model in models:
        name = f"{model.bundle.manifest.model_name}/{model.variant}"
        number = 2
        while name in named:
            name = f"{model.bundle.manifest.model_name}/{model.variant}/{number}"
            number += 1
        named[name] = model
    if not named:
        raise invalid("There is no model to serve.")
    return named
