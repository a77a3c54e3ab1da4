"""`mmtune pairs labels`: groups, graded judgments and hard negatives from labels and taxonomies."""

import argparse

from mmtune import modalities
from mmtune.cli.dispatch import Result

TEXT = "Groups, graded judgments and hard negatives (siblings) from labels of several levels, a taxonomy column, or folders."
EXAMPLE = "mmtune pairs labels photos.csv --level category --level type --level sku --out pairs/labels"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a table, a folder, tar files or a dataset on disk, as for `mmtune pack`"
    )
    parser.add_argument(
        "--level",
        action="append",
        default=[],
        metavar="COL",
        help="column of a level of labels, the coarsest first; may be repeated",
    )
    parser.add_argument(
        "--taxonomy",
        metavar="COL",
        help='column of paths such as "Shoes > Boots" (separated by > / or |), or the word folders for the folders of the files; its '
        "levels come before those of --level",
    )
    for name in modalities.names():
        parser.add_argument(
            f"--{name}", dest=f"column_{name}", metavar="COL", help=f"{name} column (usual names are recognised)"
        )
    parser.add_argument("--id", metavar="COL", help="column of the row ids (recognised: id; else the path or the row number)")
    parser.add_argument(
        "--caption",
        metavar="TEMPLATE",
        help='template of the captions, such as "a photo of {sku}, {category}" (default: the caption column, else the finest label)',
    )
    parser.add_argument(
        "--negatives", type=int, default=8, metavar="N", help="siblings of each row in negatives.parquet (default 8; 0: none)"
    )
    parser.add_argument(
        "--judgments-per-grade",
        type=int,
        default=0,
        metavar="N",
        help="judge at most N items of each grade for a query (default: all)",
    )


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.label_pairs import pairs_from_labels

    result = pairs_from_labels(
        args.source,
        args.out,
        levels=args.level,
        taxonomy=args.taxonomy,
        columns={n: c for n in modalities.names() if (c := getattr(args, f"column_{n}")) is not None},
        id=args.id,
        caption=args.caption,
        negatives=args.negatives,
        judgments_per_grade=args.judgments_per_grade,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))
