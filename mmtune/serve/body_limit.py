"""No request is larger than it may be, whatever it says of itself."""

from typing import TYPE_CHECKING

from mmtune.serve.error_responses import Refusal, too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Sized:
    """413 before a byte is read where the length is told, else at the byte that is too many."""

    def __init__(self, app: "ASGIApp", limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """ASGI."""
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        no = too_large(self.limit)
        if not told.isdigit() or int(told) > self.limit:
            return await JSONResponse(no.body, no.status, {"Connection": "close"})(scope, receive, send)
        seen, started = 0, False

        async def counted() -> "Message":
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise no
            return message

        async def told_start(message: "Message") -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, told_start)
        except Refusal as refused:
            if started:
                raise
            await JSONResponse(refused.body, refused.status, {"Connection": "close"})(scope, receive, send)
