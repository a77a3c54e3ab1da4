"""Ask people whether pairs match, on a page with keyboard answers; what is asked is chosen, and the answers are judgments.

  mmtune label DATA --model runs/a/artifact --out labels            opens http://127.0.0.1:7861/label/
  mmtune label DATA --model MODEL --budget 200                      what 200 answers would buy (simulated on data with groups)

DATA is packed data, a table (CSV, TSV, JSONL, Parquet) or the directory of a collection. Keys: M or 1 match, N or 2 not a match, U
or 3 unsure, Backspace takes the last answer back. Each annotator opens the page with ?annotator=NAME. DIR gets answers.jsonl and
judgments.jsonl, which `mmtune eval --qrels` and `mmtune mine --judgments` read. Start the same command again to continue.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="packed data, a table, or the directory of a collection")
    parser.add_argument("--out", metavar="DIR", help="directory of the answers")
    parser.add_argument(
        "--model", metavar="MODEL", help="model whose near candidates are asked (default: a collection's live model)"
    )
    parser.add_argument("--tuned", metavar="MODEL", help="a second model; asks where the two disagree, too")
    parser.add_argument(
        "--direction", metavar="A->B", help="modalities of query and candidate (default: caption to the other, or within)"
    )
    parser.add_argument(
        "--choose", metavar="NAMES", help="unsure, disagreement, dense, random, joined by commas (default: all that apply)"
    )
    parser.add_argument(
        "--annotator", default="annotator", metavar="NAME", help="who answers, if the page's address does not say"
    )
    parser.add_argument("--port", type=int, default=7861, metavar="N", help="port (default 7861; 0 means any free port)")
    parser.add_argument("--budget", type=int, metavar="N", help="ask nobody; simulate what N answers would buy")
    parser.add_argument(
        "--truth", default="group", metavar="COL", help="with --budget: column of the true groups (default: group)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="with --budget: repetitions (default 3)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="values in one forward pass (default 64)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.errors import DataError
    from mmtune.labelling.label import label_budget, open_label_session

    given = {"model": args.model, "direction": args.direction, "choose": args.choose}
    if args.budget is not None:
        curve = label_budget(
            args.data, args.budget, **given, truth=args.truth, seeds=args.seeds, batch_size=args.batch_size, quiet=args.quiet
        )
        return Result(curve.to_dict(), str(curve))
    if not args.out:
        raise DataError("--out DIR is needed for the answers (or --budget N, which asks nobody)")
    from mmtune.labelling.label_page import run_label_page

    session = open_label_session(args.data, args.out, **given, tuned=args.tuned, batch_size=args.batch_size, quiet=args.quiet)
    url = run_label_page(session, args.annotator, args.port, args.quiet)
    agreement = session.log.agreement()
    judgments = session.log.publish()
    document = {"url": url, "answers": len(session.log.lines()), "judgments": judgments, "agreement": agreement.to_dict()}
    return Result(document, f"{document['answers']} answers, {judgments} judgments: {args.out}/judgments.jsonl\n{agreement}")
