"""The served models by id, and their inference: images and texts to embeddings and matches, cached and measured."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from ..classifier import Classifier, FineTunedClassifier, match_labels
from ..config import CLASSIFIER, REGRESSION, TOWERS
from ..errors import BundleError, ImageError
from ..explain import Step, explain_in_steps, score_with_classifier, score_with_labels, score_with_model
from ..head import Floats, average_unit, match_texts
from ..image.decode import DecodedImage, ImageReader
from ..image.decoder_pool import DecoderPool
from ..image.decoder_process import DecoderLimits
from ..image.preprocess import Fit, SquashFit
from ..model import SigLIP
from ..system.lru_cache import LRUCache
from ..text.templates import fill_templates
from ..text_tower import TextTower
from .decoding import DecodingTime
from .errors import RequestError, as_request_error
from .metrics import Metrics
from .settings import Settings
from .work import Steps, stop_if_client_gone

Served = SigLIP | Classifier
CPU_SECONDS, WALL_SECONDS = 20, 30.0  # to decode one image in a process of its own
_SMALLEST = SquashFit(1, 1, Image.Resampling.NEAREST)


class ModelRegistry:
    """One or more models under the ids that requests use."""

    def __init__(self, models: Sequence[Served]) -> None:
        """Assign ids.

        Raises:
            BundleError: the models cannot be served side by side; see :func:`check_models`.
        """
        self.labels = check_models(models)
        self._models = assign_ids(models)

    def __getitem__(self, model_id: str) -> Served:
        return self._models[model_id]

    def embedder(self, model_id: str) -> SigLIP:
        """Return a model that gives embeddings.

        Raises:
            RequestError: it is a compiled classifier, which gives only logits.
        """
        model = self._models[model_id]
        if isinstance(model, Classifier):
            raise RequestError(
                422, "no_embeddings", f"{model_id} is a compiled classifier, which has no embeddings; classify instead."
            )
        return model

    def warm_up(self) -> None:
        """Load every tower and run it once."""
        for model in self._models.values():
            blank = Image.new("RGB", (64, 64))
            if isinstance(model, Classifier):
                model.run(model.fit(blank))
                continue
            model.encode_images(blank)
            if not self.labels:
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


def check_models(models: Sequence[Served]) -> list[str]:
    """Check that models answer the same question: texts, or the labels of classifiers; return these labels.

    Raises:
        BundleError: a model has only one tower, or the models have different labels.
    """
    for model in models:
        if not isinstance(model, FineTunedClassifier | Classifier):
            for tower in TOWERS:
                model.bundle.manifest.check_tower(tower)
    labels = [_labels_of(model) for model in models]
    if any(each != labels[0] for each in labels):
        raise BundleError(
            "These models cannot be served side by side: a classifier answers with its own labels, others with texts. "
            "Serve models that have both towers, or classifiers with the same labels."
        )
    return labels[0] if labels else []


def assign_ids(models: Sequence[Served]) -> Mapping[str, Served]:
    """Return models by id: ``name/variant``, with a number where two would be equal."""
    by_id: dict[str, Served] = {}
    for model in models:
        name = model_id = f"{name_of(model)}/{model.variant}"
        number = 2
        while model_id in by_id:
            model_id = f"{name}/{number}"
            number += 1
        by_id[model_id] = model
    return by_id


def name_of(model: Served) -> str:
    """Return the name of a model; of a compiled classifier, that of the model that it was made from."""
    return model.model_name if isinstance(model, Classifier) else model.bundle.manifest.model_name


def _labels_of(model: Served) -> list[str]:
    return list(model.labels if isinstance(model, Classifier) else model.bundle.manifest.labels)


def _describe_model(model_id: str, model: Served) -> dict[str, Any]:
    if isinstance(model, Classifier):
        return {
            "id": model_id,
            "name": model.model_name,
            "variant": model.variant,
            "description": "",
            "knows": "",
            "embedding_dim": None,
            "embedding_space": model.embedding_space,
            "providers": model.providers,
            "size_bytes": model.size_bytes,
            "kind": CLASSIFIER,
            "labels": model.labels,
            "problem_type": model.problem_type,
        }
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
        "kind": manifest.kind,
        "labels": list(manifest.labels),
        "problem_type": manifest.problem_type,
    }


class CachedEmbedding(NamedTuple):
    """Width and height of an image, and its embedding f32 ``(D,)`` by one model; not its pixels.

    ``logits`` f32 ``(M,)`` are those of a classifier's labels; a compiled classifier has no embedding.
    """

    width: int
    height: int
    vector: Floats | None
    logits: Floats | None = None


@dataclass(frozen=True)
class ImageEmbeddings:
    """An image and its embedding by each of several models."""

    id: str
    width: int
    height: int
    decode_ms: float  # 0 if it was not decoded for this request
    vectors: dict[str, Floats]  # by model id, f32 (D,), except of compiled classifiers
    vision_ms: dict[str, float]  # by model id, 0 if it was cached
    logits: dict[str, Floats]  # by model id, f32 (M,), of classifiers


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of texts by one model, f32 ``(M, D)``, and milliseconds per text, 0 if it was cached.

    ``truncated`` says of each text whether the model read only its beginning, in any of the templates.
    """

    vectors: Floats
    text_ms: list[float]
    truncated: list[bool]


