"""Replies of the API, computed by the worker threads; other requests may have their turn at each ``yield``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .decoding import DecodingTime
from .errors import RequestError, describe_error, invalid
from .inference import ImageEmbeddings, Inference, TextEmbeddings
from .inputs import ImageInput, ParsedRequest, check_texts
from .work import Steps, stop_if_client_gone

_MAX_MATCHES = 100_000  # of a reply of classifiers, which has about 130 bytes for each
Images = list[ImageEmbeddings | RequestError]  # an error in place of an image that failed


def classify(inference: Inference, request: ParsedRequest) -> Steps[dict[str, Any]]:
    """Return a :class:`.schemas.ClassifyReply`."""
    model_ids = inference.models.select(request.models)
    if inference.models.labels:
        return (yield from _classify_by_labels(inference, request, model_ids))
    check_texts(request, inference.limits)
    images = yield from embed_images(inference, request, model_ids)
    labels: dict[str, TextEmbeddings] = {}
    for model_id in model_ids:
        labels[model_id] = yield from inference.embed_texts(request.texts, request.templates, model_id)
    matches = {
        (image.id, model_id): inference.match(
            image.vectors[model_id], labels[model_id].vectors, request.texts, model_id
        )
        for image in embedded(images)
        for model_id in model_ids
    }
    times = [
        {"model": model_id, "text_ms": labels[model_id].text_ms, "truncated": labels[model_id].truncated}
        for model_id in model_ids
    ]
    return _reply(request, images, matches, times)


def _classify_by_labels(
    inference: Inference, request: ParsedRequest, model_ids: list[str]
) -> Steps[dict[str, Any]]:  # fmt: skip
    """Return the reply of classifiers, which match images with their own labels."""
    if request.texts or list(request.templates) != ["{}"]:
        raise invalid("texts: The served models are classifiers, which answer with their own labels; leave it out.")
    num_matches = len(request.images) * len(inference.models.labels) * len(model_ids)
    if num_matches > _MAX_MATCHES and len(request.images) > 1:
        raise RequestError(
            422, "limit_exceeded",
            f"The reply would have {num_matches:,} matches of images and labels, at most {_MAX_MATCHES:,} are given; "
            "send fewer images at a time.",
        )  # fmt: skip
    images = yield from embed_images(inference, request, model_ids)
    matches = {
        (image.id, model_id): inference.match_labels(image, model_id)
        for image in embedded(images)
        for model_id in model_ids
    }
    count = len(inference.models.labels)
    times = [{"model": model_id, "text_ms": [0.0] * count, "truncated": [False] * count} for model_id in model_ids]
    return _reply(request, images, matches, times)


def _reply(
    request: ParsedRequest,
    images: Images,
    matches: Mapping[tuple[str, str], list[dict[str, Any]]],
    times: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "results": [
            {request.spelling.value: None, "models": [], "error": describe_error(image)}
            if isinstance(image, RequestError)
            else {
                request.spelling.value: _describe(image),
                "models": [
                    {
                        "model": entry["model"],
                        "vision_ms": image.vision_ms[entry["model"]],
                        "matches": matches[image.id, entry["model"]],
                    }
                    for entry in times
                ],
            }
            for image in images
        ],
        "texts": times,
    }


def explain(inference: Inference, request: ParsedRequest) -> Iterator[dict[str, Any] | None]:
    """Yield ``done`` and ``total`` after each run of a model, and at last a ``result``; None between texts.

    The result is a :class:`.schemas.ExplainReply`.

    Raises:
        RequestError: the image cannot be decoded, or the texts do not suit the models.
    """
    model_ids = inference.models.select(request.models)
    if not inference.models.labels:
        check_texts(request, inference.limits)
    elif list(request.templates) != ["{}"]:
        raise invalid("template: The served models are classifiers, which answer with their own labels; leave it out.")
    elif not set(request.texts) <= set(inference.models.labels):
        raise invalid("texts: The served classifiers do not have all of these labels; /v1/models lists them.")
    elif not request.texts and len(inference.models.labels) > inference.limits.texts:
        raise RequestError(
            422, "limit_exceeded",
            f"The served classifiers have {len(inference.models.labels):,} labels; give at most "
            f"{inference.limits.texts} of them as texts.",
        )  # fmt: skip
    (source,) = request.images
    try:
        if source.error is not None:
            raise source.error
        image = inference.fit_image(source.data or b"", model_ids)
    except RequestError as error:
        raise error.at_image(request.spelling, 0) from error
    models: list[dict[str, Any]] = []
    done = 0
    for left, model_id in zip(range(len(model_ids), 0, -1), model_ids, strict=True):
        labels = None
        if not inference.models.labels:
            labels = (yield from inference.embed_texts(request.texts, request.templates, model_id)).vectors
        for step in inference.explain(image.by_model[model_id], request.texts, labels, model_id):
            yield {"done": done + step.done, "total": done + left * step.total}
            if step.explanation is not None:
                models.append({"model": model_id} | step.explanation.to_document())
        done += step.done
    about = {"width": image.width, "height": image.height, "decode_ms": image.decode_ms}
    yield {"result": {request.spelling.value: about, "models": models}}


def reply_with_images(inference: Inference, request: ParsedRequest) -> Steps[dict[str, Any]]:
    """Return a :class:`.schemas.EmbedImagesReply`.

    Raises:
        RequestError: vectors of a compiled classifier, which has none.
    """
    model_ids = inference.models.select(request.models)
    for model_id in model_ids if request.vectors else ():
        inference.models.embedder(model_id)
    images = yield from embed_images(inference, request, model_ids)
    return {
        request.spelling.images: [
            {"error": describe_error(image)} if isinstance(image, RequestError) else _describe(image)
            for image in images
        ],
        "embeddings": [
            {
                "model": model_id,
                "embedding_space": inference.models[model_id].embedding_space,
                "ms": [0.0 if isinstance(image, RequestError) else image.vision_ms[model_id] for image in images],
                "vectors": [
                    None if isinstance(image, RequestError) else image.vectors[model_id].tolist() for image in images
                ]
                if request.vectors
                else None,
            }
            for model_id in model_ids
        ],
    }


def reply_with_texts(inference: Inference, request: ParsedRequest) -> Steps[dict[str, Any]]:
    """Return a :class:`.schemas.EmbedTextsReply`."""
    if inference.models.labels:
        raise invalid("The served models are classifiers, which have no text tower; texts cannot be embedded.")
    embeddings = []
    for model_id in inference.models.select(request.models):
        labels = yield from inference.embed_texts(request.texts, request.templates, model_id)
        embeddings.append(
            {
                "model": model_id,
                "embedding_space": inference.models[model_id].embedding_space,
                "ms": labels.text_ms,
                "vectors": labels.vectors.tolist(),
            }
        )
    return {"embeddings": embeddings}


def embed_images(inference: Inference, request: ParsedRequest, model_ids: list[str]) -> Steps[Images]:
    """Return the embeddings of every image of a request, or its error.

    An image fails if it cannot be decoded, if those before it took all the time for decoding, or if its id is unknown.

    Raises:
        RequestError: all images failed, or one did and the request is strict; the error has its index.
    """
    images: Images = []
    decoding = DecodingTime(inference.limits.decode_seconds)
    for index, source in enumerate(request.images):
        if index:
            yield
        stop_if_client_gone()
        try:
            images.append(_embed_image(inference, request, source, model_ids, decoding))
        except RequestError as error:
            if request.strict:
                raise error.at_image(request.spelling, index) from error
            images.append(error)
    if images and isinstance(images[0], RequestError) and not embedded(images):
        raise images[0].at_image(request.spelling, 0)
    return images


def embedded(images: Images) -> list[ImageEmbeddings]:
    """Return the embeddings of the images that did not fail."""
    return [image for image in images if not isinstance(image, RequestError)]


def _embed_image(
    inference: Inference, request: ParsedRequest, source: ImageInput, model_ids: list[str], decoding: DecodingTime
) -> ImageEmbeddings:
    if source.error is not None:
        raise source.error
    if source.data is not None:
        return inference.embed_image(source.data, model_ids, decoding)
    image = inference.find_image(source.id or "", model_ids)
    if image is None:
        message = "The embedding of this image is no longer in the cache; send the image again."
        raise RequestError(404, request.spelling.unknown_image, message)
    return image


def _describe(image: ImageEmbeddings) -> dict[str, Any]:
    return {"id": image.id, "width": image.width, "height": image.height, "decode_ms": image.decode_ms}
