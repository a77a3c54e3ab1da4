"""How a server says no: one JSON body for every reason, {"error": {"code", "message", ...}}."""

from typing import Any


class Refusal(Exception):
    """A request that is not answered: the HTTP status, a word for programs, a line for people, and more by name."""

    def __init__(self, status: int, code: str, message: str, **more: Any):
        super().__init__(message)
        message = message.encode("utf-8", "replace").decode()  # it may repeat half a character of the caller's
        self.status, self.code, self.message, self.more = status, code, message, more

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document."""
        return {"error": {"code": self.code, "message": self.message, **self.more}}

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP asks to be said with this status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def too_large(limit: int) -> Refusal:
    """413."""
    return Refusal(413, "too_large", f"the request is over {limit} bytes", limit=limit)


def too_many(limit: int) -> Refusal:
    """429."""
    return Refusal(429, "too_many", f"{limit} requests are under way; try again in a moment", limit=limit)


def invalid(message: str, **more: Any) -> Refusal:
    """422."""
    return Refusal(422, "invalid", message, **more)