class _Prompt(NamedTuple):
    """One text in one template: its embedding, the seconds that it took, 0 from the cache, and whether it was cut."""

    vector: Floats
    seconds: float
    truncated: bool


class FittedImage(NamedTuple):
    """An image's upright size in pixels, the milliseconds to decode it, and it resized for each model."""

    width: int
    height: int
    decode_ms: float
    by_model: dict[str, Image.Image]


class Inference:
    """Runs the registered models on images and texts; each image and text only once while it is cached."""

    def __init__(self, models: ModelRegistry, settings: Settings, metrics: Metrics) -> None:
        limits = settings.limits
        self.models, self.limits, self._metrics = models, limits, metrics
        sizes = [_draft_size(models[model_id]) for model_id in models.select(None)]
        draft_size = None if None in sizes else max(size for size in sizes if size)  # enough for every model
        self._reader = _open_reader(settings, draft_size)
        self._cache: LRUCache[tuple[str, str], CachedEmbedding] = LRUCache(limits.cached_images)  # by image and model
        self._key = secrets.token_bytes(32)  # without it an id would tell others which image it belongs to

    def warm_up(self) -> None:
        """Load every model, and start a decoder process."""
        if isinstance(self._reader, DecoderPool):
            self._reader.start()
        self.models.warm_up()

    def close(self) -> None:
        """End the decoder processes."""
        if isinstance(self._reader, DecoderPool):
            self._reader.close()

    def embed_image(self, data: bytes, model_ids: Sequence[str], decoding: DecodingTime) -> ImageEmbeddings:
        """Return the embeddings of an image file; what is not cached is computed.

        Raises:
            RequestError: it cannot be decoded, or its request has no time left for decoding.
        """
        image_id = hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()
        cached = self._lookup(image_id, model_ids)
        missing = [model_id for model_id in model_ids if model_id not in cached]
        if not missing:
            return _combine(image_id, cached, model_ids)
        fits = {_fit_of(self.models[model_id]) for model_id in missing}
        # Models that take other sizes share one decoding, of which all pixels are needed.
        with decoding.measured():
            decoded, decode_ms = self._decode(data, fits.pop() if len(fits) == 1 else None)
        vision_ms = {}
        for model_id in missing:
            vector, logits, vision_ms[model_id] = self._run_vision(model_id, decoded.rgb, is_fitted=not fits)
            cached[model_id] = CachedEmbedding(*decoded.size, vector, logits)
            self._cache.put((image_id, model_id), cached[model_id])
        return _combine(image_id, cached, model_ids, decode_ms, vision_ms)

    def find_image(self, image_id: str, model_ids: Sequence[str]) -> ImageEmbeddings | None:
        """Return the embeddings of a cached image, or None unless all are cached."""
        cached = self._lookup(image_id, model_ids)
        return _combine(image_id, cached, model_ids) if len(cached) == len(model_ids) else None

    def embed_texts(self, texts: Sequence[str], templates: Sequence[str], model_id: str) -> Steps[TextEmbeddings]:
        """Return the embeddings of texts, at least one, in templates; others may have their turn between two prompts.

        Raises:
            RequestError: the client disconnected.
            TextError: a template has no ``{}``, or a text cannot be tokenized.
        """
        model = self.models.embedder(model_id)
        model.encode_labels([], template=list(templates))  # compares them with those of a calibration
        rows: list[list[Floats]] = []
        text_ms, truncated = [], []
        for prompts in fill_templates(templates, texts):
            embedded: list[_Prompt] = []
            for prompt in prompts:
                if rows or embedded:
                    yield
                stop_if_client_gone()
                embedded.append(self._embed_prompt(model.text, prompt))
            rows.append([each.vector for each in embedded])
            text_ms.append(1000 * sum(each.seconds for each in embedded))
            truncated.append(any(each.truncated for each in embedded))
        return TextEmbeddings(average_unit(np.array(rows, np.float32)), text_ms, truncated)

    def _embed_prompt(self, tower: TextTower, prompt: str) -> _Prompt:
        started = time.perf_counter()
        is_cached = not tower.missing_labels([prompt])
        vector = tower.embed_labels([prompt])[0]
        seconds = 0.0 if is_cached else time.perf_counter() - started
        if not is_cached:
            self._metrics.observe("siglip_request_inference_duration", seconds, tower="text")
        return _Prompt(vector, seconds, tower.truncated([prompt])[0])

    def match(self, image: Floats, labels: Floats, texts: list[str], model_id: str) -> list[dict[str, Any]]:
        """Return one match per text, of an image embedding f32 ``(D,)`` and text embeddings f32 ``(M, D)``."""
        model = self.models.embedder(model_id)
        logits = model.logits(image[np.newaxis], labels, logit_bias=model.biases(texts))[0]
        return [match._asdict() for match in match_texts(logits, texts)]

    def match_labels(self, image: ImageEmbeddings, model_id: str) -> list[dict[str, Any]]:
        """Return one match per label of a classifier; None for numbers that a regression does not have."""
        model = cast(FineTunedClassifier | Classifier, self.models[model_id])
        logits = image.logits[model_id]
        matches = [match._asdict() for match in match_labels(logits, model.labels, model.problem_type)]
        if model.problem_type == REGRESSION:
            matches = [match | {"probability": None, "relative": None} for match in matches]
        return matches

    def fit_image(self, data: bytes, model_ids: Sequence[str]) -> FittedImage:
        """Decode an image file once, and resize it for each of several models.

        Raises:
            RequestError: it cannot be decoded.
        """
        fits = {model_id: _fit_of(self.models[model_id]) for model_id in model_ids}
        shared = fits[model_ids[0]] if len(set(fits.values())) == 1 else None
        decoded, decode_ms = self._decode(data, shared)
        fitted = {model_id: decoded.rgb if shared else fit(decoded.rgb) for model_id, fit in fits.items()}
        return FittedImage(*decoded.size, decode_ms, fitted)

    def explain(
        self, fitted: Image.Image, texts: Sequence[str], labels: Floats | None, model_id: str
    ) -> Iterator[Step]:  # fmt: skip
        """Yield a step after each run of a model on an image that was resized for it; see :func:`explain_in_steps`.

        ``labels`` f32 ``(M, D)`` are the embeddings of the texts, None for a classifier.
        """
        model = self.models[model_id]
        if isinstance(model, Classifier):
            scorer = score_with_classifier(model, texts)
        elif labels is None:
            scorer = score_with_model(model, texts)
        else:
            scorer = score_with_labels(model, texts, labels)

        def run(hidden: Image.Image) -> Floats:
            started = time.perf_counter()
            logits = scorer.run(hidden)
            seconds = time.perf_counter() - started
            self._metrics.observe("siglip_request_inference_duration", seconds, tower="vision")
            return logits

        return explain_in_steps(fitted, replace(scorer, run=run, workers=1))

    def check_image(self, data: bytes) -> None:
        """Decode an image file, only to see that it can be.

        Raises:
            RequestError: it cannot be decoded.
        """
        self._decode(data, _SMALLEST)

    def _decode(self, data: bytes, fit: Fit | None) -> tuple[DecodedImage, float]:
        """Return an image file as RGB, and the milliseconds to decode it.

        Raises:
            RequestError: it cannot be decoded.
        """
        started = time.perf_counter()
        try:
            decoded = self._reader.read(data, fit)
        except ImageError as error:
            raise as_request_error(error) from error
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_decode_duration", seconds)
        return decoded, seconds * 1000

    def _lookup(self, image_id: str, model_ids: Sequence[str]) -> dict[str, CachedEmbedding]:
        entries = {model_id: self._cache.get((image_id, model_id)) for model_id in model_ids}
        return {model_id: entry for model_id, entry in entries.items() if entry is not None}

    def _run_vision(
        self, model_id: str, image: Image.Image, *, is_fitted: bool
    ) -> tuple[Floats | None, Floats | None, float]:
        started = time.perf_counter()
        model, vector, logits = self.models[model_id], None, None
        fitted = image if is_fitted else _fit_of(model)(image)
        if isinstance(model, Classifier):
            logits = model.run(fitted)
        elif isinstance(model, FineTunedClassifier):
            vector, logits = model.run(fitted)
        else:
            vector = model.vision.run(fitted)
        seconds = time.perf_counter() - started
        self._metrics.observe("siglip_request_inference_duration", seconds, tower="vision")
        return vector, logits, seconds * 1000


