"""Logs of the server: lines with the id of the request, plain or as JSON, and one line a request."""

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.serve.prometheus import route_of
from mmtune.serve.request_info import current_request, request_info
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("mmtune.serve.access")
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
"""Characters that could forge a line of the log, or control a terminal."""


class PlainFormatter(logging.Formatter):
    """Lines for people: time, level, message, and the request's id. Control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        info = current_request.get()
        message = CONTROL.sub(lambda m: repr(m[0])[1:-1], record.getMessage())
        line = f"{at} {record.levelname} {message}" + (f" [{info.id}]" if info else "")
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON document a line: at, level, message, request (its id), and the fields of a line about a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: JsonObject = {"at": at, "level": record.levelname.lower(), "message": record.getMessage()}
        if info := current_request.get():
            line["request"] = info.id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class RequestLogMiddleware:
    """The outermost ASGI middleware: gives each request an id and the client's address, and logs it when it has ended.

    The line has the route's pattern, never the path, the query string, a header or a body: these can hold ids, which must
    be erasable, and secrets.

    stopping: whether the server is about to stop; responses then end their connections
    """

    def __init__(self, app: "ASGIApp", settings: Settings, stopping: Callable[[], bool]):
        self.app, self.proxies, self.enabled, self.stopping = app, settings.proxies, settings.access_log, stopping

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        info, begin, status, received, sent = request_info(scope, self.proxies), time.perf_counter(), 0, 0, 0

        async def counting_receive() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def noting_send(message: "Message") -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", info.id.encode())]
                if self.stopping():  # so that the client opens its next connection elsewhere
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            sent += len(message.get("body", b""))
            await send(message)

        previous = current_request.set(info)
        try:
            await self.app(scope, counting_receive, noting_send)
        except Exception:
            status = status or 500
            raise
        finally:
            if self.enabled:
                route, seconds = route_of(scope), time.perf_counter() - begin
                fields = {
                    "client": info.address,
                    "token": info.identity.name if info.identity else None,
                    "method": scope["method"][:16],
                    "route": route,
                    "status": status or 499,  # nothing was sent: the client had gone
                    "code": info.code or None,
                    "seconds": round(seconds, 6),
                    "bytes_in": received,
                    "bytes_out": sent,
                }
                line = f"{fields['client']} {fields['token'] or '-'} {fields['method']} {route} {fields['status']}"
                log.info(f"{line} {info.code} {1000 * seconds:.1f} ms".replace("  ", " "), extra={"fields": fields})
            current_request.reset(previous)


def configure_logs(settings: Settings, quiet: bool) -> None:
    """Send the server's logs to standard error in the format of the settings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log == "json" else PlainFormatter())
    for name, level in (("mmtune.serve", logging.WARNING if quiet else logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    log.setLevel(logging.INFO)  # the line about a request is asked for, so that --quiet does not turn it off
