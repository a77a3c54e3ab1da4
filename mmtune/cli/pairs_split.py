"""`mmtune pairs split`: mix sources, make splits, and write a data card."""

import argparse

from mmtune import modalities
from mmtune.cli.dispatch import Result
from mmtune.errors import DataError

TEXT = "Mix sources into one table with splits (by group, recording, class or time) and a data card."
EXAMPLE = "mmtune pairs split pairs/catalog pairs/generated --split train=0.8,val=0.1,test=0.1 --stratify category --out corpus"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="tables, folders, or directories that `mmtune pairs` wrote; all become one table",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="splits with their shares, in the order of time for --time (default train=0.8,val=0.1,test=0.1)",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COL",
        help="column, such as recording or machine, whose values are never in two splits; the group is one anyway; may be repeated",
    )
    parser.add_argument(
        "--stratify", metavar="COL", help="column whose values get the shares, each for itself; use it with --keep later"
    )
    parser.add_argument("--time", metavar="COL", help="column with times: earlier rows go to earlier splits")
    parser.add_argument(
        "--cut", action="append", default=[], metavar="TIME", help="time at which the next split begins; may be repeated"
    )
    parser.add_argument("--keep", metavar="DIR", help="an earlier output of this command, whose rows keep their splits")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number gives other splits (default 0)")
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="licence of the rows (of the source NAME) that have no column licence; may be repeated",
    )
    for name in modalities.names():
        parser.add_argument(
            f"--{name}", dest=f"column_{name}", metavar="COL", help=f"{name} column (usual names are recognised)"
        )
    parser.add_argument("--id", metavar="COL", help="column of the row ids (recognised: id; else the path or the row number)")
    parser.add_argument("--group", metavar="COL", help="column of the groups (recognised: group)")


def licences_of(options: list[str]) -> dict[str, str]:
    """Parse --licence: {source, or "" for all: licence}."""
    found: dict[str, str] = {}
    for option in options:
        name, equals, text = option.partition("=")
        name, text = (name, text) if equals else ("", option)
        if not text.strip() or name in found:
            raise DataError(f"--licence {option}: give each source once, as NAME=LICENCE, or one licence for all")
        found[name] = text.strip()
    return found


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.corpus_split import split_pairs

    result = split_pairs(
        args.sources,
        args.out,
        splits=args.split or ["train=0.8", "val=0.1", "test=0.1"],
        by=args.by,
        stratify=args.stratify,
        time=args.time,
        cuts=args.cut,
        keep=args.keep,
        seed=args.seed,
        licences=licences_of(args.licence),
        columns={n: c for n in modalities.names() if (c := getattr(args, f"column_{n}")) is not None},
        id=args.id,
        group=args.group,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))
