"""Stands before the page's own server: what the page needs passes, and no path or URL of a caller is ever opened.

gradio fetches URLs (`/file=http...`, `/proxy=...`, a payload whose path is a URL), and a mounted page of its does not check
that a payload's path was uploaded. So: routes are an allow list; a path must lie, links followed, in the folder of this
server's uploads; what else a payload says of where its content is, is taken out.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mmtune.serve.error_responses import Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
EXACT = {
    "",
    "/",
    "/config",
    "/config/",
    "/theme.css",
    "/manifest.json",
    "/favicon.ico",
    "/robots.txt",
    *(
        API + r
        for r in (
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
    ),
}
BELOW = ("/assets/", "/static/", "/svelte/", "/pwa_icon", f"{API}/heartbeat/")
JOIN, FILE = f"{API}/queue/join", f"{API}/file="


def inside(path: Any, folder: Path) -> bool:
    """Whether it is a file of that folder, all links followed. False for whatever is no such path."""
    if not isinstance(path, str) or not path or "\0" in path or "://" in path:
        return False
    try:
        real = Path(path).resolve()
        return real.is_relative_to(folder.resolve()) and real.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def cleaned(value: Any, folder: Path) -> Any:
    """A payload without URLs. Refusal 403 where it names a path that is no upload."""
    if isinstance(value, list):
        return [cleaned(v, folder) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("path") is not None and not inside(value["path"], folder):
        raise Refusal(403, "path", "only what was uploaded here is opened")
    return {k: None if k == "url" else cleaned(v, folder) for k, v in value.items()}


class Guard:
    """ASGI, in the place where the page is mounted."""

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
                receive = await self._join(receive)
            elif path.startswith(FILE):
                for name in {path.removeprefix(FILE), unquote(path.removeprefix(FILE))}:
                    if not inside(name, self.folder):
                        raise Refusal(403, "path", "only what was uploaded here is opened")
            elif path not in EXACT and not path.startswith(BELOW):
                raise Refusal(404, "not_found", "no such page")
        except Refusal as no:
            return await JSONResponse(no.body, no.status, no.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    async def _join(self, receive: "Receive") -> "Receive":
        """The same request with a clean payload."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "gone", "the caller went away")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limit:
                raise Refusal(413, "too_large", f"the request is over {self.limit} bytes", limit=self.limit)
        try:
            found = json.loads(body)
            clean = json.dumps(cleaned(found, self.folder)).encode()
        except (ValueError, RecursionError):
            raise Refusal(422, "invalid", "the body is not JSON") from None
        sent = False

        async def again() -> "Message":
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": clean, "more_body": False}

        return again
