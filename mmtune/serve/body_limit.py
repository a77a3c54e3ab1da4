"""Limit the size, the time and the number of request bodies, on every route, while they arrive.

Bytes are counted as they arrive, so that a wrong Content-Length does not help. A request takes a place among the searches in
progress only after its body has arrived (see `mmtune.serve.routes`), so that slow bodies keep no place from others.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmtune.serve.client_address import limit_key
from mmtune.serve.error_responses import RequestError, send_refusal, too_large_error, too_slow_error
from mmtune.serve.prometheus import Metrics
from mmtune.serve.request_info import request_info
from mmtune.serve.settings import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """ASGI middleware that refuses bodies.

    413: over `max_bytes`, before the body is read if Content-Length says so, otherwise as soon as too many bytes have arrived
    408: not complete within `body_seconds`
    429: `bodies_per_address` bodies are arriving from this address already
    503: all bodies together take `max_arriving` bytes
    """

    def __init__(self, app: "ASGIApp", limits: Limits, metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.bytes = 0
        self.arriving: Counter[str] = Counter()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limits.max_bytes:
            return await self._refuse(too_large_error(self.limits.max_bytes), scope, receive, send)
        if int(length) == 0 and b"transfer-encoding" not in headers:
            return await self.app(scope, receive, send)
        address = limit_key(request_info(scope).address)
        if self.arriving[address] >= self.limits.bodies_per_address:
            limit = self.limits.bodies_per_address
            busy = RequestError(429, "too_many_bodies", f"{limit} bodies are arriving from this address", limit=limit)
            return await self._refuse(busy, scope, receive, send)
        await _Body(self, address, scope, receive, send).run()

    async def _refuse(self, error: RequestError, scope: "Scope", receive: "Receive", send: "Send") -> None:
        info = request_info(scope)
        if info.code != error.code:  # else the application's own error handler has counted it
            info.code = error.code
            self.metrics.refused.labels(error.code).inc()
        await send_refusal(error, scope, receive, send)

    @contextlib.contextmanager
    def counted(self, address: str) -> Iterator[None]:
        """Context manager that counts a body as arriving."""
        self.arriving[address] += 1
        self.metrics.arriving.inc()
        try:
            yield
        finally:
            self.metrics.arriving.dec()
            self.arriving[address] -= 1
            if not self.arriving[address]:
                del self.arriving[address]


class _Body:
    """One request with a body. A refusal replaces the response of the application, if that has not started."""

    def __init__(self, middleware: BodyLimitMiddleware, address: str, scope: "Scope", receive: "Receive", send: "Send"):
        self.middleware, self.limits, self.scope = middleware, middleware.limits, scope
        self.receive, self.send = receive, send
        self.received, self.started = 0, False
        self.refusal: RequestError | None = None
        self.end: float | None = asyncio.get_running_loop().time() + self.limits.body_seconds
        self.counting = contextlib.ExitStack()
        self.counting.enter_context(middleware.counted(address))

    async def run(self) -> None:
        try:
            await self.middleware.app(self.scope, self.counting_receive, self.noting_send)
        except Exception:  # an application inside may have turned the refusal into an error of its own
            if self.started or self.refusal is None:
                raise
        finally:
            self.counting.close()
            self.middleware.bytes -= self.received
        if self.refusal is not None and not self.started:
            await self.middleware._refuse(self.refusal, self.scope, self.receive, self.send)

    async def counting_receive(self) -> "Message":
        try:
            async with asyncio.timeout_at(self.end):
                message = await self.receive()
        except TimeoutError:
            raise self.refused(too_slow_error(self.limits.body_seconds)) from None
        size = len(message.get("body", b""))
        self.received += size
        self.middleware.bytes += size
        if self.received > self.limits.max_bytes:
            raise self.refused(too_large_error(self.limits.max_bytes))
        if self.middleware.bytes > self.limits.max_arriving:
            raise self.refused(RequestError(503, "busy", "too many bytes are arriving at once; try again in a moment"))
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.counting.close()
            self.end = None  # what is received from now on is the end of the connection, which may take any time
        return message

    def refused(self, error: RequestError) -> RequestError:
        self.refusal = self.refusal or error
        return self.refusal

    async def noting_send(self, message: "Message") -> None:
        if self.refusal is not None and not self.started:
            return  # `run` sends the refusal instead
        self.started = True
        await self.send(message)
