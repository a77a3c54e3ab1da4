"""Write one self-contained HTML report: the verdict, results by slice, learning curves, and example searches.

  mmtune report runs/a --out a.html                    a run: its base model against its artifact on data.val
  mmtune report --base A --candidate B --data D --out a.html
  mmtune report comparison.json --out a.html           results of `mmtune compare --json`, without models

The file opens from disk and needs no network.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="RUN|COMPARISON", help="a run's directory, or a comparison's JSON")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the report")
    parser.add_argument("--base", metavar="MODEL", help="the base model (default: the run's)")
    parser.add_argument("--candidate", metavar="MODEL", help="the candidate (default: the run's artifact)")
    parser.add_argument(
        "--data", metavar="DATA", help="packed rows that neither was trained on (default: the recipe's data.val)"
    )
    parser.add_argument("--gate", metavar="FILE", help="YAML with the gate (default: the recipe's)")
    parser.add_argument("--slice", action="append", metavar="COLUMN", help='a metadata column, or "size:MODALITY"')
    parser.add_argument("--retention", metavar="DATA", help="packed rows of the general domain, whose scores must not fall")
    parser.add_argument("--qrels", metavar="FILE", help="judgments of relevance, used instead of groups: TREC or JSON lines")
    parser.add_argument("--examples", type=int, default=6, metavar="N", help="queries of each kind (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> Result:
    from mmtune.comparison.gate import read_gate
    from mmtune.reporting.report import report

    done = report(
        args.target,
        args.out,
        base=args.base,
        candidate=args.candidate,
        data=args.data,
        gate=read_gate(args.gate) if args.gate else None,
        slices=args.slice,
        retention=args.retention,
        qrels=args.qrels,
        examples=args.examples,
        batch_size=args.batch_size,
        quiet=args.quiet,
    )
    return Result(done.to_dict(), f"{done.out}  {done.verdict}, {done.bytes / 1e6:.1f} MB")
