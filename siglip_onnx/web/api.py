"""The routes: each reads its body within the limits, waits its turn, and answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .._version import __version__
from ..demo import IMAGES_PATH
from . import answers, schemas
from .bodies import client_gone, place_for, read_body
from .errors import RequestError
from .fetch import Fetcher
from .inputs import JSON, MULTIPART, Ask, read_ask, read_url
from .metrics import CONTENT_TYPE
from .models import PictureSource, ServedModels
from .settings import Settings
from .work import WorkQueue

_FORM: dict[str, Any] = {
    "pictures": {"type": "array", "items": {"type": "string", "format": "binary"}},
    "picture_ids": {"type": "array", "items": {"type": "string"}},
    "urls": {"type": "array", "items": {"type": "string"}},
    "texts": {"type": "array", "items": {"type": "string"}},
    "template": {"type": "array", "items": {"type": "string"}},
    "models": {"type": "array", "items": {"type": "string"}},
    "vectors": {"type": "string", "enum": ["true", "false"]},
}
_PICTURE_FIELDS = ("pictures", "picture_ids", "urls", "models")
_TEXT_FIELDS = ("texts", "template", "models")
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.ErrorReply, "description": "Refused; error.code says why."},
    "5XX": {"model": schemas.ErrorReply, "description": "The model failed."},
}


class Api:
    """What the routes share."""

    def __init__(self, settings: Settings, served: ServedModels, queue: WorkQueue, fetcher: Fetcher) -> None:
        self.settings = settings
        self.served = served
        self.queue = queue
        self.fetcher = fetcher
        self.ready = False

    def router(self) -> APIRouter:
        """Return every route of the API."""
        routes = APIRouter(responses=_ERRORS)
        for path, endpoint, request, reply, fields in (
            ("/v1/classify", self.classify, schemas.ClassifyRequest, schemas.ClassifyReply,
             (*_PICTURE_FIELDS, *_TEXT_FIELDS)),
            ("/v1/embed/images", self.embed_images, schemas.EmbedPicturesRequest, schemas.EmbedPicturesReply,
             (*_PICTURE_FIELDS, "vectors")),
            ("/v1/embed/texts", self.embed_texts, schemas.EmbedTextsRequest, schemas.EmbedTextsReply, _TEXT_FIELDS),
        ):  # fmt: skip
            routes.add_api_route(
                path, endpoint, methods=["POST"], responses={200: {"model": reply}},
                openapi_extra=_body_of(request, fields),
            )  # fmt: skip
        routes.add_api_route(
            "/v1/fetch", self.fetch, methods=["POST"], openapi_extra=_body_of(schemas.FetchRequest),
            responses={200: {"content": {"application/octet-stream": {}}, "description": "The picture's bytes."}},
        )  # fmt: skip
        routes.add_api_route(
            "/v1/models", self.models, methods=["GET"], responses={200: {"model": schemas.ModelsReply}}
        )
        routes.add_api_route("/healthz", self.health, methods=["GET"])
        routes.add_api_route("/readyz", self.readiness, methods=["GET"])
        routes.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse)
        return routes

    async def classify(self, request: Request) -> Response:
        """Say how probably each text describes each picture."""
        return await self._answer(request, schemas.ClassifyRequest, answers.classify, pictures=True, texts=True)

    async def embed_images(self, request: Request) -> Response:
        """Return unit embeddings of pictures, and keep them under their ids."""
        return await self._answer(request, schemas.EmbedPicturesRequest, answers.embed_pictures, pictures=True)

    async def embed_texts(self, request: Request) -> Response:
        """Return unit embeddings of texts."""
        return await self._answer(request, schemas.EmbedTextsRequest, answers.embed_texts, texts=True)

    async def fetch(self, request: Request) -> Response:
        """Fetch the picture that a URL names, and return its bytes if they are a picture."""
        limits = self.settings.limits
        with place_for(request, self.queue, limits):
            url = read_url(await read_body(request, limits), request.headers.get("content-type", ""))
            with self.queue.hold(limits.picture.max_bytes):
                data = await self._fetch(url)
                await self.queue.run(lambda: self.served.check_decodes(data), lambda: client_gone(request))
        return Response(data, media_type="application/octet-stream")

    async def models(self) -> Response:
        """Say which models are served, and the limits of a request."""
        return JSONResponse(
            {
                "version": __version__,
                "models": self.served.describe(),
                "limits": self.settings.limits.for_clients(),
                "url_fetch": self.settings.url_fetch,
                "samples": sorted(path.name for path in IMAGES_PATH.glob("*.png")),
            }
        )

    async def health(self) -> Response:
        """Say that the server runs."""
        return JSONResponse({"status": "ok"})

    async def readiness(self) -> Response:
        """Say whether the models are loaded: 200, or 503."""
        if not self.ready:
            raise RequestError(503, "not_ready", "The models are still being loaded.")
        return JSONResponse({"status": "ready"})

    async def metrics(self) -> Response:
        """Return counters and durations in Prometheus's text format."""
        return PlainTextResponse(self.queue.metrics.text(), media_type=CONTENT_TYPE)

    async def _answer(
        self,
        request: Request,
        schema: type[BaseModel],
        answer: Callable[[ServedModels, Ask], dict[str, Any]],
        *,
        pictures: bool = False,
        texts: bool = False,
    ) -> Response:
        """Read, parse, fetch, compute and write; all but the reading and fetching in a worker thread."""
        limits = self.settings.limits
        with place_for(request, self.queue, limits):
            body = await read_body(request, limits)
            kind = request.headers.get("content-type", "")

            def work(ask: Ask) -> Response:
                return JSONResponse(answer(self.served, ask))

            def parse_and_work() -> Ask | Response:
                ask = read_ask(body, kind, schema, limits, pictures=pictures, texts=texts)
                return ask if any(source.url for source in ask.pictures) else work(ask)

            def gone() -> Coroutine[Any, Any, None]:
                return client_gone(request)

            done = await self.queue.run(parse_and_work, gone)
            if isinstance(done, Response):
                return done
            with self.queue.hold(limits.body_bytes):
                await self._fetch_pictures(done)
                return await self.queue.run(lambda: work(done), gone)

    async def _fetch_pictures(self, ask: Ask) -> None:
        """Put the bytes in the place of each URL; together they may have as many as a body."""
        total = 0
        for number, source in enumerate(ask.pictures):
            if source.url is None:
                continue
            try:
                data = await self._fetch(source.url)
                total += len(data)
                if total > self.settings.limits.body_bytes:
                    raise RequestError(422, "limit_exceeded", "The pictures of this request are too large together.")
            except RequestError as error:
                error.picture = number
                raise
            ask.pictures[number] = PictureSource(data=data)

    async def _fetch(self, url: str) -> bytes:
        if not self.settings.url_fetch:
            raise RequestError(403, "url_fetch_off", "This server fetches no URLs; send the picture itself.")
        return await self.fetcher.fetch(url)


def _body_of(schema: type[BaseModel], fields: tuple[str, ...] = ()) -> dict[str, Any]:
    content = {JSON: {"schema": schema.model_json_schema()}}
    if fields:
        properties = {name: _FORM[name] for name in dict.fromkeys(fields)}
        content[MULTIPART] = {"schema": {"type": "object", "properties": properties}}
    return {"requestBody": {"required": True, "content": content}}
