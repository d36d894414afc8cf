"""What the server refuses, and the one form in which it says so."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from ..errors import ImageError, SiglipOnnxError, TextError


class RequestError(SiglipOnnxError):
    """A request that is refused: ``status`` is HTTP's, ``code`` is for programs, the message for people."""

    def __init__(
        self, status: int, code: str, message: str, *, picture: int | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.picture = picture
        self.retry_after_s = retry_after_s


def invalid(message: str) -> RequestError:
    """Return the error of a request that says something it cannot mean."""
    return RequestError(422, "invalid_request", message)


def as_request_error(error: SiglipOnnxError) -> RequestError:
    """Return what an error of the package is to a client."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageError):
        return RequestError(422, error.status, str(error))
    if isinstance(error, TextError):
        return RequestError(422, "invalid_text", str(error))
    # Its message may name folders of this machine.
    return RequestError(500, "model_error", "The model failed on this request; the server's log says why.")


def error_reply(error: RequestError) -> JSONResponse:
    """Return the response that tells of an error."""
    document: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.picture is not None:
        document["picture"] = error.picture
    headers = {}
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": document}, error.status, headers)
