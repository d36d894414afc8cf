"""Parse JSON and multipart bodies into images and texts within the limits. Nothing is written to disk."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header

from .errors import RequestError, invalid
from .schemas import (
    ClassifyRequest,
    ComputeRequest,
    EmbedImagesRequest,
    FetchRequest,
    ImageIn,
    ImagesRequest,
    Spelling,
    TextsRequest,
)
from .settings import Limits

Schema = TypeVar("Schema", bound=BaseModel)
JSON = "application/json"
MULTIPART = "multipart/form-data"
_MAX_PART_FIELDS = 8
_MAX_ESCAPES = 500_000  # in a data: URL; each costs about 250 bytes while it is decoded
_NO_HINTS: Mapping[str, str] = MappingProxyType({})
DATA_URL = "data:"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_UTF8_BYTES = 4  # at most, of a character
_MAX_MODELS = 64  # named by one request
_FILE_FIELDS = tuple(spelling.images for spelling in Spelling)
_IMAGE_ID_FIELDS = tuple(spelling.image_ids for spelling in Spelling)
_TEXT_FIELDS = ("texts", "template", "models", "urls", "vectors", "strict", *_IMAGE_ID_FIELDS)


@dataclass(frozen=True)
class ImageInput:
    """An image of a request: its file's bytes, a URL, the id of an image sent earlier, or what is wrong with it."""

    data: bytes | None = None
    url: str | None = None
    id: str | None = None
    error: RequestError | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """The content of a request, whether it came as JSON or as a form."""

    images: Sequence[ImageInput] = ()
    texts: list[str] = field(default_factory=list)
    has_texts: bool = True  # False if a JSON body has no such field
    templates: Sequence[str] = ("{}",)
    models: Sequence[str] | None = None
    vectors: bool = True
    strict: bool = False
    spelling: Spelling = Spelling.IMAGE

    @property
    def has_urls(self) -> bool:
        """Whether images must be fetched first."""
        return any(image.url is not None for image in self.images)


def parse_request(
    body: bytes, content_type: str, schema: type[ComputeRequest], limits: Limits, *, images: bool, texts: bool
) -> ParsedRequest:
    """Parse a body that has images, texts or both.

    Raises:
        RequestError: it is malformed, of another type, or exceeds a limit.
    """
    media_type = _media_type(content_type)
    if media_type == JSON:
        request = _from_json(parse_json(body, schema, limits))
    elif media_type == MULTIPART:
        request = _from_multipart(body, content_type, limits)
    else:
        raise RequestError(415, "unsupported_media_type", f"The Content-Type must be {JSON} or {MULTIPART}.")
    check_limits(request, limits, images=images, texts=texts)
    return request


def parse_url(body: bytes, content_type: str, limits: Limits) -> str:
    """Return the URL of a fetch request.

    Raises:
        RequestError: the body is malformed or of another type.
    """
    check_is_json(content_type)
    return parse_json(body, FetchRequest, limits).url


def check_is_json(content_type: str) -> None:
    """Check the media type of a body that cannot be a form.

    Raises:
        RequestError: it is not JSON.
    """
    if _media_type(content_type) != JSON:
        raise RequestError(415, "unsupported_media_type", f"The Content-Type must be {JSON}.")


def parse_json(body: bytes, schema: type[Schema], limits: Limits, hints: Mapping[str, str] = _NO_HINTS) -> Schema:
    """Validate a JSON body; an error names the field at fault, and repeats nothing of the body.

    ``hints`` are messages for fields whose forms a general message would not explain.

    The numbers of values, fields and list entries are bounded before the validation, which collects an error for each.

    Raises:
        RequestError: the body is not valid, or exceeds a limit.
    """
    # Every value follows one of these bytes; texts may contain them too.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > limits.json_marks or body.count(b":") > limits.json_keys:
        raise RequestError(422, "limit_exceeded", "The body has more values than a request within the limits.")
    try:
        document = from_json(body)
    except ValueError as error:
        raise RequestError(400, "bad_request", "The body is not valid JSON.") from error
    if isinstance(document, dict):
        _check_document(document, schema, limits)
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "the body"
        name = str(first["loc"][0]) if first["loc"] else ""
        if name in hints:
            raise invalid(f"{name}: {hints[name]}") from error
        raise invalid(f"{location}: {first['msg']}.") from error


def _check_document(document: dict[str, Any], schema: type[BaseModel], limits: Limits) -> None:
    """Check the names of the fields, the lengths of the lists, and the names of the fields of images."""
    _check_keys(document, schema, "The body")
    images = {spelling.images: ("images", limits.images) for spelling in Spelling}
    lists = {"texts": ("texts", limits.texts), "template": ("templates", limits.templates),
             "models": ("models", _MAX_MODELS), "input": ("inputs", limits.texts + limits.images)}  # fmt: skip
    for name, (what, maximum) in (images | lists).items():
        entries = document.get(name)
        if not isinstance(entries, list):
            continue
        if len(entries) > maximum:
            raise _wrong_count(what, len(entries), maximum)
        for index, entry in enumerate(entries if name in images else ()):
            if isinstance(entry, dict):
                _check_keys(entry, ImageIn, f"{name}.{index}")
    if isinstance(inputs := document.get("input"), list | dict):
        for entry in inputs if isinstance(inputs, list) else [inputs]:
            for part in (entry, entry.get("image_url")) if isinstance(entry, dict) else ():
                if isinstance(part, dict) and len(part) > _MAX_PART_FIELDS:
                    raise invalid(f"input: A content part has more than {_MAX_PART_FIELDS} fields.")


