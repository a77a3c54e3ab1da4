"""`mmtune pairs duplicates`: group or drop duplicates and near-duplicates."""

import argparse
import os

from mmtune import modalities
from mmtune.cli.dispatch import Result

TEXT = "Put duplicates and near-duplicates into groups, or drop them, and drop rows that are also in other splits."
EXAMPLE = "mmtune pairs duplicates train.csv --against val.csv --action drop --out pairs/clean"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a table, a folder, tar files or a dataset on disk, as for `mmtune pack`"
    )
    parser.add_argument(
        "--action",
        choices=("group", "drop"),
        default="group",
        help="group (default): duplicates without a group get one; drop: a row whose values all repeat an earlier row is left out",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="another split, such as the validation table; rows of SOURCE that are also there are dropped; may be repeated",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        choices=modalities.names(),
        help="modality by which rows are compared, may be repeated (default: all but the captions, or captions if there is nothing else)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="F",
        help="captions are near-duplicates if they share at least this part of their runs of three words (default 0.8; 1: exact)",
    )
    parser.add_argument(
        "--distance",
        type=int,
        metavar="BITS",
        help="bits in which perceptual hashes of near-duplicates may differ (default: that of the modality; -1: same bytes only)",
    )
    for name in modalities.names():
        parser.add_argument(
            f"--{name}", dest=f"column_{name}", metavar="COL", help=f"{name} column (usual names are recognised)"
        )
    parser.add_argument("--id", metavar="COL", help="column of the row ids (recognised: id; else the path or the row number)")
    parser.add_argument("--group", metavar="COL", help="column of the groups (recognised: group)")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=workers, metavar="N", help=f"threads that read files (default here: {workers})"
    )


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.duplicate_rows import group_duplicates

    result = group_duplicates(
        args.source,
        args.out,
        columns={n: c for n in modalities.names() if (c := getattr(args, f"column_{n}")) is not None},
        id=args.id,
        group=args.group,
        action=args.action,
        by=args.by,
        against=args.against,
        threshold=args.threshold,
        distance=args.distance,
        workers=args.workers,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))
