"""Errors of the HTTP API, and the one JSON form in which they are returned."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

from ..errors import ImageError, SiglipOnnxError, TextError
from .schemas import Spelling


class RequestError(SiglipOnnxError):
    """A refused request: HTTP ``status``, ``code`` for programs, a message for people.

    ``image`` is the name of the field and the index of the image at fault, if it is one of several.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        image: tuple[Spelling, int] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.image = image
        self.retry_after_s = retry_after_s

    def at_image(self, spelling: Spelling, index: int) -> RequestError:
        """Return the same error, with the index of the image at fault."""
        return RequestError(
            self.status, self.code, str(self), image=(spelling, index), retry_after_s=self.retry_after_s
        )


def invalid(message: str) -> RequestError:
    """Return the error of a request whose fields are not valid."""
    return RequestError(422, "invalid_request", message)


def as_request_error(error: SiglipOnnxError) -> RequestError:
    """Return the error that a client gets for an error of the package."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageError):
        return RequestError(422, error.status, str(error))
    if isinstance(error, TextError):
        # The message quotes the text.
        message = "A text or template cannot be tokenized; a text in its template may have at most 20,000 characters."
        return RequestError(422, "invalid_text", message)
    # The message may contain paths of this machine.
    return RequestError(500, "model_error", "The model failed on this request; see the server's log.")


class JsonReply(JSONResponse):
    """JSON that may contain names which are not valid Unicode; their characters are escaped."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        try:
            return super().render(content)
        except UnicodeEncodeError:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def describe_error(error: RequestError) -> dict[str, Any]:
    """Return an error for programs and for people; neither part contains anything of the request."""
    return {"code": error.code, "message": str(error)}


def error_reply(error: RequestError) -> JsonReply:
    """Return the response for an error."""
    document = describe_error(error)
    headers = {}
    if error.image is not None:
        spelling, index = error.image
        document[spelling.value] = index
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonReply({"error": document}, error.status, headers)
