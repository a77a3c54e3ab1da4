"""A local HTTP server that speaks the chat protocol of OpenAI, with the faults of real ones."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class ChatServer:
    """What the server does, changeable while it runs.

    answer: makes the text of an answer from the body of a request
    key: the key that requests need; "" means none
    faults: what happens to the first requests, in order: a status, "hang", "cut", "html", or "wrong" (JSON of another protocol)
    requests: the bodies of all requests; keys: their Authorization headers
    """

    answer: Callable[[dict], str] = lambda body: json.dumps(["one", "two", "three"])
    key: str = ""
    usage: bool = True
    faults: list[int | str] = field(default_factory=list)
    requests: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)


def told(body: dict) -> str:
    """What a request says about its item."""
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text").partition("The item: ")[2]


@contextlib.contextmanager
def chat_server(**options: object) -> Iterator[ChatServer]:
    """Run a server on a free port of this machine."""
    state = ChatServer(**options)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, data: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body)
                state.keys.append(self.headers.get("Authorization"))
                state.times.append(time.monotonic())
                fault = state.faults.pop(0) if state.faults else None
            if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                return self.send(401, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}).encode())
            if self.path != "/v1/chat/completions":
                return self.send(404, b"{}")
            if fault == "hang":
                state.stop.wait(20)
                return None
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                return self.wfile.write(b'{"choices"') and None
            if fault == "html":
                return self.send(200, b"<html>gateway</html>", "text/html")
            if fault == "wrong":
                return self.send(200, b'{"choices": [{"message": {"content": null}}], "usage": 7}')
            if isinstance(fault, int):
                headers = {"Retry_After": "0.05"} if fault == 429 else {}
                text = f"item too large for {self.headers.get('Authorization')}"
                return self.send(fault, json.dumps({"error": {"message": text}}).encode(), **headers)
            answer: dict = {"choices": [{"message": {"role": "assistant", "content": state.answer(body)}}]}
            if state.usage:
                answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 20}
            return self.send(200, json.dumps(answer).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
