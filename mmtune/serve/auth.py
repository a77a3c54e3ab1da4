"""Access rules.

- A server on loopback answers requests of its own machine without a token; writes (PUT, DELETE) need the token, and a server
  that was started without one takes no writes.
- All other requests need the token: those to a server on another address, and those that came through a proxy or under another
  host name (a page that resolves its own name to 127.0.0.1 is not this machine's user: DNS rebinding).
- The token comes as `Authorization: Bearer TOKEN`. A browser exchanges it at /login for a cookie that does not contain it.
- Requests that another site's page makes through a user's browser are refused, whatever they carry: their Origin differs.
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
LOGIN_BYTES = 10_000


def session_cookie(token: str) -> str:
    """The cookie's value: an HMAC of the token, from which the token cannot be told."""
    return hmac.new(token.encode(), b"mmtune page", hashlib.sha256).hexdigest()


def _equal(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


@lru_cache(256)
def _is_loopback_name(host: str) -> bool:
    """Whether a request's Host header means this machine."""
    try:
        return is_loopback(urlsplit("//" + host).hostname or "")
    except ValueError:
        return False


class AuthMiddleware:
    """Passes on allowed requests; answers all others, and /login, itself."""

    def __init__(self, app: "ASGIApp", settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """ASGI."""
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the server has no web sockets
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
            raise RequestError(403, "other_site", "another site's page may not send requests to this server")

    def _check_token(self, request: "Request") -> None:
        local, write = self.is_local(request), request.method in WRITES
        if local and not write:
            return
        token = self.settings.token
        if token is None:
            why = "writes need a token" if local else "this server answers its own machine only"
            raise RequestError(403, "no_token", f"{why}: start it with --token")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), token):
            return
        if _equal(request.cookies.get(COOKIE, ""), session_cookie(token)):
            return
        raise RequestError(401, "token", "give the token: Authorization: Bearer TOKEN")

    def is_local(self, request: "Request") -> bool:
        """Whether the request came from this machine, as far as the server can tell."""
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
                    raise RequestError(413, "too_large", "a token is not that long", limit=LOGIN_BYTES)
            given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
            if _equal(given, token):
                response = RedirectResponse("/page/", 303)
                secure = request.url.scheme == "https"
                response.set_cookie(COOKIE, session_cookie(token), httponly=True, samesite="strict", secure=secure)
                return response
            message = "That is not the token."
        page = render("login.html.j2", message=message)
        return HTMLResponse(page, 401 if message else 200, {"Cache-Control": "no-store"})
