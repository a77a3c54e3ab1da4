"""The actions of `mmtune index` that watch a served collection: probe and health."""

import argparse
from pathlib import Path

from mmtune.cli import index_output
from mmtune.cli.collection_arguments import open_collection, open_rows
from mmtune.cli.dispatch import Result


def probe_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("-k", type=int, default=10, help="results of each search to compare (default %(default)s)")


def probe_action(args: argparse.Namespace) -> Result:
    from mmtune.errors import DataError
    from mmtune.index.monitoring.probe_log import run_probe

    if args.k < 1:
        raise DataError(f"-k {args.k}: must be 1 or more")
    with open_collection(args) as collection:
        result = run_probe(collection.layout, collection.catalog, collection.pool, args.k)
    assert result is not None  # it waits for another process's probe
    return Result({**result.to_dict(), "ok": result.ok}, index_output.probe(result), 0 if result.ok else 1)


def health_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="FILE", help="also write the report as an HTML page, with charts of the last month")
    p.add_argument(
        "--queries",
        metavar="DATA",
        help="first store these packed rows, the gate's queries, as what later queries are compared with (`promote --queries` does it)",
    )


def health_action(args: argparse.Namespace) -> Result:
    from mmtune.index.monitoring.gate_queries import store_gate_queries
    from mmtune.index.monitoring.health import check_health
    from mmtune.runtime.files import write_text

    with open_collection(args) as collection:
        if (rows := open_rows(args.queries)) is not None:
            store_gate_queries(collection.layout, collection.open(), rows, Path(args.queries).name)
        report = check_health(collection.layout)
    text = index_output.health(report)
    if args.out:
        from mmtune.reporting.health_page import health_page

        write_text(args.out, health_page(report))
        text += f"\n{args.out}"
    return Result(report.to_dict(), text, 1 if report.verdict == "attention" else 0)
