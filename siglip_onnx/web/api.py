"""Routes of the HTTP API: admit a request, read and parse its body, fetch its URLs, and compute the reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from .. import demo
from .._version import __version__
from ..demo import IMAGES_PATH
from . import answers, openai, schemas
from .bodies import client_gone, declared_bytes, read_body, unless_gone
from .errors import JsonReply, RequestError, invalid
from .fetch import Fetcher
from .inference import Inference, name_of
from .inputs import (
    JSON,
    MULTIPART,
    ImageInput,
    ParsedRequest,
    decode_data_url,
    is_data_url,
    parse_request,
    parse_url,
)
from .metrics import CONTENT_TYPE, Metrics
from .settings import Limits, Settings
from .streaming import Events, LinesReply, accepts_lines
from .work import Steps, WorkQueue

_FLAG: dict[str, Any] = {"type": "string", "enum": ["true", "false"]}
_LIST: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_FILES: dict[str, Any] = {"type": "array", "items": {"type": "string", "format": "binary"}}
_IMAGE_FIELDS: dict[str, Any] = {
    "images": _FILES,
    "image_ids": _LIST,
    "pictures": _FILES | {"deprecated": True},
    "picture_ids": _LIST | {"deprecated": True},
    "urls": _LIST,
}
_TEXT_FIELDS: dict[str, Any] = {"texts": _LIST, "template": _LIST}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.ErrorReply, "description": "The request was refused; see error.code."},
    "5XX": {"model": schemas.ErrorReply, "description": "The model failed."},
}


@dataclass(frozen=True)
class Route:
    """A route that computes: the schemas of its request and reply, and the function that makes one from the other."""

    request: type[BaseModel]
    reply: type[BaseModel]
    answer: Callable[[Inference, Any], Any]  # of what parse returns
    images: bool = False
    texts: bool = False

    def parse(self, body: bytes, content_type: str, limits: Limits) -> ParsedRequest:
        """Parse a body.

        Raises:
            RequestError: it is malformed, of another type, or exceeds a limit.
        """
        schema = cast("type[schemas.ComputeRequest]", self.request)
        return parse_request(body, content_type, schema, limits, images=self.images, texts=self.texts)

    @property
    def form_fields(self) -> dict[str, Any]:
        """OpenAPI properties of a multipart body."""
        fields = {"models": _LIST} | ({"strict": _FLAG} if self.images else {})
        fields |= {} if self.texts else {"vectors": _FLAG}
        return (_IMAGE_FIELDS if self.images else {}) | (_TEXT_FIELDS if self.texts else {}) | fields


class EmbeddingsRoute(Route):
    """The route whose requests have OpenAI's form."""

    @property
    def form_fields(self) -> dict[str, Any]:
        """None: bodies are JSON."""
        return {}

    def parse(self, body: bytes, content_type: str, limits: Limits) -> ParsedRequest:
        """Parse a body; see :meth:`Route.parse`."""
        return openai.parse_embeddings(body, content_type, limits)


class ExplainRoute(Route):
    """The route whose requests have one image, of which the pixels are needed."""

    @property
    def form_fields(self) -> dict[str, Any]:
        """OpenAPI properties of a multipart body."""
        return {"images": _FILES, "urls": _LIST} | _TEXT_FIELDS | {"models": _LIST}

    def parse(self, body: bytes, content_type: str, limits: Limits) -> ParsedRequest:
        """Parse a body; see :meth:`Route.parse`."""
        parsed = super().parse(body, content_type, replace(limits, images=1))
        if parsed.images[0].id is not None:
            raise invalid(
                "images: The server keeps embeddings, not images, and needs the pixels; send the file, not its id."
            )
        return replace(parsed, strict=True)


CLASSIFY = Route(schemas.ClassifyRequest, schemas.ClassifyReply, answers.classify, images=True, texts=True)
EXPLAIN = ExplainRoute(schemas.ExplainRequest, schemas.ExplainReply, answers.explain, images=True, texts=True)
EMBED_IMAGES = Route(schemas.EmbedImagesRequest, schemas.EmbedImagesReply, answers.reply_with_images, images=True)
EMBEDDINGS = EmbeddingsRoute(openai.EmbeddingsRequest, openai.EmbeddingsReply, openai.reply_with_embeddings)
EMBED_TEXTS = Route(schemas.EmbedTextsRequest, schemas.EmbedTextsReply, answers.reply_with_texts, texts=True)


