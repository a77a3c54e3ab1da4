"""A server process: starts, says where it is, stops gracefully."""

import logging
import signal
import socket
import sys
from pathlib import Path

from mmtune.errors import DataError
from mmtune.serve.app import make
from mmtune.serve.settings import Settings


def run(path: str | Path, settings: Settings, quiet: bool = False) -> dict[str, object]:
    """Serve until SIGINT or SIGTERM; what is under way is answered first (`settings.grace` seconds). Returns what was served.

    DataError when the address is taken. A second signal ends it at once.
    """
    app = make(path, settings)  # says what is missing before uvicorn is looked for
    import uvicorn

    from mmtune.serve.header_limits import Wire

    _log(quiet)
    address = _bind(settings.host, settings.port)
    host, port = address.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        http=Wire,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        timeout_keep_alive=15,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it has stopped; stopping was what it asked for, so nobody needs to hear it twice
    held = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not quiet:
            print(f"{url}  (Ctrl-C stops)", file=sys.stderr, flush=True)
        server.run([address])
    finally:
        for s, handler in held.items():
            signal.signal(s, handler)
        address.close()
    return {"url": url, "requests": server.server_state.total_requests}


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # with its protocol: asyncio turns Nagle's algorithm off only where it reads TCP there, and 40 ms a request hang on it
        found = socket.socket(family, socket.SOCK_STREAM, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        return found
    except (OSError, OverflowError) as e:
        raise DataError(
            f"--host {host} --port {port}: {getattr(e, 'strerror', None) or e}; give another (--port 0: any)"
        ) from None


def _log(quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("mmtune.serve", logging.WARNING if quiet else logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
