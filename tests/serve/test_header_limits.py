"""The wire itself: heads that are too long or too slow are cut off; everything else is plain HTTP."""

import socket
import threading
import time

import pytest
import uvicorn

from mmtune.serve import header_limits


async def app(scope, receive, send):
    """Answers with the number of bytes of the body."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message.get("body", b"")), message.get("more_body", False)
    body = str(count).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    """A server whose callers have half a second for a head."""
    kept, header_limits.HEAD_SECONDS = header_limits.HEAD_SECONDS, 0.5
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=header_limits.HeaderLimitProtocol, ws="none", lifespan="off", log_level="critical")
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(20)
    header_limits.HEAD_SECONDS = kept


def read(s):
    """Until the other side has hung up."""
    found = b""
    try:
        while part := s.recv(65_536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_requests_follow_each_other_on_one_connection(address):
    with socket.create_connection(address, timeout=20) as s:
        for n in (0, 5, 300_000):
            s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % n + b"y" * n)
            answer = s.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n%d" % n)
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        time.sleep(0.8)  # a body may take longer than a head
        s.sendall(b"2\r\nde\r\n0\r\n\r\n")
        assert s.recv(65_536).endswith(b"\r\n\r\n5")
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        found = b""
        while found.count(b"HTTP/1.1 200") < 3:
            assert (part := s.recv(65_536))
            found += part


HEADS = {
    "one endless header": (b"GET / HTTP/1.1\r\nX: ", b"y" * 10_000),
    "endless headers": (b"GET / HTTP/1.1\r\n", b"X-Y: " + b"z" * 5000 + b"\r\n"),
    "an endless address": (b"GET /", b"a" * 10_000),
    "headers behind a body": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"X: " + b"z" * 5000 + b"\r\n",
    ),
}


@pytest.mark.parametrize("what", HEADS)
def test_a_head_that_does_not_end_is_cut_off(address, what):
    start, more = HEADS[what]
    with socket.create_connection(address, timeout=20) as s:
        s.sendall(start)
        sent = 0
        try:
            while sent < 20_000_000:
                s.sendall(more)
                sent += len(more)
        except OSError:
            pass
        assert sent < 20_000_000
        assert b"HTTP/1.1 200" not in read(s)


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_cut_off(address, start):
    with socket.create_connection(address, timeout=20) as s:
        begin = time.monotonic()
        s.sendall(start)
        assert read(s) == b"" and 0.2 < time.monotonic() - begin < 15


def test_a_kept_connections_next_head_has_its_own_time(address):
    with socket.create_connection(address, timeout=20) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(65_536).startswith(b"HTTP/1.1 200")
        time.sleep(0.8)  # idle is not slow
        s.sendall(b"GET / HT")
        begin = time.monotonic()
        assert read(s) == b"" and time.monotonic() - begin < 15
