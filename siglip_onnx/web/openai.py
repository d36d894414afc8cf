"""``POST /v1/embeddings``: embeddings of texts and images in the form of OpenAI's API."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from ..head import Floats
from .answers import embed_images, embedded
from .errors import RequestError, invalid
from .inference import Inference
from .inputs import ParsedRequest, as_image, check_is_json, check_limits, parse_json
from .schemas import StrictModel
from .settings import Limits
from .work import Steps


class ImageUrl(StrictModel):
    """The URL of an image."""

    url: str = Field(description="A data: URL, or one of http or https, if the server fetches URLs.")
    detail: str | None = Field(None, description="Has no effect.")


class TextPart(StrictModel):
    """A text as a content part."""

    type: Literal["text", "input_text"]
    text: str


class ImagePart(StrictModel):
    """An image as a content part."""

    type: Literal["image_url", "input_image"]
    image_url: str | ImageUrl
    detail: str | None = Field(None, description="Has no effect.")


_HINTS = {
    "input": "Expected a text, a list of texts, or content parts of the types text and image_url; not tokens.",
}
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class EmbeddingsRequest(StrictModel):
    """Texts and images to embed: each entry of the input gives one embedding."""

    input: str | Part | list[str | Part]
    model: str = Field(description="The id of a served model, or its name without the variant.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Must be the dimension of the model, if given.")
    user: str | None = Field(None, description="Has no effect.")


class Embedding(BaseModel):
    """One embedding of unit length; in base64, its numbers are float32, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The tokens that the text tower processed: it pads every text to its length."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """One embedding per entry of the input, in its order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


@dataclass(frozen=True)
class ParsedEmbeddings(ParsedRequest):
    """A request whose entries are texts and images in any order; it fails if one image fails."""

    is_image: Sequence[bool] = ()  # of each entry
    model: str = ""
    in_base64: bool = False
    dimensions: int | None = None


def parse_embeddings(body: bytes, content_type: str, limits: Limits) -> ParsedEmbeddings:
    """Parse a body in OpenAI's form.

    Raises:
        RequestError: it is malformed, of another type, or exceeds a limit.
    """
    check_is_json(content_type)
    request = parse_json(body, EmbeddingsRequest, limits, _HINTS)
    entries = request.input if isinstance(request.input, list) else [request.input]
    if not entries:
        raise invalid("input: The list is empty; expected at least one text or image.")
    images = [entry.image_url for entry in entries if isinstance(entry, ImagePart)]
    parsed = ParsedEmbeddings(
        images=[as_image(url=url if isinstance(url, str) else url.url) for url in images],
        texts=[_text_of(entry) for entry in entries if not isinstance(entry, ImagePart)],
        strict=True,
        is_image=[isinstance(entry, ImagePart) for entry in entries],
        model=request.model,
        in_base64=request.encoding_format == "base64",
        dimensions=request.dimensions,
    )
    check_limits(parsed, limits, images=bool(images), texts=bool(parsed.texts))
    return parsed


def reply_with_embeddings(inference: Inference, request: ParsedEmbeddings) -> Steps[dict[str, Any]]:
    """Return an :class:`EmbeddingsReply`."""
    model_id = _select(inference, request.model)
    model = inference.models.embedder(model_id)
    if request.dimensions not in (None, model.embedding_dim):
        raise RequestError(
            400, "unsupported_dimensions",
            f"Embeddings of this model have {model.embedding_dim} dimensions, and cannot be shortened; "
            "leave dimensions out.",
        )  # fmt: skip
    if request.texts and inference.models.labels:
        raise RequestError(
            400, "no_text_tower", "The served model is a classifier without a text tower; it embeds images only."
        )
    embeddings = yield from embed_images(inference, request, [model_id])
    images = iter([image.vectors[model_id] for image in embedded(embeddings)])
    texts: Iterator[Floats] = iter(())
    if request.texts:
        texts = iter((yield from inference.embed_texts(request.texts, request.templates, model_id)).vectors)
    vectors = [next(images) if is_image else next(texts) for is_image in request.is_image]
    text_config = model.bundle.config.text
    tokens = len(request.texts) * text_config.max_position_embeddings if text_config else 0
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encode(vector, in_base64=request.in_base64)}
            for index, vector in enumerate(vectors)
        ],
        "model": model_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _text_of(entry: str | TextPart) -> str:
    return entry if isinstance(entry, str) else entry.text


def _select(inference: Inference, name: str) -> str:
    """Return the id of a model by its id or name.

    Raises:
        RequestError: it is not served.
    """
    ids = inference.models.select(None)
    for model_id in ids:
        if name in (model_id, model_id.partition("/")[0]):
            return model_id
    raise RequestError(404, "model_not_found", f"A model of this name is not served; use {', '.join(ids)}.")


def _encode(vector: Any, *, in_base64: bool) -> list[float] | str:
    if in_base64:
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values
