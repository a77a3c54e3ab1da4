"""Errors of the REST API. The body of every error is {"error": {"code", "message", ...}}."""

import math
from typing import TYPE_CHECKING

from pydantic import JsonValue

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class RequestError(Exception):
    """An error that becomes the response to a request.

    status: HTTP status
    code: identifier of the kind of error, for programs
    message: one line, for people
    details: more fields of the JSON body, such as the limit that was exceeded
    """

    def __init__(self, status: int, code: str, message: str, **details: JsonValue):
        super().__init__(message)
        # The message may quote an unpaired surrogate from the request, which cannot be encoded as UTF-8.
        self.message = message.encode("utf-8", "replace").decode()
        self.status, self.code, self.details = status, code, details
        self.retry_after = 1

    @property
    def body(self) -> JsonObject:
        """The JSON body of the response."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that HTTP requires or recommends for this status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(self.retry_after)} if self.status in (429, 503) else {}


async def send_refusal(error: RequestError, scope: "Scope", receive: "Receive", send: "Send") -> None:
    """Send the response of a request that is refused before its body was read.

    If it has a body, the connection is closed: the rest of the body is not waited for.
    """
    from starlette.responses import JSONResponse

    headers = dict(scope["headers"])
    has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    close = {"Connection": "close"} if has_body else {}
    await JSONResponse(error.body, error.status, {**error.headers, **close})(scope, receive, send)


def too_large_error(limit: int) -> RequestError:
    """Create the 413 error for a request of more than `limit` bytes."""
    return RequestError(413, "too_large", f"the request is over {limit} bytes", limit=limit)


def too_slow_error(seconds: float) -> RequestError:
    """Create the 408 error for a body that did not arrive in time."""
    return RequestError(408, "too_slow", f"the request did not arrive within {seconds:g} s")


def too_many_requests_error(limit: int) -> RequestError:
    """Create the 429 error for a request that arrives while `limit` others are in progress."""
    return RequestError(429, "too_many", f"{limit} requests are in progress; try again in a moment", limit=limit)


def rate_limited_error(message: str, seconds: float) -> RequestError:
    """Create the 429 error for a client that must wait for `seconds`."""
    error = RequestError(429, "rate_limited", f"{message}; try again later")
    error.retry_after = max(1, math.ceil(seconds))
    return error


def invalid_error(message: str, **details: JsonValue) -> RequestError:
    """Create the 422 error for a field or value that is not valid."""
    return RequestError(422, "invalid", message, **details)
