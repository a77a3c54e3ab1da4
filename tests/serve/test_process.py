"""`mmtune serve` as people start it: a real process, real sockets, signals."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from mmtune.index.collection import Collection
from tests.support.serve_helpers import BEARER, Process, collection, copy_of


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture(scope="module")
def server(shelf):
    """One process with its page."""
    with Process(shelf, "--max-bytes", "200000") as found:
        wait(found)
        yield found


def wait(server, path="/ready", seconds=120):
    """Until a search is answered at once."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(server.url + path, timeout=10, headers=BEARER).status_code == 200:
                return
        except httpx.TransportError:
            assert server.process.poll() is None, server.said
        time.sleep(0.1)
    raise AssertionError(server.said)


def until(server, line, seconds=60):
    """Until a counter of the server reads so."""
    end = time.monotonic() + seconds
    while line not in (told := httpx.get(server.url + "/metrics", timeout=30).text):
        assert time.monotonic() < end, told
        time.sleep(0.05)


def command(*arguments, **env):
    return subprocess.run([sys.executable, "-m", "mmtune", "serve", *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_it_refuses_to_start_in_one_line(shelf, tmp_path):
    done = command(str(shelf), "--host", "0.0.0.0")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--token" in done.stderr and not done.stdout
    done = command(str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not a collection" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command(str(shelf), "--no-page", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and "--port" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_missing_library_is_one_line(shelf):
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'prometheus_client' else real(name, *a)\n"
        f"from mmtune.cli import main; sys.exit(main(['serve', {str(shelf)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.strip().endswith('pip install "mmtune[serve]"'), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_under_way(shelf, how):
    """Two searches whose bodies are still on their way at the stop, and share a forward pass after it."""
    with Process(shelf, "--no-page", "--window", "6000", "--grace", "60", "--json") as server, contextlib.ExitStack() as open_:
        wait(server)
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({"text": "sent slowly"}).encode()
        head = f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        slow = [open_.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(2)]
        for s in slow:
            s.sendall(head.encode() + body[:5])
        until(server, "mmtune_bodies_arriving 2.0")
        server.process.send_signal(how)
        time.sleep(0.3)
        assert server.process.poll() is None
        for s in slow:
            s.sendall(body[5:])
        for s in slow:
            answer = b"".join(iter(lambda: s.recv(65_536), b""))  # noqa: B023
            assert answer.startswith(b"HTTP/1.1 200") and json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
        assert server.process.wait(60) == 0, server.said
        assert json.loads(server.process.stdout.read())["requests"] >= 3
        assert "Traceback" not in server.said, server.said
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/health", timeout=5)


@pytest.mark.slow
def test_another_process_promotes_and_the_server_follows(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    with Process(path, "--no-page") as server, httpx.Client(base_url=server.url, timeout=60) as web:
        wait(server)
        assert web.post("/search", json={"text": "x"}).json()["version"] == "v1"
        with Collection(path) as c:
            c.promote("v2", force=True, why="a test")
            assert web.post("/search", json={"text": "x"}).json()["version"] == "v2"  # the very next request
            c.rollback()
            assert web.post("/search", json={"text": "x"}).json()["version"] == "v1"


def test_too_much_is_refused_before_it_is_sent(server):
    """A length that is told is believed at once: the answer comes although the body never does."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as s:
        head = ["POST /search HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Content-Length: 200001", "", ""]
        s.sendall("\r\n".join(head).encode())
        assert s.recv(4096).startswith(b"HTTP/1.1 413")
    found = httpx.post(
        server.url + "/search", content=(b"x" * 10_000 for _ in range(100)), headers={"Content-Type": "application/json"}
    )
    assert found.status_code == 413 and found.json()["error"]["limit"] == 200_000
    assert "server" not in found.headers
