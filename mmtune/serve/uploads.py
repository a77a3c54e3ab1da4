"""Guards the search page's own server: no path or URL that a caller names is ever opened.

gradio fetches URLs (`/file=http...`, `/proxy=...`, a payload whose path is a URL), and does not check for a mounted page that a
payload's path was uploaded. So routes are an allow list; a path must lie, links followed, in this server's folder of uploads;
URLs in payloads are removed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mmtune.serve.error_responses import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
API_ROUTES = (
    "/theme.css",
    "/queue/data",
    "/upload",
    "/upload_progress",
    "/startup-events",
    "/cancel",
    "/reset",
    "/app_id",
    "/app_id/",
    "/info",
    "/info/",
    "/login_check",
    "/login_check/",
    "/user",
    "/user/",
)
ROUTES = {
    "",
    "/",
    "/config",
    "/config/",
    "/theme.css",
    "/manifest.json",
    "/favicon.ico",
    "/robots.txt",
    *(API + route for route in API_ROUTES),
}
PREFIXES = ("/assets/", "/static/", "/svelte/", "/pwa_icon", f"{API}/heartbeat/")
JOIN, FILE = f"{API}/queue/join", f"{API}/file="


def is_upload(path: object, folder: Path) -> bool:
    """Whether `path` is a file inside `folder`, all links followed. False for whatever is no such path."""
    if not isinstance(path, str) or not path or "\0" in path or "://" in path:
        return False
    try:
        real = Path(path).resolve()
        return real.is_relative_to(folder.resolve()) and real.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def without_urls(value: object, folder: Path) -> object:
    """A JSON payload whose URLs are removed. RequestError 403 where it names a path that is no upload."""
    if isinstance(value, list):
        return [without_urls(v, folder) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("path") is not None and not is_upload(value["path"], folder):
        raise RequestError(403, "path", "only uploaded files are opened")
    return {k: None if k == "url" else without_urls(v, folder) for k, v in value.items()}


class UploadGuard:
    """ASGI application around the mounted page. `prefix`: where it is mounted; `limit`: bytes of a payload."""

    def __init__(self, app: "ASGIApp", prefix: str, folder: Path, limit: int):
        self.app, self.prefix, self.folder, self.limit = app, prefix, folder, limit

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """ASGI."""
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(self.prefix)
        try:
            if path.rstrip("/") == JOIN:
                receive = await self._checked_payload(receive)
            elif path.startswith(FILE):
                for name in {path.removeprefix(FILE), unquote(path.removeprefix(FILE))}:
                    if not is_upload(name, self.folder):
                        raise RequestError(403, "path", "only uploaded files are opened")
            elif path not in ROUTES and not path.startswith(PREFIXES):
                raise RequestError(404, "not_found", "no such page")
        except RequestError as error:
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    async def _checked_payload(self, receive: "Receive") -> "Receive":
        """Reads the request's payload and returns a `receive` that delivers it without URLs."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "gone", "the caller went away")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limit:
                raise RequestError(413, "too_large", f"the request is over {self.limit} bytes", limit=self.limit)
        try:
            payload = json.dumps(without_urls(json.loads(body), self.folder)).encode()
        except (ValueError, RecursionError):
            raise RequestError(422, "invalid", "the body is not JSON") from None
        delivered = False

        async def checked_receive() -> "Message":
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": payload, "more_body": False}

        return checked_receive
