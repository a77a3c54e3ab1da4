"""The server process: bind an address, print its URL, serve requests, and stop gracefully."""

import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.serve.app import create_app
from mmtune.serve.request_log import configure_logs
from mmtune.serve.settings import Settings


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

    After the signal, requests in progress are completed, for at most `settings.grace` seconds. A second signal ends the
    process at once.
    """
    app = create_app(path, settings)  # reports a missing extra before uvicorn is imported
    import uvicorn

    from mmtune.serve.header_limits import HeaderLimitProtocol

    configure_logs(settings, quiet)
    listening = _bind(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
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
    server = uvicorn.Server(config)
    # After stopping, uvicorn raises the signal again. These handlers ignore it, so that the process ends normally.
    handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not quiet:
            print(f"{url}  (Ctrl-C to stop)", file=sys.stderr, flush=True)
        server.run([listening])
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
        listening.close()
    return ServerResult(url, server.server_state.total_requests)


def _bind(host: str, port: int) -> socket.socket:
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
