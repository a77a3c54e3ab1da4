"""Limits the bytes of a request, whatever its headers claim."""

from typing import TYPE_CHECKING

from mmtune.serve.error_responses import RequestError, too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """413 before a byte is read where Content-Length is over the limit, else at the first byte that is."""

    def __init__(self, app: "ASGIApp", limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """ASGI."""
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        refusal = too_large(self.limit)
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
