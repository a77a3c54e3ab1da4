"""Find problems in packed data, such as leaks between splits, duplicates, suspect labels and broken files.

  mmtune doctor packed/train --against packed/val
  mmtune doctor packed/val runs/a/artifact
  mmtune doctor packed/train --out findings.jsonl; mmtune pack train.csv --out packed/clean --drop findings.jsonl

  mmtune doctor --env

With a MODEL, the embedding space of the model on the data is checked too, e.g. for collapse.
Exit status: 0 no errors, 1 at least one finding of severity "error" (it would make metrics or training wrong), 2 invalid input.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="?", help="packed rows to check")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="also check the embedding space of this model on the data")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="DATA",
        help="another split to find leaks to, e.g. the training shards (may be repeated)",
    )
    parser.add_argument(
        "--split", metavar="COLUMN", help='metadata column that names the splits (default: "split", if it exists)'
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write all findings, with the ids of all affected rows, to a JSONL file that `mmtune pack --drop` accepts",
    )
    parser.add_argument(
        "--env",
        action="store_true",
        help="check the installation instead: versions, what is missing for which feature, and whether the GPU is used",
    )
    parser.add_argument(
        "--limit", type=int, default=50_000, help="most rows per split whose contents are decoded (default %(default)s)"
    )
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.errors import RecipeError

    if args.env:
        from mmtune.quality.environment import inspect_environment

        environment = inspect_environment()
        return Result(environment.to_dict(), str(environment), 1 if environment.problems else 0)
    if not args.data:
        raise RecipeError("give DATA, or --env to check the installation")
    from mmtune.quality.doctor import doctor

    diagnosis = doctor(args.data, args.model, against=args.against, split=args.split, limit=args.limit, quiet=args.quiet)
    if args.out:
        diagnosis.write_findings(args.out)
    return Result(diagnosis.to_dict(), str(diagnosis), diagnosis.status)
