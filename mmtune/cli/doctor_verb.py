"""Find what is wrong with the data, and with a model on them: leaks, duplicates, labels, broken values, a collapsed space.

  mmtune doctor packed/train --against packed/val
  mmtune doctor packed/val runs/a/artifact

Exit status: 0 no finding that makes scores or training wrong, 1 there is an error among the findings, 2 bad input.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="packed rows")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="also examine the embedding space of this model on the data")
    parser.add_argument(
        "--against", action="append", default=[], metavar="DATA", help="another split, e.g. the training shards"
    )
    parser.add_argument("--split", metavar="COLUMN", help='the column that names splits (default: "split", if there is one)')
    parser.add_argument(
        "--limit", type=int, default=50_000, help="rows of each split whose values are read (default %(default)s)"
    )


def run(args: argparse.Namespace) -> Result:
    from mmtune.quality.doctor import doctor

    diagnosis = doctor(args.data, args.model, against=args.against, split=args.split, limit=args.limit, quiet=False)
    return Result(diagnosis.to_dict(), str(diagnosis), diagnosis.status)
