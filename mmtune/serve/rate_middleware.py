"""Limit the requests of each client, by token and by address."""

import logging
from typing import TYPE_CHECKING

from mmtune.serve.client_address import limit_key
from mmtune.serve.error_responses import RequestError, rate_limited_error, send_refusal
from mmtune.serve.prometheus import Metrics
from mmtune.serve.rate_limit import RateLimiter
from mmtune.serve.request_info import request_info
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("mmtune.serve")
LOG_SECONDS = 10.0
"""A client that is over its limit is logged once in this time."""


class RateLimitMiddleware:
    """ASGI middleware that refuses requests over a rate with status 429.

    by: "address" limits the client's address, and belongs outside of the access control; "token" limits the token, inside of it
    """

    def __init__(self, app: "ASGIApp", settings: Settings, metrics: Metrics, by: str):
        self.app, self.metrics, self.by = app, metrics, by
        rates = settings.rates
        rate = (rates.per_token if by == "token" else rates.per_address) / settings.workers
        self.limiter, self.logged = RateLimiter(rate, rate * rates.burst), RateLimiter(1 / LOG_SECONDS, 1)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        info = request_info(scope)
        key = limit_key(info.address) if self.by == "address" else info.identity.id if info.identity else ""
        wait = self.limiter.take(key) if key else 0.0
        if not wait:
            return await self.app(scope, receive, send)
        error: RequestError = rate_limited_error(f"too many requests from this {self.by}", wait)
        info.code = error.code
        self.metrics.refused.labels(error.code).inc()
        if not self.logged.take(key):
            who = info.identity.name if info.identity else ""
            log.warning("%s sends too many requests (limit by %s)", f"{info.address} {who}".strip(), self.by)
        await send_refusal(error, scope, receive, send)
