"""A reply in lines of JSON, each sent as it is computed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import SiglipOnnxError
from .errors import as_request_error, describe_error

JSON_LINES = "application/x-ndjson"
Events = AsyncGenerator[dict[str, Any], None]


def accepts_lines(request: Request) -> bool:
    """Return whether a client asks for lines instead of one document."""
    return JSON_LINES in request.headers.get("accept", "")


class LinesReply(Response):
    """A line of JSON per event; an error after the first is the last line, since the status has been sent."""

    media_type = JSON_LINES

    def __init__(self, first: dict[str, Any], events: Events) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # nginx would otherwise collect the lines
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, and end their work however this ends."""
        del scope, receive

        async def send_line(event: dict[str, Any]) -> None:
            line = json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})

        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send_line(self._first)
            try:
                async for event in self._events:
                    await send_line(event)
            except SiglipOnnxError as error:
                await send_line({"error": describe_error(as_request_error(error))})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
