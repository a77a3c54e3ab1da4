"""Actions of `mmtune index` about which version is live: shadow, promote, rollback; and judgments from feedback."""

import argparse

from mmtune.cli import index_output as say
from mmtune.cli.collection_arguments import open_collection, open_rows
from mmtune.cli.dispatch import Result


def shadow_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("version", nargs="?", metavar="VERSION", help="staged version; without it, only the report")
    p.add_argument("--fraction", type=float, metavar="F", help="repeat this share of live searches on it (a server's, too)")
    p.add_argument("--queries", metavar="DATA", help="ask both with these rows now, without traffic")
    p.add_argument("-k", type=int, default=10, help="answers to compare with --queries (default %(default)s)")
    p.add_argument("--off", action="store_true", help="stop shadowing")


def shadow_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as coll:
        if args.off:
            coll.shadow(None)
        elif args.version and (args.fraction is not None or not args.queries):
            coll.shadow(args.version, 0.1 if args.fraction is None else args.fraction)
        if args.queries and args.version:
            coll.shadow_searches.replay(args.version, open_rows(args.queries), args.k, quiet=False)
        report, preference = coll.shadow_report(args.version), coll.preference(args.version)
    document = {**report.to_dict(), "preference": preference.to_dict()}
    return Result(document, say.shadow(report, preference))


def promote_arguments(p: argparse.ArgumentParser) -> None:
    from mmtune.cli.compare_verb import gate_options

    p.add_argument("version", metavar="VERSION")
    p.add_argument("--queries", metavar="DATA", help="held-out rows, which neither model was trained on")
    p.add_argument("--gate", metavar="FILE", help="YAML with the gate (a recipe, or the gate alone), as `mmtune compare`")
    gate_options(p)
    p.add_argument("--retention", metavar="DATA", help="other shards on which nothing may be lost")
    p.add_argument("--slice", action="append", default=[], metavar="COLUMN", help="a metadata column of the held-out rows")
    p.add_argument("--qrels", metavar="FILE", help="judgments of held-out rows and items, TREC or JSON lines")
    p.add_argument("--min-recall", type=float, default=0.95, help="of the index against exact search (default %(default)s)")
    p.add_argument("--max-slowdown", type=float, default=2.0, help="times live's search time (default %(default)s)")
    p.add_argument("--force", action="store_true", help="in spite of the reasons; needs --why")
    p.add_argument("--why", help="kept in the journal")


def promote_action(args: argparse.Namespace) -> Result:
    from mmtune.cli.compare_verb import gate_of

    with open_collection(args) as coll:
        done = coll.promote(
            args.version,
            gate=gate_of(args),
            queries=open_rows(args.queries),
            force=args.force,
            why=args.why,
            qrels=args.qrels,
            retention=open_rows(args.retention),
            slices=args.slice,
            min_recall=args.min_recall,
            max_slowdown=args.max_slowdown,
        )
    return Result(done.to_dict(), say.promoted(done), 0 if done.promoted else 1)


def rollback_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--why", help="kept in the journal")


def rollback_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as coll:
        done = coll.rollback(args.why)
    return Result(done.to_dict(), f"{done.version} is live again (it was {done.rolled_back})")


def judgments_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", required=True, metavar="DIR", help="gets judgments.jsonl, data and pairs, packed")


def judgments_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as coll:
        done = coll.export_feedback(args.out)
    return Result(
        done.to_dict(),
        f"{done.verdicts} verdicts in {done.judgments}, their rows in {done.data}; {done.unused} unused"
        + (f"\npairs to train on in {done.pairs}" if done.pairs else ""),
    )
