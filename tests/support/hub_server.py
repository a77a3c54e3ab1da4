"""A small Hugging Face hub: an HTTP server with the routes that huggingface_hub uses to upload and to download repositories."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import huggingface_hub.constants
import pytest
import yaml


class Hub:
    """The repositories of a hub.

    files: {repository: {commit: {path: content}}}, the last commit last
    token: the only access token that may write
    closed: repositories (of datasets or models) that are gated: their files are answered by 403
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.token, self.url = "hf_writer", ""
        self.closed: set[str] = set()


def _folder(path: str) -> dict[str, str]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, document: object, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            files = self._listing(found[1], found[2])
            folders = [p for p in wanted if any(f["path"].startswith(f"{p}/") for f in files)]
            return self._json([_folder(p) for p in folders] + [f for f in files if f["path"] in wanted])
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.hub.files:
                return self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
            self.hub.files[name], self.hub.private[name] = (
                {},
                bool(asked.get("private")) or asked.get("visibility") == "private",
            )
            return self._json({"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":  # of a card, before it is committed
            head = json.loads(body)["content"].split("---\n", 2)[1]
            return self._json({"errors": [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no"}], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": "lfs" if f["size"] > 50_000 else "regular"}
                for f in files
            ]
            return self._json({"files": modes})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            put = {o["oid"]: {"upload": {"href": f"{self.hub.url}/objects/{o['oid']}"}} for o in wanted}
            return self._json({"transfer": "basic", "objects": [{**o, "actions": put[o["oid"]]} for o in wanted]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            return self._commit(found[1], body)
        return self._json({"error": path}, 404)

    def _commit(self, repo: str, body: bytes) -> None:
        commits = self.hub.files[repo]
        files = dict(next(reversed(commits.values()), {}))
        for line in body.split(b"\n"):
            entry = json.loads(line) if line else {}
            value = entry.get("value", {})
            if entry.get("key") == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry.get("key") == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = hashlib.sha1(b"".join(k.encode() + v for k, v in sorted(files.items()))).hexdigest()
        commits[sha] = files
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "hookOutput": ""})

    def do_PUT(self) -> None:
        oid, data = self.path.rpartition("/")[2], self._body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._send(200, b"")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            commits = self.hub.files.get(found[1], {})
            sha = found[2] if found[2] in commits else next(reversed(commits), "")
            if not sha:
                return self._send(404, b"{}", X_Error_Code="RepoNotFound")
            siblings = [{"rfilename": name} for name in commits[sha]]
            return self._json(
                {"id": found[1], "modelId": found[1], "sha": sha, "siblings": siblings, "tags": [], "private": False}
            )
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            prefix, deep = f"{found[3]}/" if found[3] else "", "recursive=true" in self.path.lower()
            files = [f for f in self._listing(found[1], found[2]) if f["path"].startswith(prefix)]
            direct = [f for f in files if deep or "/" not in f["path"].removeprefix(prefix)]
            folders = {prefix + f["path"].removeprefix(prefix).split("/")[0] for f in files if f not in direct}
            return self._json([_folder(path) for path in sorted(folders)] + direct)
        if found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if found[1] in self.hub.closed:
                return self._send(403, b"{}", X_Error_Code="GatedRepo")
            data = self._commit_of(found[1], found[2])[found[3]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                part = data[int(wanted[1]) : int(wanted[2]) + 1]
                return self._send(206, part, Content_Range=f"bytes {wanted[1]}-{wanted[2]}/{len(data)}", ETag=etag)
            return self._send(200, data, ETag=etag, X_Repo_Commit=found[2], Content_Type="application/octet-stream")
        return self._json({"error": path}, 404)

    do_HEAD = do_GET

    def _commit_of(self, repo: str, revision: str) -> dict[str, bytes]:
        commits = self.hub.files[repo]
        return commits.get(revision) or next(reversed(commits.values()))

    def _listing(self, repo: str, revision: str) -> list[dict[str, Any]]:
        files = self._commit_of(repo, revision).items()
        return [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in files]


@contextlib.contextmanager
def running_hub(patch: pytest.MonkeyPatch, cache: object) -> Iterator[Hub]:
    """Start a hub; huggingface_hub in this process uses it, with an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": True}
    for name, value in settings.items():
        patch.setattr(constants, name, value)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setenv("HF_TOKEN", hub.token)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
