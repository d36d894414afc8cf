"""What the worker threads do for each kind of request."""

from __future__ import annotations

from typing import Any

from .errors import RequestError
from .inputs import Ask
from .models import SeenPicture, ServedModels


def classify(served: ServedModels, ask: Ask) -> dict[str, Any]:
    """Return a :class:`.schemas.ClassifyReply`."""
    models = served.choose(ask.models)
    pictures = see_all(served, ask, models)
    read = {model: served.read(ask.texts, ask.templates, model) for model in models}
    return {
        "results": [
            {
                "picture": _describe(picture),
                "models": [
                    {
                        "model": model,
                        "vision_ms": picture.vision_ms[model],
                        "matches": served.match(picture, read[model][0], ask.texts, model),
                    }
                    for model in models
                ],
            }
            for picture in pictures
        ],
        "texts": [{"model": model, "text_ms": milliseconds} for model, (_, milliseconds) in read.items()],
    }


def embed_pictures(served: ServedModels, ask: Ask) -> dict[str, Any]:
    """Return a :class:`.schemas.EmbedPicturesReply`."""
    models = served.choose(ask.models)
    pictures = see_all(served, ask, models)
    return {
        "pictures": [_describe(picture) for picture in pictures],
        "embeddings": [
            {
                "model": model,
                "embedding_space": served.space(model),
                "ms": [picture.vision_ms[model] for picture in pictures],
                "vectors": [picture.vectors[model].tolist() for picture in pictures] if ask.vectors else None,
            }
            for model in models
        ],
    }


def embed_texts(served: ServedModels, ask: Ask) -> dict[str, Any]:
    """Return a :class:`.schemas.EmbedTextsReply`."""
    embeddings = []
    for model in served.choose(ask.models):
        vectors, milliseconds = served.read(ask.texts, ask.templates, model)
        space = served.space(model)
        embeddings.append({"model": model, "embedding_space": space, "ms": milliseconds, "vectors": vectors.tolist()})
    return {"embeddings": embeddings}


def see_all(served: ServedModels, ask: Ask, models: list[str]) -> list[SeenPicture]:
    """Return every picture's embeddings.

    Raises:
        RequestError: one cannot be decoded or is not known; the error says which.
    """
    pictures = []
    for number, source in enumerate(ask.pictures):
        try:
            pictures.append(served.see(source, models))
        except RequestError as error:
            error.picture = number
            raise
    return pictures


def _describe(picture: SeenPicture) -> dict[str, Any]:
    return {
        "id": picture.id,
        "width": picture.width,
        "height": picture.height,
        "decode_ms": picture.decode_ms,
    }
