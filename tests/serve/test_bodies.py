"""Bodies that trickle in, are many, or are large: they keep no place from others, and take bounded memory."""

import asyncio
import io
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import PIL.Image
import pytest
import uvicorn

from mmtune.serve.app import create_app
from tests.serve.test_rest import refused
from tests.support.serve_helpers import LOCAL, TOKEN, client, collection, picture, settings

TIMED = ["/search", "/feedback", "/items/new", "/login", "/page/"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


class Served:
    """The application on a real socket, from a thread: `url`, `address`, and `slow(route)` -> a connection whose body never ends."""

    def __init__(self, path, **options):
        self.app = create_app(path, settings(**options))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="critical", ws="none"))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)

    def __enter__(self):
        self.thread.start()
        for _ in range(1200):
            try:
                if httpx.get(self.url + "/ready", timeout=60).status_code in (200, 401):
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("not ready")

    def __exit__(self, *error):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(60)

    def slow(self, route, body=b'{"text":', method="POST", kind="application/json", length=100_000):
        s = socket.create_connection(self.address, timeout=60)
        head = [f"{method} {route} HTTP/1.1", f"Host: 127.0.0.1:{self.address[1]}", f"Content-Type: {kind}"]
        s.sendall("\r\n".join([*head, f"Content-Length: {length}", "", ""]).encode() + body)
        return s

    def arriving(self, count):
        for _ in range(600):
            if f"mmtune_bodies_arriving {count:.1f}" in httpx.get(self.url + "/metrics", timeout=60).text:
                return
            time.sleep(0.05)
        raise AssertionError(httpx.get(self.url + "/metrics").text)


def answer(s):
    found = b""
    while part := s.recv(65_536):
        found += part
    return found


def test_slow_bodies_keep_no_place_from_others(shelf):
    with Served(shelf, max_concurrent=2, bodies_per_address=12) as web:
        slow = [web.slow("/search") for _ in range(10)]
        slow += [web.slow("/feedback", b"{") for _ in range(2)]
        try:
            web.arriving(12)
            for _ in range(4):  # no body: nothing to limit
                assert httpx.get(web.url + "/items/0-000", timeout=60).status_code == 200
            over = httpx.post(web.url + "/search", json={"text": "x"}, timeout=60)
            assert over.status_code == 429 and over.json()["error"]["code"] == "too_many_bodies"
            slow.pop().close()
            web.arriving(11)
            for _ in range(4):
                assert httpx.post(web.url + "/search", json={"text": "x"}, timeout=60).status_code == 200
        finally:
            for s in slow:
                s.close()
        web.arriving(0)


@pytest.mark.parametrize("route", TIMED)
def test_every_route_gives_a_body_only_so_long(shelf, route):
    options = {"token": TOKEN} if route == "/login" else {}
    kind = "application/json"
    if route == "/login":
        kind = "application/x-www-form-urlencoded"
    if route == "/page/":
        kind = "multipart/form-data; boundary=x"
    with client(shelf, body_seconds=0.3, page=route.startswith("/page"), **options) as web:

        async def ask():
            async def slowly():
                yield (
                    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' if route == "/page/" else b"{"
                )
                await asyncio.sleep(30)
                yield b"}"

            async with httpx.AsyncClient(transport=httpx.ASGITransport(web.app), base_url=LOCAL) as c:
                method = "PUT" if route.startswith("/items") else "POST"
                return await c.request(method, route, content=slowly(), headers={"Content-Type": kind})

        found = asyncio.run(ask())
        if route == "/items/new":  # refused before its body is read: there is no token
            refused(found, 403)
        else:
            assert refused(found, 408, "0.3 s")["code"] == "too_slow"


def test_all_bodies_together_take_bounded_memory(shelf):
    with Served(shelf, max_arriving=1_000_000, max_bytes=800_000, bodies_per_address=50) as web:
        held = [web.slow("/search", b"x" * 300_000, length=700_000) for _ in range(3)]
        web.arriving(3)
        for _ in range(200):
            over = httpx.post(
                web.url + "/search", content=b"x" * 200_000, headers={"Content-Type": "application/json"}, timeout=60
            )
            if over.status_code == 503:
                break
            time.sleep(0.05)
        assert over.status_code == 503 and over.json()["error"]["code"] == "busy" and over.headers["retry-after"] == "1"
        for s in held:
            s.close()
        web.arriving(0)
        assert httpx.post(web.url + "/search", json={"text": "x"}, timeout=60).status_code == 200


def test_a_body_that_is_cut_off_leaves_nothing_behind(shelf):
    with Served(shelf) as web:
        for _ in range(20):
            web.slow("/search").close()
        web.arriving(0)
        assert httpx.post(web.url + "/search", json={"text": "x"}, timeout=60).status_code == 200
        assert "mmtune_under_way 0.0" in httpx.get(web.url + "/metrics", timeout=60).text


def test_refused_bodies_close_the_connection_with_an_answer(shelf):
    with Served(shelf, body_seconds=0.3) as web, web.slow("/search") as s:
        found = answer(s)
        assert found.startswith(b"HTTP/1.1 408") and b"connection: close" in found.lower()


def deep_picture(kind):
    """A picture with 16 bits a colour."""
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    if kind == "grey":
        PIL.Image.fromarray(rng.integers(0, 65_535, (1500, 2000), np.uint16)).save(out, "PNG", compress_level=1)
    else:
        import zlib
        from struct import pack

        def chunk(name, data):
            return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))

        channels = {"colour": 3, "transparent": 4}[kind]
        rows = rng.integers(0, 255, (1500, 2000 * channels * 2), np.uint8)
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        head = pack(">IIBBBBB", 2000, 1500, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 0)) + chunk(b"IEND", b""))
    return out.getvalue()


DECODE = """
import sys, tracemalloc
from mmtune import modalities
image, data = modalities.get("image"), open(sys.argv[1], "rb").read()
promised = image.check_header(data)
image.decode(data)
tracemalloc.start()
image.decode(data)
print(promised, tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("kind", ["plain", "grey", "colour", "transparent"])
def test_the_memory_budget_counts_what_decoding_takes(kind, tmp_path):
    """The peak of Python's and numpy's allocations, and Pillow's own, is what the header promised.

    In a process of its own: threads that other tests have left allocate memory, too.
    """
    path = tmp_path / "picture"
    path.write_bytes(picture(size=(2000, 1500)) if kind == "plain" else deep_picture(kind))
    done = subprocess.run([sys.executable, "-c", DECODE, path], capture_output=True, text=True, check=True)
    promised, peak = map(int, done.stdout.split())
    pillow = 2000 * 1500 * 4  # the decoded picture in Pillow's own memory, which tracemalloc does not see
    assert peak + pillow <= promised * 1.1, (peak + pillow, promised)