class Api:
    """The routes and what they share."""

    def __init__(
        self, settings: Settings, inference: Inference, queue: WorkQueue, fetcher: Fetcher, metrics: Metrics
    ) -> None:
        self._settings, self._inference, self._queue = settings, inference, queue
        self._fetcher, self._metrics = fetcher, metrics
        self.ready = False

    def router(self) -> APIRouter:
        """Return every route of the API."""
        router = APIRouter(responses=_ERRORS)
        for path, endpoint, route in (
            ("/v1/classify", self.classify, CLASSIFY),
            ("/v1/explain", self.explain, EXPLAIN),
            ("/v1/embed/images", self.embed_images, EMBED_IMAGES),
            ("/v1/embed/texts", self.embed_texts, EMBED_TEXTS),
            ("/v1/embeddings", self.embeddings, EMBEDDINGS),
        ):
            router.add_api_route(
                path, endpoint, methods=["POST"], responses={200: {"model": route.reply}},
                openapi_extra=_body_of(route.request, route.form_fields),
            )  # fmt: skip
        router.add_api_route(
            "/v1/fetch", self.fetch, methods=["POST"], openapi_extra=_body_of(schemas.FetchRequest),
            responses={200: {"content": {"application/octet-stream": {}}, "description": "The image file."}},
        )  # fmt: skip
        router.add_api_route(
            "/v1/models", self.models, methods=["GET"], responses={200: {"model": schemas.ModelsReply}}
        )
        router.add_api_route("/healthz", self.health, methods=["GET"])
        router.add_api_route("/readyz", self.readiness, methods=["GET"])
        router.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse)
        return router

    async def classify(self, request: Request) -> Response:
        """Return the probability that each text describes each image."""
        return await self._answer(request, CLASSIFY)

    async def explain(self, request: Request) -> Response:
        """Return where in an image the evidence for each text lies, by occlusion.

        With ``Accept: application/x-ndjson`` the reply has lines: ``done`` and ``total`` runs after each run, then a
        ``result`` or an ``error``.
        """
        events = self._explain(request)
        first = await anext(events)
        if accepts_lines(request):
            return LinesReply(first, events)
        *_, last = [event async for event in events]
        return JsonReply(last["result"])

    async def _explain(self, request: Request) -> Events:
        """Yield the events of :func:`answers.explain`; each run of a model is one turn of the queue."""
        limits = self._settings.limits
        gone = partial(client_gone, request)
        with contextlib.ExitStack() as held:
            arrived = held.enter_context(self._queue.admit(declared_bytes(request.headers, limits)))
            body, content_type = await read_body(request, limits, self._queue), request.headers.get("content-type", "")
            arrived(len(body))
            parsed = await self._queue.run(partial(EXPLAIN.parse, body, content_type, limits), gone)
            if parsed.has_urls:
                held.enter_context(self._queue.hold(limits.body_bytes))
                parsed = await unless_gone(self._queue.fetch(self._fetch_images(parsed)), gone)
            events, event = EXPLAIN.answer(self._inference, parsed), dict[str, Any]()
            while "result" not in event:
                event = await self._queue.run_steps(_next_event(events), gone)
                yield event

    async def embed_images(self, request: Request) -> Response:
        """Return unit embeddings of images, and cache them under the images' ids."""
        return await self._answer(request, EMBED_IMAGES)

    async def embed_texts(self, request: Request) -> Response:
        """Return unit embeddings of texts."""
        return await self._answer(request, EMBED_TEXTS)

    async def embeddings(self, request: Request) -> Response:
        """Return unit embeddings of texts and images in the form of OpenAI's API."""
        return await self._answer(request, EMBEDDINGS)

    async def fetch(self, request: Request) -> Response:
        """Fetch a URL, and return its bytes if they are an image."""
        limits = self._settings.limits
        gone = partial(client_gone, request)
        with self._queue.admit(declared_bytes(request.headers, limits)) as arrived:
            body, content_type = await read_body(request, limits, self._queue), request.headers.get("content-type", "")
            arrived(len(body))
            url = await self._queue.run(partial(parse_url, body, content_type, limits), gone)
            with self._queue.hold(limits.image.max_bytes):
                data = await unless_gone(self._queue.fetch(self._fetch(url)), gone)
                await self._queue.run(partial(self._inference.check_image, data), gone)
        return Response(data, media_type="application/octet-stream")

    async def models(self) -> Response:
        """Return the served models and the limits of a request."""
        return Response(self._models_body, media_type="application/json")

    @cached_property
    def _models_body(self) -> bytes:
        """The body of that reply, which is written once: with 20,000 labels that takes 8 ms."""
        reply = JsonReply(
            {
                "version": __version__,
                "models": self._inference.models.describe(),
                "object": "list",  # this and data: in the form of OpenAI's API
                "data": [
                    {"id": model_id, "object": "model", "created": 0, "owned_by": "siglip_onnx"}
                    for model_id in self._inference.models.select(None)
                ],
                "limits": self._settings.limits.for_clients(),
                "url_fetch": self._settings.fetches_urls,
                "samples": self._samples(),
            }
        )
        return bytes(reply.body)

    def _samples(self) -> list[str]:
        """Return the names of the sample images, which only the demo model knows."""
        models = (self._inference.models[model_id] for model_id in self._inference.models.select(None))
        if all(name_of(model) != demo.NAME for model in models):
            return []
        return sorted(path.name for path in IMAGES_PATH.glob("*.png"))

    async def health(self) -> Response:
        """Return 200 while the server runs."""
        return JsonReply({"status": "ok"})

    async def readiness(self) -> Response:
        """Return 200 once the models are loaded, 503 before."""
        if not self.ready:
            raise RequestError(503, "not_ready", "The models are still loading.")
        return JsonReply({"status": "ready"})

    async def metrics(self) -> Response:
        """Return counters and durations in Prometheus's text format."""
        return PlainTextResponse(self._metrics.text(self._queue.size), media_type=CONTENT_TYPE)

    async def _answer(self, request: Request, route: Route) -> Response:
        """Answer a request; bodies and URLs are read here, all else runs in a worker thread."""
        limits = self._settings.limits
        gone = partial(client_gone, request)
        with self._queue.admit(declared_bytes(request.headers, limits)) as arrived:
            body = await read_body(request, limits, self._queue)
            arrived(len(body))
            content_type = request.headers.get("content-type", "")
            parsed, response = await self._queue.run_steps(self._parse(route, body, content_type), gone)
            if response is None:
                with self._queue.hold(limits.body_bytes):
                    parsed = await unless_gone(self._queue.fetch(self._fetch_images(parsed)), gone)
                    response = await self._queue.run_steps(self._compute(route, parsed), gone)
            return response

    def _parse(self, route: Route, body: bytes, content_type: str) -> Steps[tuple[ParsedRequest, Response | None]]:
        """Parse a request and, unless it has URLs to fetch, begin to answer it in the same turn of the queue."""
        parsed = route.parse(body, content_type, self._settings.limits)
        return parsed, None if parsed.has_urls else (yield from self._compute(route, parsed))

    def _compute(self, route: Route, parsed: ParsedRequest) -> Steps[Response]:
        return JsonReply((yield from route.answer(self._inference, parsed)))

    async def _fetch_images(self, parsed: ParsedRequest) -> ParsedRequest:
        """Return the request with files, or errors, in place of URLs.

        In total the files may be as large as a body, and take 15 s; the remaining URLs then get an error.

        Raises:
            RequestError: a URL of a strict request cannot be fetched.
        """
        images: list[ImageInput] = []
        total_bytes = 0
        try:
            async with self._fetcher.deadline():
                for image in parsed.images:
                    if image.url is None:
                        images.append(image)
                        continue
                    fetched = await self._fetch_image(image.url, strict=parsed.strict)
                    total_bytes += len(fetched.data or b"")
                    if total_bytes > self._settings.limits.body_bytes:
                        raise RequestError(422, "limit_exceeded", "The images of this request are too large in total.")
                    images.append(fetched)
        except RequestError as error:
            if parsed.strict:
                raise error.at_image(parsed.spelling, len(images)) from error
            rest = parsed.images[len(images) :]
            images += [image if image.url is None else ImageInput(error=error) for image in rest]
        return replace(parsed, images=images)

    async def _fetch_image(self, url: str, *, strict: bool) -> ImageInput:
        try:
            return ImageInput(data=await self._fetch(url))
        except RequestError as error:
            if strict:
                raise
            return ImageInput(error=error)

    async def _fetch(self, url: str) -> bytes:
        if is_data_url(url):
            return await asyncio.to_thread(decode_data_url, url)
        if not self._settings.fetches_urls:
            raise RequestError(403, "url_fetch_off", "This server does not fetch URLs; send the image itself.")
        return await self._fetcher.fetch(url)


def _next_event(events: Iterator[dict[str, Any] | None]) -> Steps[dict[str, Any]]:
    """Return the next event; others may have their turn where there is None."""
    while (event := next(events)) is None:
        yield
    return event


def _body_of(schema: type[BaseModel], form_fields: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schema.model_json_schema()}}
    if form_fields:
        content[MULTIPART] = {"schema": {"type": "object", "properties": form_fields}}
    return {"requestBody": {"required": True, "content": content}}
