"""Serve the search of a collection over HTTP: a REST API, and a search page that shows images and plays sounds.

  mmtune serve COLLECTION                               http://127.0.0.1:8000/page, only for this machine, read-only
  mmtune serve COLLECTION --token T                     every request needs the token, and may then PUT and DELETE items
  mmtune serve COLLECTION --host 0.0.0.0 --tokens FILE  also for other machines; tokens with roles (mmtune serve token --help)
  mmtune serve --config serve.yaml                      these options in a file; options given here override it
  mmtune serve COLLECTION --workers 4 --no-page         four processes on one port

POST /search accepts JSON or a form. The query is a value under the name of its modality, or the id of an item. /openapi.json
describes the API. Promotions and rollbacks take effect immediately, in all workers. On a network that you do not trust, put a
reverse proxy with TLS in front, and name it with --trusted-proxy. After Ctrl-C or SIGTERM, the server finishes the requests in
progress, then stops. docs/operating.md has nginx, systemd and Docker.
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
    parser.add_argument("collection", metavar="COLLECTION", nargs="?", help="directory of the collection")
    parser.add_argument("--config", metavar="FILE", help="configuration file (YAML); docs/operating.md lists its keys")
    _address_arguments(parser)
    _limit_arguments(parser)
    number = parser.add_argument
    number("--batch", type=int, metavar="N", help="maximum searches in one forward pass of the model (default 32)")
    number("--window", type=float, metavar="MS", help="milliseconds to wait for further searches to fill a batch (default 4)")
    number("--workers", type=int, metavar="N", help="processes (default 1)")
    number("--grace", type=float, metavar="S", help="seconds to wait for requests in progress when stopping (default 10)")
    number("--probe", type=float, metavar="S", help="seconds between probes of the index's recall (default 3600; 0: none)")
    parser.add_argument("--no-history", action="store_true", help="do not count searches in the collection's history")
    number("--drain", type=float, metavar="S", help="seconds to go on when stopping, while /ready says 503 (default 0)")
    parser.add_argument("--no-page", action="store_true", help="serve only the REST API, without the search page")
    parser.add_argument(
        "--rerank", metavar="SCORER", help="re-rank the results of every search, as in `mmtune index search --rerank`"
    )
    number("--rerank-depth", type=int, metavar="N", help="results to re-rank (default 50)")
    parser.add_argument("--log", choices=("plain", "json"), help="format of the log on standard error (default plain)")
    parser.add_argument("--access-log", action="store_true", help="log every request, with its id")
    parser.add_argument(
        "--traces", action="store_true", help="send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT (extra otel)"
    )
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def _address_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1; any other address needs a token)"
    )
    parser.add_argument("--port", type=int, metavar="N", help="port (default 8000; 0 means any free port)")
    parser.add_argument(
        "--token",
        default=os.environ.get("MMTUNE_TOKEN") or None,
        metavar="T",
        help="secret that every request must then contain (default: environment variable MMTUNE_TOKEN)",
    )
    parser.add_argument("--tokens", metavar="FILE", help="file of tokens with roles, made by `mmtune serve token`")
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        metavar="ADDRESS",
        help="address or network of a reverse proxy, whose X-Forwarded-For names the client; may be repeated",
    )


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    from mmtune.serve.settings import Limits, Rates

    limits, rates = Limits(), Rates()
    for option, default, text in (
        ("--max-bytes", limits.max_bytes, "maximum bytes of a request body"),
        ("--max-k", limits.max_k, "maximum results of a search"),
        ("--max-concurrent", limits.max_concurrent, "maximum searches and writes at the same time"),
    ):
        parser.add_argument(option, type=int, metavar="N", help=f"{text} (default {default})")
    for option, rate, text in (
        ("--rate-per-token", rates.per_token, "requests a second with one token; 0: no limit"),
        ("--rate-per-address", rates.per_address, "requests a second from one address; 0: no limit"),
    ):
        parser.add_argument(option, type=float, metavar="N", help=f"{text} (default {rate:g})")
    for name, (kind, value) in _limits().items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, metavar="N", help=f"reject values over this limit (default {value})")


def run(args: argparse.Namespace) -> Result:
    from mmtune.errors import DataError
    from mmtune.serve.config_file import read_config
    from mmtune.serve.server import run_server

    if args.collection is None and args.config is None:
        raise DataError("name the directory of a collection, or --config FILE")
    names = ("collection", "host", "port", "token", "tokens", "workers", "batch", "window", "grace", "drain", "probe", "rerank")
    options = {name: getattr(args, name) for name in (*names, "rerank_depth", "log")}
    options |= {f"limits.{name}": getattr(args, name) for name in ("max_bytes", "max_k", "max_concurrent")}
    options |= {f"limits.values.{name}": getattr(args, name) for name in _limits()}
    options |= {"rates.per_token": args.rate_per_token, "rates.per_address": args.rate_per_address}
    options |= {"trusted_proxies": args.trusted_proxy, "page": False if args.no_page else None}
    options |= {"history": False if args.no_history else None}
    options |= {name: True if getattr(args, name) else None for name in ("access_log", "traces")}
    config = read_config(args.config, options)
    if config.workers > 1:
        from mmtune.serve.worker_processes import run_workers

        done = run_workers(config, args.quiet)
    else:
        done = run_server(config.collection, config.settings(), args.quiet)
    return Result(done.to_dict(), f"{done.url}  {done.requests} requests")
