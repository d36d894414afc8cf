"""Requests and replies of the API, as its OpenAPI document describes them, and the spelling of their field names."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Spelling(StrEnum):
    """The word for an image in the field names and error codes of a request, and of its answer."""

    IMAGE = "image"
    PICTURE = "picture"  # of version 0.1, deprecated

    @property
    def images(self) -> str:
        """The field that lists images."""
        return f"{self}s"

    @property
    def image_ids(self) -> str:
        """The form field that lists ids of images."""
        return f"{self}_ids"

    @property
    def unknown_image(self) -> str:
        """The code of the error that an id is not in the cache."""
        return f"unknown_{self}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageIn(_Strict):
    """An image: exactly one of the three fields."""

    base64: str | None = Field(None, description="The image file in base64.")
    url: str | None = Field(None, description="An http or https URL, if the server fetches URLs.")
    id: str | None = Field(None, description="The id of an image that was sent before.")


Images = Annotated[list[ImageIn] | None, Field(description="Required; each needs exactly one of its fields.")]
Pictures = Annotated[
    list[ImageIn] | None,
    Field(
        description="The name of images in version 0.1; the reply then says picture instead of image.",
        json_schema_extra={"deprecated": True},
    ),
]
Templates = Annotated[
    str | list[str],
    Field(description='Prompt template for each text, such as "a photo of {}"; several are averaged.'),
]
Models = Annotated[list[str] | None, Field(description="Ids of models; all served models if omitted.")]


class ComputeRequest(_Strict):
    """What all requests that run a model have in common."""

    models: Models = None


class ImagesRequest(ComputeRequest):
    """A request with images."""

    images: Images = None
    pictures: Pictures = None


class TextsRequest(ComputeRequest):
    """A request with texts."""

    texts: list[str]
    template: Templates = "{}"


class ClassifyRequest(ImagesRequest, TextsRequest):
    """Images, and the texts to compare each with."""


class EmbedImagesRequest(ImagesRequest):
    """Images to embed."""

    vectors: bool = Field(True, description="False omits the vectors from the reply and only caches them.")


class EmbedTextsRequest(TextsRequest):
    """Texts to embed."""


class FetchRequest(_Strict):
    """An image to fetch."""

    url: str


class MatchOut(BaseModel):
    """How well one text describes one image."""

    text: str
    logit: float
    probability: float = Field(description="Sigmoid of the logit, independent of other texts; need not sum to 1.")
    relative: float = Field(description="Softmax share among the texts of this request.")


class ImageOut(BaseModel):
    """An image that was embedded."""

    id: str = Field(description="Send this instead of the file to reuse the embedding.")
    width: int = Field(description="Pixels, upright.")
    height: int
    decode_ms: float = Field(description="0 if the embedding was cached.")


class ModelMatches(BaseModel):
    """One model's matches for one image."""

    model: str
    vision_ms: float = Field(description="0 if the embedding was cached.")
    matches: list[MatchOut]


class ImageResult(BaseModel):
    """All models' matches for one image."""

    image: ImageOut
    models: list[ModelMatches]


class TextTimes(BaseModel):
    """One model's time per text."""

    model: str
    text_ms: list[float] = Field(description="One per text; 0 if its embedding was cached.")


class ClassifyReply(BaseModel):
    """One result per image, in the order of the request."""

    results: list[ImageResult]
    texts: list[TextTimes]


class ModelVectors(BaseModel):
    """One model's unit embeddings."""

    model: str
    embedding_space: str = Field(description="Vectors of different spaces must not be compared.")
    ms: list[float]
    vectors: list[list[float]] | None = None


class EmbedImagesReply(BaseModel):
    """Images and their embeddings, in the order of the request."""

    images: list[ImageOut]
    embeddings: list[ModelVectors]


class EmbedTextsReply(BaseModel):
    """Embeddings of texts, in the order of the request."""

    embeddings: list[ModelVectors]


class ModelsReply(BaseModel):
    """Served models, and the limits of a request."""

    version: str
    models: list[dict[str, Any]]
    limits: dict[str, int]
    url_fetch: bool
    samples: list[str]


class Problem(BaseModel):
    """Description of an error."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    image: int | None = Field(None, description="Index of the image at fault, from 0.")
    retry_after_s: int | None = None


class ErrorReply(BaseModel):
    """The form of every error."""

    error: Problem
