"""`mmtune pairs catalog`: media and captions from a product catalog."""

import argparse

from mmtune import modalities
from mmtune.cli.dispatch import Result

TEXT = "Captions from attribute templates for the pictures of a product catalog or feed (CSV, JSONL, Parquet, Google Merchant XML)."
EXAMPLE = 'mmtune pairs catalog products.csv --caption "{brand} {title}, {color}" --id sku --image photo --out pairs/catalog'


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a .csv, .tsv, .jsonl, .parquet or .xml file, or a folder of tables")
    parser.add_argument(
        "--caption",
        action="append",
        default=[],
        metavar="TEMPLATE",
        help='template such as "{brand} {title}, {color}", may be repeated: each is a caption of every product. A missing attribute '
        "leaves with its punctuation; [ ... ] is an optional part, {a|b} the first that has a value, {a!} a required one",
    )
    parser.add_argument(
        "--sentences",
        action="append",
        default=[],
        metavar="COL",
        help="column whose sentences are captions, too; may be repeated",
    )
    parser.add_argument("--id", default="id", metavar="COL", help="column of the product ids (default id)")
    parser.add_argument("--group", metavar="COL", help="column of the groups (default: a product is a group)")
    for name in modalities.non_language(modalities.names()):
        parser.add_argument(
            f"--{name}",
            dest=f"column_{name}",
            action="append",
            default=[],
            metavar="COL",
            help=f"column with paths or URLs of {name} files, may be repeated; a cell may be a list",
        )
    parser.add_argument(
        "--join",
        action="append",
        default=[],
        metavar="TABLE",
        help="table with further files, a row each, that has the same columns of ids and files; may be repeated",
    )
    parser.add_argument("--separator", metavar="SIGN", help="what separates several paths in one cell, such as , or |")
    parser.add_argument(
        "--combine",
        choices=("each", "all"),
        default="each",
        help="each (default): every file and every caption of a product is in at least one row; all: a row for each combination",
    )


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.product_catalog import pairs_from_catalog

    names = modalities.non_language(modalities.names())
    result = pairs_from_catalog(
        args.source,
        args.out,
        id=args.id,
        media={n: columns for n in names if (columns := getattr(args, f"column_{n}"))},
        captions=args.caption,
        sentences=args.sentences,
        group=args.group,
        join=args.join,
        combine=args.combine,
        separator=args.separator,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))
