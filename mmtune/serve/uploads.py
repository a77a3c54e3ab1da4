"""Protect the search page: gradio must never open a path or URL that a request names.

gradio fetches URLs (`/file=http...`, `/proxy=...`, or a payload whose path is a URL). For a mounted page, it does not check that a
path in a payload was uploaded, and nothing limits the bytes of all uploads. So only known routes are allowed. A path must be inside this server's upload directory after
resolving links. URLs in payloads are removed.
"""

import asyncio
import contextlib
import json
import stat
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
ROUTES = {  # gradio's routes that the page needs
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
JOIN, FILE, UPLOAD = f"{API}/queue/join", f"{API}/file=", f"{API}/upload"


def is_upload(path: object, folder: Path) -> bool:
    """Whether `path` is an existing file inside `folder`, after resolving links."""
    if not isinstance(path, str) or not path or "\0" in path or "://" in path:
        return False
    try:
        real = Path(path).resolve()
        return real.is_relative_to(folder.resolve()) and real.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def without_urls(value: object, folder: Path) -> object:
    """Return a JSON payload without its URLs. Raises RequestError 403 if it names a path that is not an upload."""
    if isinstance(value, list):
        return [without_urls(v, folder) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("path") is not None and not is_upload(value["path"], folder):
        raise RequestError(403, "path", "only uploaded files can be opened")
    return {k: None if k == "url" else without_urls(v, folder) for k, v in value.items()}


def delete_oldest(folder: Path, total: int) -> int:
    """Delete the oldest files of a directory until all together have at most `total` bytes; returns the number of deleted files."""
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gradio deletes old uploads, too
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                files.append((found.st_mtime_ns, found.st_size, path))
    size, deleted = sum(s for _, s, _ in files), 0
    for _, bytes_of_file, path in sorted(files):
        if size <= max(0, total):
            break
        with contextlib.suppress(OSError):
            path.unlink()
        size, deleted = size - bytes_of_file, deleted + 1
    return deleted


class UploadGuard:
    """ASGI middleware around the mounted search page.

    prefix: path at which the page is mounted
    folder: upload directory of this server
    limit: maximum bytes of a payload, and of an upload
    total: maximum bytes of all uploads on disk
    """

    def __init__(self, app: "ASGIApp", prefix: str, folder: Path, limit: int, total: int):
        self.app, self.prefix, self.folder, self.limit, self.total = app, prefix, folder, limit, total

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(self.prefix)
        try:
            if path == UPLOAD and scope["method"] == "POST":
                await asyncio.to_thread(delete_oldest, self.folder, self.total - self.limit)
            if path.rstrip("/") == JOIN:
                receive = await self._checked_payload(receive)
            elif path.startswith(FILE):
                for name in {path.removeprefix(FILE), unquote(path.removeprefix(FILE))}:
                    if not is_upload(name, self.folder):
                        raise RequestError(403, "path", "only uploaded files can be opened")
            elif path not in ROUTES and not path.startswith(PREFIXES):
                raise RequestError(404, "not_found", "there is no such page")
        except RequestError as error:
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    async def _checked_payload(self, receive: "Receive") -> "Receive":
        """Read the request's payload, check it, and return a `receive` function that delivers it without URLs."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "gone", "the client has disconnected")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limit:
                raise RequestError(413, "too_large", f"the request is over {self.limit} bytes", limit=self.limit)
        try:
            payload = json.dumps(without_urls(json.loads(body), self.folder)).encode()
        except (ValueError, RecursionError):
            raise RequestError(422, "invalid", "the body is not valid JSON") from None
        delivered = False

        async def checked_receive() -> "Message":
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": payload, "more_body": False}

        return checked_receive
