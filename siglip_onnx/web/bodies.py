"""Bodies of requests, read into memory and counted as they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from .errors import RequestError
from .settings import Limits
from .work import SLOW_BODY_SECONDS, WorkQueue

Result = TypeVar("Result")


def declared_bytes(headers: Headers, limits: Limits) -> int:
    """Return the Content-Length of a body, or the limit if the header declares none; the guard has checked its form.

    Raises:
        RequestError: it exceeds the limit.
    """
    declared = headers.get("content-length")
    if declared is None:
        return limits.body_bytes
    if len(declared) > 15 or int(declared) > limits.body_bytes:
        raise _too_large(limits)
    return int(declared)


async def read_body(request: Request, limits: Limits, queue: WorkQueue) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: it is too large, arrives too slowly, or the client disconnected.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds) as deadline:
            with queue.receiving(deadline):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise _too_large(limits)
    except TimeoutError as error:
        raise RequestError(
            408,
            "body_too_slow",
            f"The body did not arrive within {limits.body_seconds:.0f} seconds, or the {SLOW_BODY_SECONDS:.0f} seconds "
            "that a busy server waits.",
        ) from error
    except ClientDisconnect as error:
        raise RequestError(499, "client_gone", "The client disconnected while it sent its body.") from error
    return bytes(body)


async def client_gone(request: Request) -> None:
    """Wait until the client of a request whose body was read disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, Result], gone: Callable[[], Awaitable[None]]) -> Result:
    """Return the result of ``work``; cancel it if the client is ``gone`` before.

    Raises:
        RequestError: the client disconnected.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "client_gone", "The client disconnected before its images were fetched.")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        413, "body_too_large", f"The body has more than the {limits.body_bytes:,} bytes allowed; send fewer images."
    )
