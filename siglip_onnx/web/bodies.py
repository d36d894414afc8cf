"""Reading a request's body into memory, counted while it arrives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from .errors import RequestError
from .limits import Limits
from .work import WorkQueue


@contextlib.contextmanager
def place_for(request: Request, queue: WorkQueue, limits: Limits) -> Iterator[None]:
    """Hold a place in the queue for a request, by what its header says.

    Raises:
        RequestError: its body is too large, or there is no place.
    """
    with queue.admit(declared_bytes(request.headers, limits)):
        yield


def declared_bytes(headers: Headers, limits: Limits) -> int:
    """Return how many bytes a body may have: what its header says, or the most that is allowed.

    Raises:
        RequestError: more than is allowed.
    """
    declared = headers.get("content-length")
    if declared is None:
        return limits.body_bytes
    if not declared.isascii() or not declared.isdigit():
        raise RequestError(400, "bad_request", "Content-Length is no number.")
    if len(declared) > 15 or int(declared) > limits.body_bytes:
        raise _too_large(limits)
    return int(declared)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: it is too large, arrives too slowly, or the client went away.
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
        raise RequestError(499, "client_gone", "The client went away while it sent its body.") from error
    return bytes(body)


async def client_gone(request: Request) -> None:
    """Return when the client of a request whose body was read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        413, "body_too_large", f"The body has more than the {limits.body_bytes:,} bytes allowed; send fewer pictures."
    )
