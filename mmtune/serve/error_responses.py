"""Errors of the REST API. The body of every error is {"error": {"code", "message", ...}}."""

from pydantic import JsonValue

from mmtune.contracts import JsonObject


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

    @property
    def body(self) -> JsonObject:
        """The JSON body of the response."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that HTTP requires or recommends for this status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def too_large_error(limit: int) -> RequestError:
    """Create the 413 error for a request of more than `limit` bytes."""
    return RequestError(413, "too_large", f"the request is over {limit} bytes", limit=limit)


def too_many_requests_error(limit: int) -> RequestError:
    """Create the 429 error for a request that arrives while `limit` others are in progress."""
    return RequestError(429, "too_many", f"{limit} requests are in progress; try again in a moment", limit=limit)


def invalid_error(message: str, **details: JsonValue) -> RequestError:
    """Create the 422 error for a field or value that is not valid."""
    return RequestError(422, "invalid", message, **details)
