"""The actions of `mmtune index` about the live version: shadow, promote, rollback; and judgments, which exports feedback."""

import argparse

from mmtune.cli import index_output
from mmtune.cli.collection_arguments import open_collection, open_rows
from mmtune.cli.dispatch import Result, add_quiet


def shadow_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "version",
        nargs="?",
        metavar="VERSION",
        help="the version to compare with the live one; without it, only print the report",
    )
    p.add_argument(
        "--fraction", type=float, metavar="F", help="share of the live searches, also of a server, to repeat on VERSION (0.1)"
    )
    p.add_argument(
        "--queries",
        metavar="DATA",
        help="search both versions with these packed rows now, instead of waiting for live searches",
    )
    p.add_argument("-k", type=int, default=10, help="number of results to compare with --queries (default %(default)s)")
    p.add_argument("--off", action="store_true", help="stop repeating live searches")
    add_quiet(p)


def shadow_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        if args.off:
            collection.shadow(None)
        elif args.version and (args.fraction is not None or not args.queries):
            collection.shadow(args.version, args.fraction)
        if args.queries and args.version:
            collection.shadow_searches.replay(args.version, open_rows(args.queries), args.k, quiet=args.quiet)
        report, preference = collection.shadow_report(args.version), collection.preference(args.version)
    document = {**report.to_dict(), "preference": preference.to_dict()}
    return Result(document, index_output.shadow(report, preference))


def promote_arguments(p: argparse.ArgumentParser) -> None:
    from mmtune.cli.compare_verb import gate_options

    p.add_argument("version", metavar="VERSION", help="the version to make live")
    p.add_argument(
        "--queries", metavar="DATA", help="held-out packed rows that neither model was trained on, to compare both versions"
    )
    p.add_argument("--gate", metavar="FILE", help="YAML file with the gate (a recipe, or the gate alone), see `mmtune compare`")
    gate_options(p)
    p.add_argument("--retention", metavar="DATA", help="packed rows of general data, on which the metrics must not fall")
    p.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help="metadata column; also compare separately for each of its values (may be repeated)",
    )
    p.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="metadata column of the held-out rows whose values the intervals resample, e.g. recording (default: groups and equal content)",
    )
    p.add_argument("--qrels", metavar="FILE", help="relevance judgments of held-out rows and items, TREC or JSON lines")
    p.add_argument(
        "--min-recall",
        type=float,
        default=0.95,
        metavar="R",
        help="smallest allowed recall of the index against exact search (default %(default)s)",
    )
    p.add_argument(
        "--max-slowdown",
        type=float,
        default=2.0,
        metavar="X",
        help="largest allowed ratio of the search time to that of the live version (default %(default)s)",
    )
    p.add_argument(
        "--allow-trained",
        action="store_true",
        help="only warn about rows that a model was trained on, instead of refusing them",
    )
    p.add_argument("--force", action="store_true", help="promote even if the gate or another check fails; needs --why")
    p.add_argument("--why", metavar="REASON", help="reason to record in the audit log")


def promote_action(args: argparse.Namespace) -> Result:
    from mmtune.cli.compare_verb import gate_of

    with open_collection(args) as collection:
        result = collection.promote(
            args.version,
            gate=gate_of(args),
            queries=open_rows(args.queries),
            force=args.force,
            why=args.why,
            qrels=args.qrels,
            retention=open_rows(args.retention),
            slices=args.slice,
            cluster=args.cluster,
            min_recall=args.min_recall,
            max_slowdown=args.max_slowdown,
            allow_trained=args.allow_trained,
        )
    return Result(result.to_dict(), index_output.promoted(result), 0 if result.promoted else 1)


def rollback_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--why", metavar="REASON", help="reason to record in the audit log")


def rollback_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.rollback(args.why)
    return Result(result.to_dict(), f"{result.version} is live again (before: {result.rolled_back})")


def judgments_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory in which to write judgments.jsonl, data/ and pairs/ (packed rows)",
    )


def judgments_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.export_feedback(args.out)
    return Result(
        result.to_dict(),
        f"{result.verdicts} judgments in {result.judgments}, the judged rows in {result.data}; {result.unused} judgments left out "
        "(unknown query or item)" + (f"\npairs to train on in {result.pairs}" if result.pairs else ""),
    )
