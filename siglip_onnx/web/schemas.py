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


class StrictModel(BaseModel):
    """A request, in which every field must be known and of its type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImageIn(StrictModel):
    """An image: exactly one of the three fields."""

    base64: str | None = Field(
        None, description="The image file in base64, also URL-safe or in lines, or as a data: URL."
    )
    url: str | None = Field(None, description="A data: URL, or one of http or https, if the server fetches URLs.")
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
StrictImages = Annotated[
    bool,
    Field(description="True refuses the whole request if one image fails, instead of an error entry for it."),
]
Models = Annotated[list[str] | None, Field(description="Ids of models; all served models if omitted.")]


class ComputeRequest(StrictModel):
    """What all requests that run a model have in common."""

    models: Models = None


class ImagesRequest(ComputeRequest):
    """A request with images."""

    images: Images = None
    pictures: Pictures = None
    strict: StrictImages = False


class TextsRequest(ComputeRequest):
    """A request with texts."""

    texts: list[str]
    template: Templates = "{}"


class ClassifyRequest(ImagesRequest):
    """Images, and the texts to compare each with; classifiers answer with their own labels."""

    texts: list[str] | None = Field(None, description="Required, except for classifiers, which take none.")
    template: Templates = "{}"


class ExplainRequest(ClassifyRequest):
    """One image, as a file or URL, and the texts whose evidence to find in it."""

    texts: list[str] | None = Field(
        None, description="Required, except for classifiers: labels to explain, all of them if omitted."
    )


class EmbedImagesRequest(ImagesRequest):
    """Images to embed."""

    vectors: bool = Field(True, description="False omits the vectors from the reply and only caches them.")


class EmbedTextsRequest(TextsRequest):
    """Texts to embed."""


class FetchRequest(StrictModel):
    """An image to fetch."""

    url: str


class ImageProblem(BaseModel):
    """Why an image failed."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")


class FailedImage(BaseModel):
    """An image that could not be embedded."""

    error: ImageProblem


class MatchOut(BaseModel):
    """How well one text describes one image."""

    text: str
    logit: float
    probability: float | None = Field(
        description="Sigmoid of the logit, independent of other texts; need not sum to 1. Of a classifier with one "
        "right label per image the softmax share; null for a regression."
    )
    relative: float | None = Field(
        description="Softmax share among the texts of this request, or a classifier's labels; null for a regression."
    )


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
    """All models' matches for one image, or its error."""

    image: ImageOut | None
    models: list[ModelMatches]
    error: ImageProblem | None = Field(None, description="Present if the image failed; image is then null.")


class TextTimes(BaseModel):
    """One model's time per text."""

    model: str
    text_ms: list[float] = Field(description="One per text; 0 if its embedding was cached.")
    truncated: list[bool] = Field(description="One per text: whether the model read only its beginning.")


class ClassifyReply(BaseModel):
    """One result per image, in the order of the request."""

    results: list[ImageResult]
    texts: list[TextTimes]


class ExplainedImage(BaseModel):
    """An image that was explained."""

    width: int = Field(description="Pixels, upright.")
    height: int
    decode_ms: float


class Place(BaseModel):
    """A point of an image, as shares of its width and height."""

    x: float
    y: float


class TextExplanation(BaseModel):
    """What the places of an image contribute to the logit of one text."""

    text: str
    logit: float
    probability: float | None = Field(description="As in /v1/classify.")
    strongest: Place = Field(description="The center of the cell that raises the logit most.")
    effects: list[list[float]] = Field(
        description="By rows of the grid: by how much the logit falls when a place is hidden; negative where it rises."
    )


class ModelExplanation(BaseModel):
    """One model's explanation of one image."""

    model: str
    method: str
    num_runs: int
    grid: list[int] = Field(description="Rows and columns.")
    texts: list[TextExplanation]


class ExplainReply(BaseModel):
    """Where in the image the evidence for each text lies, by each model."""

    image: ExplainedImage
    models: list[ModelExplanation]


class ModelVectors(BaseModel):
    """One model's unit embeddings."""

    model: str
    embedding_space: str = Field(description="Vectors of different spaces must not be compared.")
    ms: list[float]
    vectors: list[list[float] | None] | None = Field(None, description="Null for an image that failed.")


class EmbedImagesReply(BaseModel):
    """Images and their embeddings, in the order of the request; an image that failed has an error in its place."""

    images: list[ImageOut | FailedImage]
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
