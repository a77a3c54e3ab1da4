"""Recommend whether and how to tune a model, and estimate what re-indexing would cost, from your data and this machine.

  mmtune advise hf:DIR packed/val --corpus-size 1000000 --target ndcg@10=0.55

The recommendation is one of:
  off-the-shelf      use the model as it is
  label more data    there are too few labelled rows to decide or to tune
  head               train a projection head on the frozen model
  LoRA               train LoRA adapters
  full               train all weights
The evidence for the recommendation is printed with it.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model that might be tuned")
    parser.add_argument("data", metavar="DATA", help="labelled packed rows: matching rows share a group, or a row holds a pair")
    parser.add_argument("--corpus-size", type=int, required=True, metavar="N", help="number of items to be indexed")
    parser.add_argument("--target", metavar="METRIC=VALUE", help="a metric value that would be good enough, e.g. ndcg@10=0.55")
    parser.add_argument(
        "--direction",
        metavar="A->B",
        help="direction of the searches: queries of modality A, an index of B (default: captions search the other modality)",
    )
    parser.add_argument("--price-per-hour", type=float, help="price of this machine per hour")
    parser.add_argument("--limit", type=int, default=5000, help="most rows that are embedded (default %(default)s)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.quality.advise import advise

    if args.corpus_size < 1:
        raise RecipeError(f"--corpus-size {args.corpus_size}: must be at least 1")
    advice = advise(
        args.model,
        args.data,
        corpus_size=args.corpus_size,
        target=args.target,
        direction=args.direction,
        price_per_hour=args.price_per_hour,
        limit=args.limit,
        quiet=args.quiet,
    )
    return Result(advice.to_dict(), str(advice))
