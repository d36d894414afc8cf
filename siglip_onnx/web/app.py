"""The ASGI application: routes, page, guards and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._version import __version__
from ..demo import IMAGES_PATH
from ..errors import SiglipOnnxError
from .api import Api
from .errors import RequestError, as_request_error, error_reply
from .fetch import Fetcher
from .guards import Guard
from .inference import Inference, ModelRegistry, Served
from .metrics import Metrics
from .proxies import Proxied
from .settings import Settings
from .work import WorkQueue

STATIC_PATH = Path(__file__).parent / "static"
_log = logging.getLogger(__name__)
_REVALIDATE = {"Cache-Control": "no-cache"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    models: Sequence[Served],
    settings: Settings,
    *,
    fetcher: Fetcher | None = None,
    on_failure: Callable[[SiglipOnnxError], None] = lambda _: None,
) -> ASGIApp:
    """Return the ASGI application.

    Args:
        models: the models to serve side by side.
        settings: settings of the server.
        fetcher: a fetcher to use instead of one with these settings.
        on_failure: called if the models cannot be loaded.
    """
    limits, metrics, registry = settings.limits, Metrics(), ModelRegistry(models)
    queue = WorkQueue(limits, settings.workers, metrics)
    inference = Inference(registry, settings, metrics)
    api = Api(settings, inference, queue, fetcher or _open_fetcher(settings), metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(_load(inference, api, on_failure))
        yield
        loading.cancel()
        queue.close()
        inference.close()

    # FastAPI's own documentation pages load scripts from other servers.
    app = FastAPI(
        title="siglip_onnx", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description=(
            "Probabilities that texts describe images. All errors have the form ErrorReply. To a request with the "
            "field names pictures and picture_ids of version 0.1, the reply says picture, pictures, unknown_picture."
        ),
    )  # fmt: skip
    app.include_router(api.router())
    app.add_api_route("/", _index, include_in_schema=False)
    app.mount("/static", _Files(STATIC_PATH))
    app.mount("/samples", _Files(IMAGES_PATH))
    _add_error_handlers(app)
    return Proxied(_Measure(Guard(app, settings), metrics), settings)


def _open_fetcher(settings: Settings) -> Fetcher:
    return Fetcher(settings.limits, settings.url_domains, networks=settings.url_networks, contact=settings.url_contact)


async def _load(inference: Inference, api: Api, on_failure: Callable[[SiglipOnnxError], None]) -> None:
    try:
        await asyncio.to_thread(inference.warm_up)
    except SiglipOnnxError as error:
        on_failure(error)
    else:
        api.ready = True


def _index(request: Request) -> Response:
    _ignore_ranges(request.scope)
    return FileResponse(STATIC_PATH / "index.html", headers=_REVALIDATE)


def _ignore_ranges(scope: Scope) -> None:
    """Let a file be sent whole, as HTTP allows: files are small, and starlette's errors of ranges are plain text."""
    scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]


class _Files(StaticFiles):
    """Static files that a browser caches but revalidates each time, so that a new version shows at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _ignore_ranges(scope)
        await super().__call__(scope, receive, send)

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers.update(_REVALIDATE)
        return response


def _add_error_handlers(app: FastAPI) -> None:
    """Return every error in the one form."""

    async def reply(_request: Request, error: Exception) -> Response:
        if isinstance(error, SiglipOnnxError):
            refused = as_request_error(error)
            if refused.status >= 500 and refused is not error:
                _log.error("%s", error)
            return error_reply(refused)
        if isinstance(error, HTTPException):
            code = _CODES.get(error.status_code, "bad_request")
            response = error_reply(RequestError(error.status_code, code, f"{error.detail}."))
            response.headers.update(error.headers or {})  # Allow
            return response
        return error_reply(RequestError(500, "internal", "The server failed on this request; see its log."))

    for kind in (SiglipOnnxError, HTTPException, Exception):
        app.add_exception_handler(kind, reply)


class _Measure:
    """Counts and times every request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def watch(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], time.perf_counter() - started)

        await self._app(scope, receive, watch)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self._metrics.count("siglip_request_count", route=route, status=str(status))
        if status < 400:
            self._metrics.count("siglip_request_success", route=route)
        else:
            self._metrics.count("siglip_request_failure", route=route, status=str(status))
        self._metrics.observe("siglip_request_duration", seconds, route=route)
