"""The server process: bind an address, print its URL, serve requests, and stop gracefully."""

import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.serve.app import create_app
from mmtune.serve.request_log import configure_logs
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from mmtune.serve.service import Service


@dataclass(frozen=True)
class ServerResult:
    """The URL that was served, and the number of requests."""

    url: str
    requests: int

    def to_dict(self) -> JsonObject:
        """Return the fields as plain data."""
        return asdict(self)


def run_server(path: str | Path, settings: Settings, quiet: bool = False) -> ServerResult:
    """Serve the collection at `path` until SIGINT or SIGTERM. Raises DataError if the address cannot be used.

    After the signal, new requests are accepted for `settings.drain` seconds, while /ready fails. Then requests in progress are
    completed, for at most `settings.grace` seconds. A second signal skips the first part.
    """
    app = create_app(path, settings)  # reports a missing collection or extra before the address is bound
    configure_logs(settings, quiet)
    with bind_address(settings.host, settings.port) as listening:
        url = url_of(listening)
        if not quiet:
            print(f"{url}  (Ctrl-C to stop)", file=sys.stderr, flush=True)
        return ServerResult(url, serve_app(app, settings, listening))


def serve_app(app: "FastAPI", settings: Settings, listening: socket.socket) -> int:
    """Serve an application of `create_app` on a bound socket until SIGINT or SIGTERM; returns the number of requests."""
    import uvicorn

    from mmtune.serve.header_limits import HeaderLimitProtocol

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        http=HeaderLimitProtocol,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        timeout_keep_alive=15,
    )
    server = draining_server(config, app.state.service, settings.drain)
    # After stopping, uvicorn raises the signal again. These handlers ignore it, so that the process ends normally.
    handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listening])
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    return server.server_state.total_requests


def draining_server(config: "uvicorn.Config", service: "Service", seconds: float) -> "uvicorn.Server":
    """Create a server that goes on for `seconds` after the first signal, with `service.stopping` set."""
    import uvicorn

    class DrainingServer(uvicorn.Server):
        end: float | None = None

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.stopping = True
            if seconds > 0 and self.end is None:
                self.end = time.monotonic() + seconds
            else:
                super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            if self.end is not None and time.monotonic() >= self.end:
                self.should_exit = True
            return await super().on_tick(counter)

    return DrainingServer(config)


def url_of(listening: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind_address(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address. Raises DataError if the address cannot be used."""
    try:
        family, _, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The protocol is named because asyncio disables Nagle's algorithm, which costs 40 ms per request, only for sockets
        # that name TCP.
        bound = socket.socket(family, socket.SOCK_STREAM, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except (OSError, OverflowError) as e:
        raise DataError(
            f"--host {host} --port {port}: {getattr(e, 'strerror', None) or e}; choose another (--port 0 chooses a free port)"
        ) from None
