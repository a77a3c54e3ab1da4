"""`mmtune pairs logs`: graded pairs of a click log."""

import argparse

from mmtune.cli.dispatch import Result

TEXT = "Make graded pairs of a click log: position bias corrected, bots removed, skipped results as negatives."
EXAMPLE = "mmtune pairs logs LOG.parquet --query q --item sku --position rank --clicked clicked --time ts --out DIR"

COLUMNS = {
    "position": "rank in the result list; without it there is no correction of position bias, and no skipped results",
    "clicked": "whether the item was clicked (true, 1, yes)",
    "cart": "whether it was put into the cart",
    "order": "whether it was ordered",
    "event": "kind of event (impression, click, cart, order), if a row is an event and not an impression",
    "time": "date and time, or a number of seconds, ms, us or ns since 1970",
    "session": "session, for result lists and reformulations",
    "user": "user, for bots; stands for the session if there is none",
    "search": "id of one displayed result list (otherwise: equal query, session and time)",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="LOG", help="CSV, TSV, JSONL or Parquet: a file, a folder, a pattern or an fsspec URL"
    )
    parser.add_argument("--query", required=True, metavar="COL", help="column of the queries")
    parser.add_argument("--item", required=True, metavar="COL", help="column of the item ids")
    for name, text in COLUMNS.items():
        parser.add_argument(f"--{name}", metavar="COL", help=f"column: {text}")
    parser.add_argument(
        "--catalog", metavar="TABLE", help="table of the items, whose contents join the pairs, ready for `pack`"
    )
    parser.add_argument("--catalog-id", metavar="COL", help="its column of item ids (default: the name of --item)")
    parser.add_argument("--candidate", metavar="COL", help="its column of what is searched for (recognised: usual names)")
    parser.add_argument(
        "--position-bias",
        default="estimate",
        metavar="HOW",
        help="estimate (from the log, default), none, or E: rank k is examined with probability 1 / k**E",
    )
    parser.add_argument("--clip", type=float, default=0.02, metavar="P", help="smallest examination probability (default 0.02)")
    parser.add_argument("--min-impressions", type=int, default=5, metavar="N", help="fewest impressions of a pair (default 5)")
    parser.add_argument("--min-clicks", type=int, default=2, metavar="N", help="fewest clicks of a positive pair (default 2)")
    parser.add_argument(
        "--min-skips", type=int, default=3, metavar="N", help="fewest skips above a click of a negative (default 3)"
    )
    parser.add_argument("--negatives", type=int, default=8, metavar="N", help="most negatives of a query (default 8)")
    parser.add_argument(
        "--min-reformulations",
        type=int,
        default=3,
        metavar="N",
        help="fewest sessions that found an item with the next query (default 3)",
    )
    parser.add_argument(
        "--prior", type=float, metavar="N", help="examinations that the mean rate counts (default: estimated from the log)"
    )
    parser.add_argument("--keep-bots", action="store_true", help="keep users who act like bots")
    parser.add_argument(
        "--max-per-minute",
        type=int,
        default=60,
        metavar="N",
        help="most searches or clicks of a human in a minute (default 60)",
    )
    parser.add_argument(
        "--split-time", metavar="TIME", help="judge what is later than this, train on what is earlier (2026-05-01)"
    )
    parser.add_argument(
        "--eval-fraction", type=float, default=0.0, metavar="F", help="the same, with the last part of the rows"
    )
    parser.add_argument("--keep-case", action="store_true", help="queries that differ only in case are different")
    parser.add_argument("--encoding", metavar="NAME", help="encoding of a CSV log (utf-8, utf-16, latin-1)")
    parser.add_argument("--memory", default="700MB", metavar="SIZE", help="memory of DuckDB; more goes to disk (default 700MB)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of DuckDB (default: the machine's, at most 8)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.logs import pairs_from_logs

    result = pairs_from_logs(
        args.source,
        args.out,
        query=args.query,
        item=args.item,
        **{name: getattr(args, name) for name in COLUMNS},
        catalog=args.catalog,
        catalog_id=args.catalog_id,
        candidate=args.candidate,
        position_bias=args.position_bias,
        clip=args.clip,
        min_impressions=args.min_impressions,
        min_clicks=args.min_clicks,
        min_skips=args.min_skips,
        negatives=args.negatives,
        min_reformulations=args.min_reformulations,
        prior=args.prior,
        remove_bots=not args.keep_bots,
        max_per_minute=args.max_per_minute,
        split_time=args.split_time,
        eval_fraction=args.eval_fraction,
        keep_case=args.keep_case,
        encoding=args.encoding,
        memory=args.memory,
        threads=args.threads,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    lines = [str(result)]
    if bias := result.measures["position_bias"]:
        shown = ", ".join(f"{p:.2f}" for p in bias["examination"][:10])
        origin = f"estimated from {bias['pairs_at_several_positions']:,} pairs" if bias["estimated_positions"] else "as given"
        lines.append(f"examination by rank: {shown} ({origin})")
    lines += [f"{what.replace('_', ' ')}: {_by_split(result.measures[what])}" for what in COUNTS]
    return Result(result.to_dict(), "\n".join(lines))


COUNTS = ("positives_from_clicks", "positives_from_reformulations", "skipped_items")


def _by_split(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} in {split}" for split, n in sorted(counts.items(), reverse=True)) or "0"
