"""Access control.

- A server on a loopback address accepts reads from its own machine without a token. Writes (PUT, DELETE) need the token. If
  the server was started without a token, it refuses writes.
- All other requests need the token. These are all requests to a server on another address, and requests through a proxy or
  under another host name. The host name is checked because a web page can let its own name resolve to 127.0.0.1 and so reach
  the server through the user's browser (DNS rebinding).
- The token is sent as `Authorization: Bearer TOKEN`. In a browser, the user enters it at /login and gets a cookie that does
  not contain the token.
- Requests from pages of another site, recognised by their Origin header, are refused even with a valid token or cookie.
"""

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mmtune.html.render import render
from mmtune.serve.error_responses import RequestError
from mmtune.serve.settings import Settings, is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "mmtune"
WRITES = ("PUT", "DELETE", "PATCH")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers that proxies add. Requests with one of them do not count as local."""
LOGIN_BYTES = 10_000
"""Maximum size of the body of POST /login."""


def session_cookie(token: str) -> str:
    """Value of the session cookie: an HMAC of the token, from which the token cannot be recovered."""
    return hmac.new(token.encode(), b"mmtune page", hashlib.sha256).hexdigest()


def _equal(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


@lru_cache(256)
def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        return is_loopback(urlsplit("//" + host).hostname or "")
    except ValueError:
        return False


class AuthMiddleware:
    """ASGI middleware that passes allowed requests on. It answers /login and all refused requests itself."""

    def __init__(self, app: "ASGIApp", settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the server does not use WebSockets
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope, receive)
        try:
            self._check_origin(request)
            if scope["path"] == "/login" and self.settings.token:
                return await (await self._login(request))(scope, receive, send)
            self._check_token(request)
        except RequestError as error:
            if error.status == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return await RedirectResponse("/login", 303)(scope, receive, send)
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_origin(self, request: "Request") -> None:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host", ""):
            raise RequestError(403, "other_site", "requests from pages of another site are refused")

    def _check_token(self, request: "Request") -> None:
        local, write = self.is_local(request), request.method in WRITES
        if local and not write:
            return
        token = self.settings.token
        if token is None:
            why = "writes need a token" if local else "this server accepts requests from its own machine only"
            raise RequestError(403, "no_token", f"{why}: start it with --token")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), token):
            return
        if _equal(request.cookies.get(COOKIE, ""), session_cookie(token)):
            return
        raise RequestError(401, "token", "a token is needed: send the header Authorization: Bearer TOKEN")

    def is_local(self, request: "Request") -> bool:
        """Whether the request appears to come from this machine."""
        loopback = self.settings.loopback and _is_loopback_name(request.headers.get("host", ""))
        return loopback and not any(h in request.headers for h in FORWARDED)

    async def _login(self, request: "Request") -> "Response":
        from urllib.parse import parse_qs

        from starlette.responses import HTMLResponse, RedirectResponse

        token, message = self.settings.token or "", ""
        if request.method == "POST":
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > LOGIN_BYTES:
                    raise RequestError(413, "too_large", "the login form is too large", limit=LOGIN_BYTES)
            given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
            if _equal(given, token):
                response = RedirectResponse("/page/", 303)
                secure = request.url.scheme == "https"
                response.set_cookie(COOKIE, session_cookie(token), httponly=True, samesite="strict", secure=secure)
                return response
            message = "Wrong token."
        page = render("login.html.j2", message=message)
        return HTMLResponse(page, 401 if message else 200, {"Cache-Control": "no-store"})
