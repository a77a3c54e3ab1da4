"""A real HTTP server of a directory that delays, fails, cuts connections and limits the rate, as servers do."""

import contextlib
import hashlib
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmtune.data.remote import retry


@dataclass
class FileServer:
    """What the server does, changeable while it runs.

    delay: seconds before each answer
    failures: share of requests that are answered by `status`
    status: HTTP status of failures
    cuts: share of answers whose connection is cut in the middle
    rate: bytes per second of a connection; 0 means no limit
    ranges: whether Range headers are obeyed
    stamp: header that tells versions of a file apart: ETag, Last-Modified or ""
    answers: (path, status) -> number of answers
    most_at_once: highest number of requests that were answered at the same time
    fail_first: path -> number of requests of it that fail before one succeeds
    login: whether all requests are redirected to an HTML page on which users log in
    is_stopped: whether the server has ended; connections that are still open are closed
    """

    root: Path
    delay: float = 0.0
    failures: float = 0.0
    status: int = 503
    cuts: float = 0.0
    rate: float = 0.0
    ranges: bool = True
    stamp: str = "ETag"
    login: bool = False
    is_stopped: bool = False
    url: str = ""
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    fail_first: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, status: int, ends: str = "") -> int:
        """The number of answers with this status to paths that end with `ends`."""
        return sum(n for (path, s), n in self.answers.items() if s == status and path.endswith(ends))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        files = self.files
        if files.is_stopped:
            self.close_connection = True
            return
        with files.lock:
            files.at_once += 1
            files.most_at_once = max(files.most_at_once, files.at_once)
        time.sleep(files.delay)
        try:
            self.answer_now(with_body)
        finally:
            with files.lock:
                files.at_once -= 1

    def answer_now(self, with_body: bool) -> None:
        files, path = self.files, self.path.partition("?")[0]
        with files.lock:
            fails = files.rng.random() < files.failures or files.fail_first[path] > 0
            cut = with_body and files.rng.random() < files.cuts
            files.fail_first[path] -= 1
        if files.login:
            self.answer_login(path, with_body)
            return
        file = files.root / path.lstrip("/")
        if fails or not file.is_file():
            status = files.status if fails else 404
            files.answers[path, status] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, start = file.read_bytes(), 0
        total = len(data)
        wanted = self.headers.get("Range", "") if files.ranges else ""
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first)
            data = data[start : int(last) + 1 if last else None]
        files.answers[path, 206 if wanted else 200] += with_body
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        if files.stamp == "ETag":
            self.send_header("ETag", hashlib.md5(file.read_bytes()).hexdigest())
        elif files.stamp:
            self.send_header(files.stamp, self.date_time_string(file.stat().st_mtime))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not with_body:
            return
        with contextlib.suppress(OSError):
            self.send_body(data[: len(data) // 2] if cut else data)
            if cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    def answer_login(self, path: str, with_body: bool) -> None:
        page = b"<!DOCTYPE html>\n<html><body><form>password</form><a href='/help.html'>help</a></body></html>"
        is_page = path == "/login"
        self.send_response(200 if is_page else 302)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        if not is_page:
            self.send_header("Location", f"/login?next={path}&secret=1")
        self.send_header("Content-Length", str(len(page) if is_page else 0))
        self.end_headers()
        if is_page and with_body:
            self.wfile.write(page)

    def send_body(self, data: bytes) -> None:
        step = 1 << 16
        for at in range(0, len(data), step):
            part = data[at : at + step]
            self.wfile.write(part)
            self.files.sent += len(part)
            if self.files.rate:
                time.sleep(len(part) / self.files.rate)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def http_server(root: Path, certificate: Path | None = None, port: int = 0, **settings: object) -> Iterator[FileServer]:
    """Serve the files below `root` from a thread.

    certificate: a PEM file with a certificate and its key, for https
    """
    files = FileServer(root, **settings)  # type: ignore[arg-type]
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"files": files}))
    files.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield files
    finally:
        files.is_stopped = True
        server.shutdown()
        server.server_close()


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[FileServer]:
    """A running server of the empty directory `www`."""
    (tmp_path / "www").mkdir()
    with http_server(tmp_path / "www") as files:
        yield files


@pytest.fixture(autouse=True)
def fresh_cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test, and retries without long waits."""
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
