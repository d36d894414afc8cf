"""What the HTTP API takes and gives, as its OpenAPI document shows it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PictureIn(_Strict):
    """Exactly one of the three."""

    base64: str | None = Field(None, description="The picture file, in base64.")
    url: str | None = Field(None, description="An http or https URL, where the server may fetch.")
    id: str | None = Field(None, description="The id of a picture that was sent before.")


Templates = Annotated[
    str | list[str], Field(description='What each text is put into, as "a photo of {}"; of several the mean is taken.')
]
Models = Annotated[list[str] | None, Field(description="Ids of models; all that are served if left out.")]


class ClassifyRequest(_Strict):
    """Pictures and the texts to compare each with."""

    pictures: list[PictureIn]
    texts: list[str]
    template: Templates = "{}"
    models: Models = None


class EmbedPicturesRequest(_Strict):
    """Pictures to embed."""

    pictures: list[PictureIn]
    models: Models = None
    vectors: bool = Field(True, description="False leaves the vectors out: the server only keeps them for later.")


class EmbedTextsRequest(_Strict):
    """Texts to embed."""

    texts: list[str]
    template: Templates = "{}"
    models: Models = None


class FetchRequest(_Strict):
    """A picture to fetch."""

    url: str


class MatchOut(BaseModel):
    """How well one text describes one picture."""

    text: str
    logit: float
    probability: float = Field(description="Sigmoid of the logit: of this text alone; need not sum to 1.")
    relative: float = Field(description="Softmax share among the texts of this request.")


class PictureOut(BaseModel):
    """What was seen of a picture."""

    id: str
    width: int = Field(description="Pixels, upright.")
    height: int
    decode_ms: float = Field(description="0 if it was sent before.")


class ModelMatches(BaseModel):
    """One model's answer about one picture."""

    model: str
    vision_ms: float = Field(description="0 if the embedding was kept.")
    matches: list[MatchOut]


class PictureResult(BaseModel):
    """All models' answers about one picture."""

    picture: PictureOut
    models: list[ModelMatches]


class TextTimes(BaseModel):
    """How long one model took for each text."""

    model: str
    text_ms: list[float] = Field(description="One per text; 0 if its embedding was kept.")


class ClassifyReply(BaseModel):
    """One result per picture, in the order given."""

    results: list[PictureResult]
    texts: list[TextTimes]


class ModelVectors(BaseModel):
    """One model's unit embeddings."""

    model: str
    embedding_space: str = Field(description="Vectors of different spaces must not be compared.")
    ms: list[float]
    vectors: list[list[float]] | None = None


class EmbedPicturesReply(BaseModel):
    """Pictures and their embeddings, in the order given."""

    pictures: list[PictureOut]
    embeddings: list[ModelVectors]


class EmbedTextsReply(BaseModel):
    """Embeddings of texts, in the order given."""

    embeddings: list[ModelVectors]


class ModelsReply(BaseModel):
    """What is served, and within which limits."""

    version: str
    models: list[dict[str, Any]]
    limits: dict[str, int]
    url_fetch: bool
    samples: list[str]


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    picture: int | None = Field(None, description="Which picture of the request, from 0.")
    retry_after_s: int | None = None


class ErrorReply(BaseModel):
    """The one form of every error."""

    error: Problem
