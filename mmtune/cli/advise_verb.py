"""Recommend whether to tune a model, how, and what re-indexing will cost, measured on your rows and this machine.

  mmtune advise hf:DIR packed/val --corpus-size 1000000 --target ndcg@10=0.55

The recommendation is one of: off-the-shelf, label more data, head, LoRA, full; the evidence is printed with it. Exit status 0.
"""

import argparse

from mmtune.cli.dispatch import Result
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model that would be tuned")
    parser.add_argument("data", metavar="DATA", help="labelled rows (groups, or pairs in one row)")
    parser.add_argument("--corpus-size", type=int, required=True, metavar="N", help="number of items in the future index")
    parser.add_argument("--target", metavar="METRIC=VALUE", help="a score that would be good enough, e.g. ndcg@10=0.55")
    parser.add_argument(
        "--direction",
        metavar="A->B",
        help="the search that matters; the index holds B (default: captions search the other modality)",
    )
    parser.add_argument("--price-per-hour", type=float, help="price of an hour of this machine")
    parser.add_argument("--limit", type=int, default=5000, help="number of rows that are embedded (default %(default)s)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.quality.advise import advise

    if args.corpus_size < 1:
        raise RecipeError(f"--corpus-size {args.corpus_size}: at least 1 item")
    advice = advise(
        args.model,
        args.data,
        corpus_size=args.corpus_size,
        target=args.target,
        direction=args.direction,
        price_per_hour=args.price_per_hour,
        limit=args.limit,
        quiet=False,
    )
    return Result(advice.to_dict(), str(advice))
