"""Replies of the API, computed by the worker threads."""

from __future__ import annotations

from typing import Any

from .errors import RequestError
from .inference import ImageEmbeddings, Inference
from .inputs import ImageInput, ParsedRequest


def classify(inference: Inference, request: ParsedRequest) -> dict[str, Any]:
    """Return a :class:`.schemas.ClassifyReply`."""
    model_ids = inference.models.select(request.models)
    images = embed_images(inference, request, model_ids)
    labels = {model_id: inference.embed_texts(request.texts, request.templates, model_id) for model_id in model_ids}
    return {
        "results": [
            {
                request.spelling.value: _describe(image),
                "models": [
                    {
                        "model": model_id,
                        "vision_ms": image.vision_ms[model_id],
                        "matches": inference.match(
                            image.vectors[model_id], labels[model_id].vectors, request.texts, model_id
                        ),
                    }
                    for model_id in model_ids
                ],
            }
            for image in images
        ],
        "texts": [{"model": model_id, "text_ms": labels[model_id].text_ms} for model_id in model_ids],
    }


def reply_with_images(inference: Inference, request: ParsedRequest) -> dict[str, Any]:
    """Return a :class:`.schemas.EmbedImagesReply`."""
    model_ids = inference.models.select(request.models)
    images = embed_images(inference, request, model_ids)
    return {
        request.spelling.images: [_describe(image) for image in images],
        "embeddings": [
            {
                "model": model_id,
                "embedding_space": inference.models[model_id].embedding_space,
                "ms": [image.vision_ms[model_id] for image in images],
                "vectors": [image.vectors[model_id].tolist() for image in images] if request.vectors else None,
            }
            for model_id in model_ids
        ],
    }


def reply_with_texts(inference: Inference, request: ParsedRequest) -> dict[str, Any]:
    """Return a :class:`.schemas.EmbedTextsReply`."""
    embeddings = []
    for model_id in inference.models.select(request.models):
        labels = inference.embed_texts(request.texts, request.templates, model_id)
        embeddings.append(
            {
                "model": model_id,
                "embedding_space": inference.models[model_id].embedding_space,
                "ms": labels.text_ms,
                "vectors": labels.vectors.tolist(),
            }
        )
    return {"embeddings": embeddings}


def embed_images(inference: Inference, request: ParsedRequest, model_ids: list[str]) -> list[ImageEmbeddings]:
    """Return the embeddings of every image of a request.

    Raises:
        RequestError: an image cannot be decoded, or its id is unknown; the error has its index.
    """
    images = []
    for index, source in enumerate(request.images):
        try:
            images.append(_embed_image(inference, request, source, model_ids))
        except RequestError as error:
            raise error.at_image(request.spelling, index) from error
    return images


def _embed_image(
    inference: Inference, request: ParsedRequest, source: ImageInput, model_ids: list[str]
) -> ImageEmbeddings:
    if source.data is not None:
        return inference.embed_image(source.data, model_ids)
    image = inference.find_image(source.id or "", model_ids)
    if image is None:
        message = "The embedding of this image is no longer in the cache; send the image again."
        raise RequestError(404, request.spelling.unknown_image, message)
    return image


def _describe(image: ImageEmbeddings) -> dict[str, Any]:
    return {"id": image.id, "width": image.width, "height": image.height, "decode_ms": image.decode_ms}
