"""Access control: who sent a request, and what the request needs.

- A server without tokens, on a loopback address, accepts reads from its own machine, and no writes. A request counts as local
  if its Host header names this machine, because a web page can let its own name resolve to 127.0.0.1 (DNS rebinding), and if no
  proxy has added a header. A proxy that says `Host: 127.0.0.1` and adds no header cannot be recognised: give a token.
- A server with tokens asks every request for one, local or not: the token of --token, which may do everything, or one of the
  token file, whose role must suffice (`required_role`).
- A token is sent as `Authorization: Bearer TOKEN`. In a browser, the user enters it at /login and gets a signed cookie that does
  not contain it. Wrong tokens are logged, and an address that sent too many of them has to wait.
- Requests from pages of another site, recognised by their Origin header, are refused even with a valid token or cookie.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mmtune.html.render import render
from mmtune.serve.client_address import limit_key
from mmtune.serve.error_responses import RequestError, rate_limited_error, send_refusal
from mmtune.serve.rate_limit import RateLimiter
from mmtune.serve.request_info import RequestInfo, request_info
from mmtune.serve.settings import Settings, is_loopback
from mmtune.serve.token_file import Identity, TokenFile

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("mmtune.serve")
COOKIE = "mmtune"
SESSION_SECONDS = 12 * 3600
WRITES = ("PUT", "DELETE", "PATCH")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
"""Headers that proxies add. Requests with one of them do not count as local."""
LOGIN_BYTES = 10_000
"""Maximum size of the body of POST /login."""
ADMIN_ROUTES = ("/shadow", "/monitoring")
FEEDBACK_ROUTES = ("/feedback", "/page")
"""The search page can record judgments, so it needs the role, too."""


def required_role(method: str, path: str) -> str:
    """Return the role that a request needs."""
    if method in WRITES:
        return "write"
    if _below(path, ADMIN_ROUTES):
        return "admin"
    return "feedback" if _below(path, FEEDBACK_ROUTES) else "search"


def _below(path: str, routes: tuple[str, ...]) -> bool:
    return any(path == route or path.startswith(route + "/") for route in routes)


def session_cookie(key: bytes, identity: Identity, expires: int) -> str:
    """Return the value of a session cookie: id of the token, end of the session, and a signature that depends on the token."""
    signed = hmac.new(key, f"{identity.id}.{expires}.{identity.hash}".encode(), hashlib.sha256).hexdigest()
    return f"{identity.id}.{expires}.{signed}"


def _equal(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ, or on their lengths."""
    digests = [hashlib.sha256(s.encode("utf-8", "replace")).digest() for s in (given, expected)]
    return hmac.compare_digest(*digests)


@lru_cache(256)
def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        return is_loopback(urlsplit("//" + host).hostname or "")
    except ValueError:
        return False


