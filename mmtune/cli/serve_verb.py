"""Serve the search of a collection over HTTP: a REST API, and a search page that shows images and plays sounds.

  mmtune serve COLLECTION                               http://127.0.0.1:8000/page, only for this machine, read-only
  mmtune serve COLLECTION --token T                     clients with the token may also PUT and DELETE items
  mmtune serve COLLECTION --host 0.0.0.0 --token T      also for other machines; every request needs the token

POST /search accepts JSON or a form. The query is a value under the name of its modality, or the id of an item. /openapi.json
describes the API. Promotions and rollbacks take effect immediately. On a network that you do not trust, put a reverse proxy with
TLS in front. After Ctrl-C or SIGTERM, the server finishes the requests in progress, then stops.
"""

import argparse
import os

from mmtune import modalities
from mmtune.cli.dispatch import Result


def _limits() -> dict[str, tuple[type, object]]:
    """Return the limits on query values: {name of the modality's option: (type, the server's default)}."""
    from mmtune.serve.settings import value_limits

    types = {k: o.type for n in modalities.names() for k, o in modalities.get(n).options.items()}
    return {k: (types[k], v) for k, v in value_limits().items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    from mmtune.serve.settings import Limits

    defaults = Limits()
    parser.add_argument("collection", metavar="COLLECTION", help="directory of the collection")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1; any other address needs --token)",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default 8000; 0 means any free port)")
    parser.add_argument(
        "--token",
        default=os.environ.get("MMTUNE_TOKEN") or None,
        metavar="T",
        help="secret that clients must send to change items (default: environment variable MMTUNE_TOKEN)",
    )
    parser.add_argument("--no-page", action="store_true", help="serve only the REST API, without the search page")
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=defaults.max_bytes,
        metavar="N",
        help=f"maximum bytes of a request body (default {defaults.max_bytes})",
    )
    parser.add_argument(
        "--max-k", type=int, default=defaults.max_k, metavar="N", help=f"maximum results of a search (default {defaults.max_k})"
    )
    parser.add_argument(
        "--max-concurrent",
        type=int,
        default=defaults.max_concurrent,
        metavar="N",
        help=f"maximum searches and writes at the same time (default {defaults.max_concurrent})",
    )
    for name, (kind, default) in _limits().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=default,
            metavar="N",
            help=f"reject values over this limit (default {default})",
        )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="maximum searches in one forward pass of the model (default 32)"
    )
    parser.add_argument(
        "--window",
        type=float,
        default=4.0,
        metavar="MS",
        help="milliseconds to wait for further searches to fill a batch (default 4)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds to wait for requests in progress when stopping (default 10)",
    )
    parser.add_argument(
        "--rerank", metavar="SCORER", help="re-rank the results of every search, as in `mmtune index search --rerank`"
    )
    parser.add_argument("--rerank-depth", type=int, default=50, metavar="N", help="results to re-rank (default 50)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> Result:
    from mmtune.index.query.rerank import load_rerank
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
        rerank=load_rerank(args.rerank, args.rerank_depth),
    )
    done = run_server(args.collection, settings, args.quiet)
    return Result(done.to_dict(), f"{done.url}  {done.requests} requests")