def _check_keys(document: dict[str, Any], schema: type[BaseModel], parent: str) -> None:
    for key in document:
        if key not in schema.model_fields:
            names = ", ".join(schema.model_fields)
            raise invalid(f"{parent} has an unknown field; expected one of {names}.")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def check_limits(request: ParsedRequest, limits: Limits, *, images: bool, texts: bool) -> None:
    """Check the numbers of images, texts and templates, and the texts.

    Raises:
        RequestError: there are too few or too many, or a text is too long or malformed.
    """
    if images:
        _check_count("images", len(request.images), limits.images)
    if texts:
        if request.texts or not images:  # a classifier needs none
            check_texts(request, limits)
        _check_count("templates", len(request.templates), limits.templates)
    for text in (*request.texts, *request.templates):
        if not 1 <= len(text) <= limits.text_characters:
            raise RequestError(
                422, "limit_exceeded", f"A text has {len(text)} characters; expected 1 to {limits.text_characters:,}."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(422, "invalid_text", "A text contains half of a surrogate pair; expected valid Unicode.")

    if any("{}" not in template for template in request.templates):
        raise RequestError(422, "invalid_text", "A template has no {} for the text; write for example 'a photo of {}'.")
    _check_prompts(request, limits)


def _check_prompts(request: ParsedRequest, limits: Limits) -> None:
    """Check the number and the length of what the text tower has to read, before anything is put together."""
    prompts = len(request.texts) * len(request.templates)
    if prompts > limits.prompts:
        raise RequestError(
            422, "limit_exceeded", f"{len(request.texts)} texts in {len(request.templates)} templates are {prompts} "
            f"prompts; expected at most {limits.prompts}. Send several requests."
        )  # fmt: skip
    text_characters = sum(map(len, request.texts))
    characters = sum(
        len(template) * len(request.texts) + template.count("{}") * text_characters for template in request.templates
    )
    if characters > limits.prompt_characters:
        raise RequestError(
            422, "limit_exceeded", f"The texts in their templates have {characters:,} characters; expected at most "
            f"{limits.prompt_characters:,}. Send several requests, or repeat {{}} less often."
        )  # fmt: skip


def check_texts(request: ParsedRequest, limits: Limits) -> None:
    """Check that a request has texts, and not too many.

    Raises:
        RequestError: it does not.
    """
    if not request.has_texts:
        raise invalid("texts: Field required.")
    _check_count("texts", len(request.texts), limits.texts)


def _check_count(what: str, count: int, maximum: int) -> None:
    if not 1 <= count <= maximum:
        raise _wrong_count(what, count, maximum)


def _wrong_count(what: str, count: int, maximum: int) -> RequestError:
    return RequestError(422, "limit_exceeded", f"The request has {count} {what}; expected 1 to {maximum}.")


def _from_json(request: ComputeRequest) -> ParsedRequest:
    parsed = ParsedRequest(models=request.models)
    if isinstance(request, ImagesRequest):
        entries = {Spelling.IMAGE: request.images, Spelling.PICTURE: request.pictures}
        used = [spelling for spelling in Spelling if entries[spelling] is not None]
        if not used:
            raise invalid("images: Field required.")
        spelling = _only_spelling(used)
        images = [_image_input(entry, spelling, index) for index, entry in enumerate(entries[spelling] or ())]
        parsed = replace(parsed, images=images, spelling=spelling, strict=request.strict)
    if isinstance(request, TextsRequest | ClassifyRequest):
        templates = [request.template] if isinstance(request.template, str) else request.template
        has_texts = request.texts is not None
        parsed = replace(parsed, texts=request.texts or [], has_texts=has_texts, templates=templates)
    if isinstance(request, EmbedImagesRequest):
        parsed = replace(parsed, vectors=request.vectors)
    return parsed


def _only_spelling(used: Sequence[Spelling]) -> Spelling:
    """Return the spelling that a request uses, ``image`` if it has no image fields.

    Raises:
        RequestError: it uses both.
    """
    if len(used) > 1:
        raise invalid("The request mixes the field names images and image_ids with pictures and picture_ids; "
                      "use images and image_ids only.")  # fmt: skip
    return used[0] if used else Spelling.IMAGE


def _image_input(entry: ImageIn, spelling: Spelling, index: int) -> ImageInput:
    if sum(bool(value) for value in (entry.base64, entry.url, entry.id)) != 1:
        raise invalid("An image must have exactly one of base64, url and id.").at_image(spelling, index)
    return as_image(entry.base64, url=entry.url, id_=entry.id)


def as_image(in_base64: str | None = None, *, url: str | None = None, id_: str | None = None) -> ImageInput:
    """Return an image that is given in base64, as a data: URL, by another URL, or by its id."""
    text = in_base64 or url or ""
    if not in_base64 and not is_data_url(text):
        return ImageInput(id=id_) if id_ else ImageInput(url=url)
    try:
        return ImageInput(data=decode_data_url(text) if is_data_url(text) else decode_base64(text))
    except RequestError as error:
        return ImageInput(error=error)


def is_data_url(text: str) -> bool:
    """Return whether a text is a URL that holds its content itself."""
    return text[: len(DATA_URL)].lower() == DATA_URL


def decode_base64(text: str) -> bytes:
    """Decode base64: standard or URL-safe, with or without padding, also in lines.

    Raises:
        RequestError: it is not valid.
    """
    try:
        data = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("The base64 of an image is not valid.") from error


def decode_data_url(url: str) -> bytes:
    """Return the content of a ``data:`` URL, in base64 or percent-encoded, whatever type it declares.

    Raises:
        RequestError: it is not valid, or has so many escapes that decoding them would take seconds and gigabytes.
    """
    head, comma, content = url.partition(",")
    if content.count("%") > _MAX_ESCAPES:
        raise RequestError(422, "limit_exceeded", "A data: URL has too many percent escapes; send the image in base64.")
    if not comma:
        raise invalid("A data: URL of an image has no comma before its content.")
    if head.rstrip().lower().endswith(";base64"):
        return decode_base64(unquote(content) if "%" in content else content)
    return unquote_to_bytes(content)


def _from_multipart(body: bytes, content_type: str, limits: Limits) -> ParsedRequest:
    files: list[tuple[str, bytes]] = []
    fields: dict[str, list[str]] = {name: [] for name in _TEXT_FIELDS}
    complete = False

    def on_end() -> None:
        nonlocal complete
        complete = True

    def on_file(file: File) -> None:
        name = _check_field(file.field_name, _FILE_FIELDS, "file")
        if len(files) == limits.images:
            raise RequestError(422, "limit_exceeded", f"The request has more than {limits.images} images.")
        file.file_object.seek(0)
        files.append((name, file.file_object.read()))

    def on_field(part: Field) -> None:
        name = _check_field(part.field_name, _TEXT_FIELDS, "text")
        if sum(map(len, fields.values())) == limits.form_fields:
            raise RequestError(422, "limit_exceeded", f"The form has more than {limits.form_fields} text fields.")
        # A URL may be a data: URL; other ones are bounded when they are fetched.
        if name != "urls" and len(part.value or b"") > _UTF8_BYTES * limits.text_characters:
            raise RequestError(
                422, "limit_exceeded", f"The field {name} has more than {limits.text_characters:,} characters."
            )
        try:
            fields[name].append((part.value or b"").decode())
        except UnicodeDecodeError as error:
            raise invalid(f"The field {name} is not UTF-8.") from error

    config = {
        "MAX_MEMORY_FILE_SIZE": float("inf"),  # otherwise large files are spooled to disk
        "UPLOAD_ERROR_ON_BAD_CTE": True,  # otherwise the parser logs the unknown encoding
    }
    try:
        parser = FormParser(MULTIPART, on_field, on_file, on_end, _boundary(content_type), config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise RequestError(
            400, "bad_request", "The body is not a multipart form, or a header of a part is too long."
        ) from error
    if not complete:
        raise RequestError(400, "bad_request", "The form is cut short: its last boundary is missing.")
    return _from_form(files, fields)


def _boundary(content_type: str) -> bytes:
    """Return the boundary that a Content-Type declares.

    Raises:
        ValueError: it declares none.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ValueError("no boundary")
    return boundary


def _check_field(name: bytes | None, expected: Sequence[str], kind: str) -> str:
    field_name = (name or b"").decode("latin-1")
    if field_name not in expected:
        raise invalid(f"The form has an unknown {kind} field; expected one of {', '.join(expected)}.")
    return field_name


def _from_form(files: list[tuple[str, bytes]], fields: dict[str, list[str]]) -> ParsedRequest:
    """Put files first, then ids, then URLs."""
    file_fields = {name for name, _ in files}
    spelling = _only_spelling([name for name in Spelling if name.images in file_fields or fields[name.image_ids]])
    return ParsedRequest(
        images=[
            *(ImageInput(data=data) for _, data in files),
            *(ImageInput(id=image_id) for image_id in fields[spelling.image_ids]),
            *(as_image(url=url) for url in fields["urls"]),
        ],
        texts=fields["texts"],
        templates=fields["template"] or ["{}"],
        models=fields["models"] or None,
        vectors=fields["vectors"] != ["false"],
        strict=fields["strict"] == ["true"],
        spelling=spelling,
    )
