"""Who may ask what.

- A server on loopback answers its own machine without a token; writes (PUT, DELETE) need it, and without one there are none.
- Everything else needs the token: a server on another address, and requests that came through a proxy or under another name
  (a page of somewhere else that resolves to 127.0.0.1 is not this machine's user: DNS rebinding).
- The token comes as `Authorization: Bearer TOKEN`; a browser trades it at /login for a cookie that holds no token.
- A page of another site may not ask through a user's browser, whatever it carries: its Origin is not ours.
"""

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mmtune.html.render import render
from mmtune.serve.error_responses import Refusal
from mmtune.serve.settings import Settings, is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "mmtune"
WRITES = ("PUT", "DELETE", "PATCH")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def session(token: str) -> str:
    """What the cookie holds: whoever steals it cannot tell the token."""
    return hmac.new(token.encode(), b"mmtune page", hashlib.sha256).hexdigest()


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


@lru_cache(256)
def _loopback_name(host: str) -> bool:
    """Whether a request's Host means this machine."""
    try:
        return is_loopback(urlsplit("//" + host).hostname or "")
    except ValueError:
        return False


class Guarded:
    """Lets through what may be asked; answers the rest, and /login, itself."""

    def __init__(self, app: "ASGIApp", settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """ASGI."""
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks over a web socket
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope, receive)
        try:
            self._origin(request)
            if scope["path"] == "/login" and self.settings.token:
                return await (await self._login(request))(scope, receive, send)
            self._allowed(request)
        except Refusal as no:
            if no.status == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return await RedirectResponse("/login", 303)(scope, receive, send)
            return await JSONResponse(no.body, no.status, no.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def _origin(self, request: "Request") -> None:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host", ""):
            raise Refusal(403, "other_site", "another site's page may not ask this server")

    def _allowed(self, request: "Request") -> None:
        local, write = self.local(request), request.method in WRITES
        if local and not write:
            return
        token = self.settings.token
        if token is None:
            why = "writes need a token" if local else "this server answers its own machine only"
            raise Refusal(403, "no_token", f"{why}: start it with --token")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), token):
            return
        if _same(request.cookies.get(COOKIE, ""), session(token)):
            return
        raise Refusal(401, "token", "give the token: Authorization: Bearer TOKEN")

    def local(self, request: "Request") -> bool:
        """Whether the request is from this machine, for all that one can tell."""
        here = self.settings.loopback and _loopback_name(request.headers.get("host", ""))
        return here and not any(h in request.headers for h in FORWARDED)

    async def _login(self, request: "Request") -> "Response":
        from starlette.responses import HTMLResponse, RedirectResponse

        token, said = self.settings.token or "", ""
        if request.method == "POST":
            data = b""
            async for chunk in request.stream():
                data += chunk
                if len(data) > 10_000:
                    raise Refusal(413, "too_large", "a token is not that long", limit=10_000)
            from urllib.parse import parse_qs

            given = parse_qs(data.decode("utf-8", "replace")).get("token", [""])[0]
            if _same(given, token):
                response = RedirectResponse("/page/", 303)
                response.set_cookie(
                    COOKIE, session(token), httponly=True, samesite="strict", secure=request.url.scheme == "https"
                )
                return response
            said = "That is not the token."
        return HTMLResponse(render("login.html.j2", message=said), 401 if said else 200, {"Cache-Control": "no-store"})
