"""From a request's body, JSON or multipart, to pictures and texts within the limits. Nothing is written to disk."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import python_multipart
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File

from .errors import RequestError, invalid
from .limits import Limits
from .models import PictureSource
from .schemas import ClassifyRequest, EmbedPicturesRequest, EmbedTextsRequest, FetchRequest, PictureIn

Schema = TypeVar("Schema", bound=BaseModel)
JSON = "application/json"
MULTIPART = "multipart/form-data"
_FIELDS = ("texts", "template", "models", "picture_ids", "urls", "vectors")
_FILE_FIELD = "pictures"


@dataclass
class Ask:
    """What a request asks about."""

    pictures: list[PictureSource] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: ["{}"])
    models: list[str] | None = None
    vectors: bool = True


def read_ask(
    body: bytes, content_type: str, schema: type[BaseModel], limits: Limits, *, pictures: bool, texts: bool
) -> Ask:
    """Return what a body asks, which has pictures, texts or both.

    Raises:
        RequestError: it is malformed, of another type, or beyond a limit.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        ask = _from_json(parse_json(body, schema))
    elif kind == MULTIPART:
        ask = _from_multipart(body, content_type, limits)
    else:
        raise RequestError(415, "unsupported_media_type", f"Send {JSON} or {MULTIPART}.")
    check_ask(ask, limits, pictures=pictures, texts=texts)
    return ask


def read_url(body: bytes, content_type: str) -> str:
    """Return the URL of a fetch request.

    Raises:
        RequestError: the body is malformed or of another type.
    """
    if content_type.partition(";")[0].strip().lower() != JSON:
        raise RequestError(415, "unsupported_media_type", f"Send {JSON}.")
    return parse_json(body, FetchRequest).url


def parse_json(body: bytes, schema: type[Schema]) -> Schema:
    """Return a body as what it should be; an error names the place, never the value.

    Raises:
        RequestError: it is something else.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise RequestError(400, "bad_request", "The body is no JSON.") from error
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise invalid(f"{place}: {first['msg']}.") from error


def check_ask(ask: Ask, limits: Limits, *, pictures: bool, texts: bool) -> None:
    """Compare with the limits.

    Raises:
        RequestError: too little or too much.
    """
    if pictures:
        _check_number("pictures", len(ask.pictures), limits.pictures)
    if texts:
        _check_number("texts", len(ask.texts), limits.texts)
        _check_number("templates", len(ask.templates), limits.templates)
    for text in (*ask.texts, *ask.templates):
        if not 1 <= len(text) <= limits.text_characters:
            raise RequestError(
                422, "limit_exceeded", f"A text has {len(text)} characters; expected 1 to {limits.text_characters:,}."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(422, "invalid_text", "A text has half of a surrogate pair; send valid Unicode.")


def _check_number(what: str, found: int, most: int) -> None:
    if not 1 <= found <= most:
        raise RequestError(422, "limit_exceeded", f"The request has {found} {what}; expected 1 to {most}.")


def _from_json(request: BaseModel) -> Ask:
    ask = Ask()
    if isinstance(request, ClassifyRequest | EmbedPicturesRequest):
        ask.pictures = [_source(picture, number) for number, picture in enumerate(request.pictures)]
        ask.models = request.models
    if isinstance(request, ClassifyRequest | EmbedTextsRequest):
        ask.texts = request.texts
        ask.templates = [request.template] if isinstance(request.template, str) else request.template
        ask.models = request.models
    if isinstance(request, EmbedPicturesRequest):
        ask.vectors = request.vectors
    return ask


def _source(picture: PictureIn, number: int) -> PictureSource:
    given = [value for value in (picture.base64, picture.url, picture.id) if value]
    if len(given) != 1:
        raise RequestError(422, "invalid_request", "A picture needs exactly one of base64, url and id.", picture=number)
    if picture.base64 is None or not picture.base64:
        return PictureSource(url=picture.url, id=picture.id)
    try:
        return PictureSource(data=base64.b64decode(picture.base64, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "invalid_request", "A picture is not valid base64.", picture=number) from error


def _from_multipart(body: bytes, content_type: str, limits: Limits) -> Ask:
    files: list[bytes] = []
    fields: dict[str, list[str]] = {name: [] for name in _FIELDS}
    largest = limits.pictures + limits.texts + limits.templates + 64

    def on_file(file: File) -> None:
        _check_field(file.field_name, (_FILE_FIELD,))
        if len(files) == limits.pictures:
            raise RequestError(422, "limit_exceeded", f"The request has more than {limits.pictures} pictures.")
        file.file_object.seek(0)
        files.append(file.file_object.read())

    def on_field(part: Field) -> None:
        name = _check_field(part.field_name, _FIELDS)
        try:
            fields[name].append((part.value or b"").decode())
        except UnicodeDecodeError as error:
            raise invalid(f"The field {name} is not UTF-8.") from error

    config = {
        "MAX_MEMORY_FILE_SIZE": float("inf"),  # or files go to disk
        "MAX_BODY_SIZE": limits.body_bytes,
        "MAX_FIELDS": largest,
        "MAX_FIELD_SIZE": 4 * limits.text_characters,
    }
    try:
        parser = python_multipart.create_form_parser({"Content-Type": content_type}, on_field, on_file, config)  # type: ignore[dict-item]
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise RequestError(400, "bad_request", "The body is no multipart form, or a part of it is too long.") from error
    return _from_form(files, fields)


def _check_field(name: bytes | None, expected: Sequence[str]) -> str:
    found = (name or b"").decode("latin-1")
    if found not in expected:
        raise invalid(f"The form has an unknown field; a {'file' if len(expected) == 1 else 'text'} may be "
                      f"{', '.join(expected)}.")  # fmt: skip
    return found


def _from_form(files: list[bytes], fields: dict[str, list[str]]) -> Ask:
    """Files come first, then ids, then URLs."""
    return Ask(
        pictures=[
            *(PictureSource(data=data) for data in files),
            *(PictureSource(id=identity) for identity in fields["picture_ids"]),
            *(PictureSource(url=url) for url in fields["urls"]),
        ],
        texts=fields["texts"],
        templates=fields["template"] or ["{}"],
        models=fields["models"] or None,
        vectors=fields["vectors"] != ["false"],
    )
