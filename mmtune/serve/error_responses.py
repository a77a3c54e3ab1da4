"""Errors of the REST API. Every error has one JSON body, {"error": {"code", "message", ...}}."""

from pydantic import JsonValue

from mmtune.contracts import JsonObject


class RequestError(Exception):
    """A request that is refused.

    status: the HTTP status; code: the error's name for programs; message: one line for people; details: further fields of the
    JSON body, such as the limit that was exceeded.
    """

    def __init__(self, status: int, code: str, message: str, **details: JsonValue):
        super().__init__(message)
        # the message may quote half of a surrogate pair, which cannot be encoded
        self.message = message.encode("utf-8", "replace").decode()
        self.status, self.code, self.details = status, code, details

    @property
    def body(self) -> JsonObject:
        """The JSON document of the response."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that HTTP requires with this status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def too_large(limit: int) -> RequestError:
    """413: the request has more than `limit` bytes."""
    return RequestError(413, "too_large", f"the request is over {limit} bytes", limit=limit)


def too_many(limit: int) -> RequestError:
    """429: `limit` requests are being answered already."""
    return RequestError(429, "too_many", f"{limit} requests are under way; try again in a moment", limit=limit)


def invalid(message: str, **details: JsonValue) -> RequestError:
    """422: a field or a value cannot be used."""
    return RequestError(422, "invalid", message, **details)