def _fit_of(model: Served) -> Fit:
    return model.fit if isinstance(model, Classifier) else model.vision.preprocess.fit


def _draft_size(model: Served) -> tuple[int, int] | None:
    return None if isinstance(model, Classifier) else model.vision.draft_size


def _open_reader(settings: Settings, draft_size: tuple[int, int] | None) -> ImageReader | DecoderPool:
    limits = settings.limits.image
    reader = ImageReader(limits, draft_size=draft_size)
    if not settings.isolate_decoding:
        return reader
    bounds = replace(DecoderLimits.of_images(limits), cpu_seconds=CPU_SECONDS, wall_seconds=WALL_SECONDS)
    return DecoderPool(reader, settings.workers, bounds)


def _combine(
    image_id: str,
    entries: dict[str, CachedEmbedding],
    model_ids: Sequence[str],
    decode_ms: float = 0.0,
    vision_ms: dict[str, float] | None = None,
) -> ImageEmbeddings:
    first = entries[model_ids[0]]
    return ImageEmbeddings(
        image_id,
        first.width,
        first.height,
        decode_ms,
        {model_id: vector for model_id in model_ids if (vector := entries[model_id].vector) is not None},
        dict.fromkeys(model_ids, 0.0) | (vision_ms or {}),
        {model_id: logits for model_id in model_ids if (logits := entries[model_id].logits) is not None},
    )
