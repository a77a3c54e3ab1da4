"""Limit the size of request bodies, counted as they arrive, so that a wrong Content-Length does not help."""

from typing import TYPE_CHECKING

from mmtune.serve.error_responses import RequestError, too_large_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """ASGI middleware that refuses bodies over the limit with status 413.

    If Content-Length exceeds the limit, the request is refused before its body is read; otherwise as soon as too many bytes
    have arrived.
    """

    def __init__(self, app: "ASGIApp", limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        refusal = too_large_error(self.limit)
        if not length.isdigit() or int(length) > self.limit:
            return await JSONResponse(refusal.body, refusal.status, {"Connection": "close"})(scope, receive, send)
        received, started = 0, False

        async def counting_receive() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise refusal
            return message

        async def noting_send(message: "Message") -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counting_receive, noting_send)
        except RequestError as error:
            if started:
                raise
            await JSONResponse(error.body, error.status, {"Connection": "close"})(scope, receive, send)
