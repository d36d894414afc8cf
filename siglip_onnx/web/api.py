"""Routes of the HTTP API: admit a request, read and parse its body, fetch its URLs, and compute the reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from .._version import __version__
from ..demo import IMAGES_PATH
from . import answers, schemas
from .bodies import client_gone, declared_bytes, read_body
from .errors import JsonReply, RequestError
from .fetch import Fetcher
from .inference import Inference
from .inputs import JSON, MULTIPART, ImageInput, ParsedRequest, parse_request, parse_url
from .metrics import CONTENT_TYPE, Metrics
from .settings import Settings
from .work import WorkQueue

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

    request: type[schemas.ComputeRequest]
    reply: type[BaseModel]
    answer: Callable[[Inference, ParsedRequest], dict[str, Any]]
    images: bool = False
    texts: bool = False

    @property
    def form_fields(self) -> dict[str, Any]:
        """OpenAPI properties of a multipart body."""
        fields = {"models": _LIST} if self.texts else {"models": _LIST, "vectors": _FLAG}
        return (_IMAGE_FIELDS if self.images else {}) | (_TEXT_FIELDS if self.texts else {}) | fields


CLASSIFY = Route(schemas.ClassifyRequest, schemas.ClassifyReply, answers.classify, images=True, texts=True)
EMBED_IMAGES = Route(schemas.EmbedImagesRequest, schemas.EmbedImagesReply, answers.reply_with_images, images=True)
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
            ("/v1/embed/images", self.embed_images, EMBED_IMAGES),
            ("/v1/embed/texts", self.embed_texts, EMBED_TEXTS),
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

    async def embed_images(self, request: Request) -> Response:
        """Return unit embeddings of images, and cache them under the images' ids."""
        return await self._answer(request, EMBED_IMAGES)

    async def embed_texts(self, request: Request) -> Response:
        """Return unit embeddings of texts."""
        return await self._answer(request, EMBED_TEXTS)

    async def fetch(self, request: Request) -> Response:
        """Fetch a URL, and return its bytes if they are an image."""
        limits = self._settings.limits
        gone = partial(client_gone, request)
        with self._queue.admit(declared_bytes(request.headers, limits)):
            body, content_type = await read_body(request, limits), request.headers.get("content-type", "")
            url = await self._queue.run(partial(parse_url, body, content_type, limits), gone)
            with self._queue.hold(limits.image.max_bytes):
                data = await self._fetch(url)
                await self._queue.run(partial(self._inference.decode, data), gone)
        return Response(data, media_type="application/octet-stream")

    async def models(self) -> Response:
        """Return the served models and the limits of a request."""
        return JsonReply(
            {
                "version": __version__,
                "models": self._inference.models.describe(),
                "limits": self._settings.limits.for_clients(),
                "url_fetch": self._settings.url_fetch,
                "samples": sorted(path.name for path in IMAGES_PATH.glob("*.png")),
            }
        )

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
        with self._queue.admit(declared_bytes(request.headers, limits)):
            body = await read_body(request, limits)
            content_type = request.headers.get("content-type", "")
            parsed, response = await self._queue.run(partial(self._parse, route, body, content_type), gone)
            if response is None:
                with self._queue.hold(limits.body_bytes):
                    parsed = await self._fetch_images(parsed)
                    response = await self._queue.run(partial(self._compute, route, parsed), gone)
            return response

    def _parse(self, route: Route, body: bytes, content_type: str) -> tuple[ParsedRequest, Response | None]:
        """Parse a request and, unless it has URLs to fetch, answer it in the same turn of the queue."""
        limits = self._settings.limits
        parsed = parse_request(body, content_type, route.request, limits, images=route.images, texts=route.texts)
        return parsed, None if parsed.has_urls else self._compute(route, parsed)

    def _compute(self, route: Route, parsed: ParsedRequest) -> Response:
        return JsonReply(route.answer(self._inference, parsed))

    async def _fetch_images(self, parsed: ParsedRequest) -> ParsedRequest:
        """Return the request with files in place of URLs; in total they may be as large as a body."""
        images = []
        total_bytes = 0
        for index, image in enumerate(parsed.images):
            if image.url is None:
                images.append(image)
                continue
            try:
                data = await self._fetch(image.url)
            except RequestError as error:
                raise error.at_image(parsed.spelling, index) from error
            total_bytes += len(data)
            if total_bytes > self._settings.limits.body_bytes:
                raise RequestError(
                    422, "limit_exceeded", "The images of this request are too large in total."
                ).at_image(parsed.spelling, index)
            images.append(ImageInput(data=data))
        return replace(parsed, images=images)

    async def _fetch(self, url: str) -> bytes:
        if not self._settings.url_fetch:
            raise RequestError(403, "url_fetch_off", "This server does not fetch URLs; send the image itself.")
        return await self._fetcher.fetch(url)


def _body_of(schema: type[BaseModel], form_fields: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schema.model_json_schema()}}
    if form_fields:
        content[MULTIPART] = {"schema": {"type": "object", "properties": form_fields}}
    return {"requestBody": {"required": True, "content": content}}
