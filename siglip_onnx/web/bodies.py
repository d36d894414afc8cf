"""Bodies of requests, read into memory and counted as they arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from .errors import RequestError
from .settings import Limits


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


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: it is too large, arrives too slowly, or the client disconnected.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError as error:
        raise RequestError(
            408, "body_too_slow", f"The body did not arrive within {limits.body_seconds:.0f} seconds."
        ) from error
    except ClientDisconnect as error:
        raise RequestError(499, "client_gone", "The client disconnected while it sent its body.") from error
    return bytes(body)


async def client_gone(request: Request) -> None:
    """Wait until the client of a request whose body was read disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        413, "body_too_large", f"The body has more than the {limits.body_bytes:,} bytes allowed; send fewer images."
    )
