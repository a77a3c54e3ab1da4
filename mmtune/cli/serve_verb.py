"""Serve the search of a collection over HTTP: a REST API, and a page with images and players.

  mmtune serve COLLECTION                               http://127.0.0.1:8000/page, this machine only, read only
  mmtune serve COLLECTION --token T                     clients with the token may also PUT and DELETE items
  mmtune serve COLLECTION --host 0.0.0.0 --token T      other machines too; every request needs the token

POST /search takes JSON or a form with one value under its modality's name, or an item's id; /openapi.json describes the API.
Promotions and rollbacks take effect at once. Put TLS in front (a reverse proxy) on a network that is not your own. Ctrl-C or
SIGTERM answers the requests in progress, then stops.
"""

import argparse
import os

from mmtune import modalities
from mmtune.cli.dispatch import Result


def _limits() -> dict[str, tuple[type, object]]:
    """Limits of the modalities on a value: name -> (type, default of the server)."""
    from mmtune.serve.settings import value_limits

    types = {k: o.type for n in modalities.names() for k, o in modalities.get(n).options.items()}
    return {k: (types[k], v) for k, v in value_limits().items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    from mmtune.serve.settings import Limits

    defaults = Limits()
    parser.add_argument("collection", metavar="COLLECTION", help="directory of the collection")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1; others need a token)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (8000; 0: any free one)")
    parser.add_argument(
        "--token",
        default=os.environ.get("MMTUNE_TOKEN") or None,
        metavar="T",
        help="token of clients that may write; default: MMTUNE_TOKEN",
    )
    parser.add_argument("--no-page", action="store_true", help="the REST API only, without the search page")
    parser.add_argument(
        "--max-bytes", type=int, default=defaults.max_bytes, metavar="N", help=f"largest request ({defaults.max_bytes})"
    )
    parser.add_argument(
        "--max-k", type=int, default=defaults.max_k, metavar="N", help=f"most results of a search ({defaults.max_k})"
    )
    parser.add_argument(
        "--max-concurrent",
        type=int,
        default=defaults.max_concurrent,
        metavar="N",
        help=f"concurrent requests ({defaults.max_concurrent})",
    )
    for name, (kind, default) in _limits().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, metavar="N", help=f"limit of a query value ({default})"
        )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="most searches in one forward pass (32)")
    parser.add_argument(
        "--window", type=float, default=4.0, metavar="MS", help="milliseconds to wait for further searches of a batch (4)"
    )
    parser.add_argument(
        "--grace", type=float, default=10.0, metavar="S", help="seconds a stop waits for requests in progress (10)"
    )
    parser.add_argument("--quiet", action="store_true", help="only errors on standard error")


def run(args: argparse.Namespace) -> Result:
    from mmtune.serve.server import run_server
    from mmtune.serve.settings import Limits, Settings

    limits = Limits(
        max_bytes=args.max_bytes,
        max_k=args.max_k,
        max_concurrent=args.max_concurrent,
        values={name: getattr(args, name) for name in _limits()},
    )
    settings = Settings(
        args.host,
        args.port,
        args.token,
        limits,
        window=args.window / 1000,
        batch=args.batch,
        page=not args.no_page,
        grace=args.grace,
    )
    done = run_server(args.collection, settings, args.quiet)
    return Result(done.to_dict(), f"{done.url}  {done.requests} requests")