class AuthMiddleware:
    """ASGI middleware that passes allowed requests on. It answers /login and all refused requests itself.

    It must be inside of `RequestLogMiddleware`, which knows the client's address.
    """

    def __init__(self, app: "ASGIApp", settings: Settings):
        self.app, self.settings = app, settings
        self.tokens = TokenFile(settings.tokens) if settings.tokens is not None else None
        failures = settings.rates.failures / settings.workers
        self.failures = RateLimiter(failures / 60, failures)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        from starlette.requests import Request
        from starlette.responses import RedirectResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the server does not use WebSockets
            return await send({"type": "websocket.close", "code": 1008})
        request, info = Request(scope, receive), request_info(scope)
        try:
            self._check_origin(request)
            if scope["path"] == "/login" and self.settings.has_tokens:
                return await (await self._login(request, info))(scope, receive, send)
            info.identity = self._identify(request, info)
            role = required_role(request.method, scope["path"])
            if not info.identity.may(role):
                raise RequestError(403, "role", f"this needs a token of role {role}; this one has {info.identity.role}")
        except RequestError as error:
            info.code = error.code
            if error.status == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return await RedirectResponse("/login", 303)(scope, receive, send)
            return await send_refusal(error, scope, receive, send)
        await self.app(scope, receive, send)

    def _check_origin(self, request: "Request") -> None:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host", ""):
            raise RequestError(403, "other_site", "requests from pages of another site are refused")

    def _identify(self, request: "Request", info: RequestInfo) -> Identity:
        """Return who sent a request. Raises RequestError 401 or 429, or 403 if the server has no token."""
        if not self.settings.has_tokens:
            local = self.is_local(request)
            if local and request.method not in WRITES:
                return Identity("local", "admin")
            why = "writes need a token" if local else "this server accepts requests from its own machine only"
            raise RequestError(403, "no_token", f"{why}: start it with --token or --tokens")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._verified(given.strip(), info)
        identity = self._session(request.cookies.get(COOKIE, ""))
        if identity is None:
            raise RequestError(401, "token", "a token is needed: send the header Authorization: Bearer TOKEN")
        return identity

    def _verified(self, token: str, info: RequestInfo) -> Identity:
        """Return the identity of a token. Raises RequestError 401, or 429 after too many wrong tokens from the same address."""
        if self.tokens is not None and (known := self.tokens.verify(token)):
            return known  # its 256 random bits cannot be guessed, so that others at this address cannot lock it out
        key = limit_key(info.address)
        if wait := self.failures.wait(key):
            raise rate_limited_error("too many wrong tokens from this address", wait)
        if self.settings.token is not None and _equal(token, self.settings.token):
            return self._own_token()
        self.failures.take(key)
        log.warning("a wrong token was sent from %s", info.address)
        raise RequestError(401, "token", "this token is not valid")

    def _own_token(self) -> Identity:
        """The identity of the token of --token. Its hash makes sessions end when the token is changed."""
        digest = hmac.new(self.settings.session_key, (self.settings.token or "").encode(), hashlib.sha256)
        return Identity("token", "admin", "0", digest.hexdigest())

    def _session(self, cookie: str) -> Identity | None:
        """Return the identity of a session cookie; None if it was not signed here, is over, or its token is no longer valid."""
        id, _, rest = cookie.partition(".")
        expires = rest.partition(".")[0]
        identity = self.tokens.identity(id) if self.tokens is not None else None
        if id == "0" and self.settings.token is not None:
            identity = self._own_token()
        if identity is None or not (expires.isascii() and expires.isdigit() and len(expires) < 12):
            return None
        signed = session_cookie(self.settings.session_key, identity, int(expires))
        return identity if _equal(cookie, signed) and int(expires) > time.time() else None

    def is_local(self, request: "Request") -> bool:
        """Whether the request appears to come from this machine."""
        loopback = self.settings.loopback and _is_loopback_name(request.headers.get("host", ""))
        return loopback and not any(h in request.headers for h in FORWARDED)

    async def _login(self, request: "Request", info: RequestInfo) -> "Response":
        from starlette.responses import HTMLResponse, RedirectResponse

        message, status = "", 200
        if request.method == "POST":
            try:
                identity = self._verified(await _login_token(request, self.settings.limits.body_seconds), info)
                expires = int(time.time()) + SESSION_SECONDS
                value = session_cookie(self.settings.session_key, identity, expires)
                response = RedirectResponse("/page/" if self.settings.page else "/versions", 303)
                secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
                response.set_cookie(COOKIE, value, SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
                info.identity = identity
                log.info("login: %s from %s", identity.name, info.address)
                return response
            except RequestError as error:
                if error.status not in (401, 429):
                    raise
                info.code = error.code
                message, status = ("Wrong token.", 401) if error.status == 401 else (error.message, 429)
        elif request.method not in ("GET", "HEAD"):
            raise RequestError(405, "method", "Method Not Allowed")
        page = render("login.html.j2", message=message)
        return HTMLResponse(page, status, {"Cache-Control": "no-store"})


async def _login_token(request: "Request", seconds: float) -> str:
    """Read the token of the login form. Raises RequestError 413 or 408."""
    from urllib.parse import parse_qs

    body = b""
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LOGIN_BYTES:
                    raise RequestError(413, "too_large", "the login form is too large", limit=LOGIN_BYTES)
    except TimeoutError:
        raise RequestError(408, "too_slow", f"the request did not arrive within {seconds:g} s") from None
    return parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
