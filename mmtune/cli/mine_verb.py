"""Mine hard negatives of MODEL on DATA, with guards against false negatives: OUT.parquet, and its audit beside it.

  mmtune mine runs/a/artifact packed/train --out negatives.parquet
  mmtune mine MODEL DATA --out FILE --direction "a->b" --set guards.max_score=0.9 --set negatives=8

Every option of a recipe's `mining:` can be set with --set. OUT.audit.html shows what was mined, and what was dropped and why;
judge some pairs in a JSONL ({"query_id", "negative_id", "verdict": "positive" or "negative"}) and pass it as --judgments.
torchrun --nproc-per-node N -m mmtune mine ... shares the embedding. Exit status 1: nothing was mined; the audit says why.
"""

import argparse

from mmtune.cli.dispatch import Result
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model whose nearest neighbours are the candidates")
    parser.add_argument("data", metavar="DATA", help="packed training rows")
    parser.add_argument("--out", required=True, metavar="FILE", help="the table of negatives, Parquet")
    parser.add_argument(
        "--direction",
        action="append",
        metavar="A->B",
        help="mine this direction (may be repeated; default: all between modalities)",
    )
    parser.add_argument("--negatives", type=int, metavar="N", help="negatives per query row (default 4)")
    parser.add_argument("--window", type=int, metavar="N", help="ranks that are considered (default 30)")
    parser.add_argument(
        "--sampling", choices=("top", "random", "softmax"), help="which candidates of the window are taken (default top)"
    )
    parser.add_argument(
        "--relative-margin",
        metavar="P",
        help='drop candidates above this share of the positive score: a number, "calibrated" (default) or "off"',
    )
    parser.add_argument("--judgments", metavar="JSONL", help="human verdicts on pairs")
    parser.add_argument("--verifier", metavar="SPEC", help="a MODEL, or package.module:Class with score(pairs)")
    parser.add_argument("--truth", metavar="COLUMN", help="measure the guards against the groups of this column")
    parser.add_argument("--memory", type=int, metavar="MB", help="working memory beside the vectors (default 1024)")
    parser.add_argument("--seed", type=int, metavar="N", help="of random and softmax sampling (default 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any option of `mining:` by dotted name"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="of the embedding (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> Result:
    from mmtune.mining.audit_page import summary
    from mmtune.mining.mine_model import mine, parse_options
    from mmtune.runtime.distributed import silence_other_ranks

    silence_other_ranks()
    result = mine(
        args.model,
        args.data,
        args.out,
        parse_options(mining_values(args)),
        verifier=args.verifier,
        truth=args.truth,
        batch_size=args.batch_size,
        quiet=args.quiet,
    )
    head = f"{result.table}  {result.mined} negatives; look at {result.page}"
    return Result(result.to_dict(), f"{head}\n{summary(result.document)}", 0 if result.mined else 1)


def mining_values(args: argparse.Namespace) -> JsonObject:
    """The options as the values of a recipe's `mining:`. RecipeError for a --set without a value."""
    import yaml

    values: JsonObject = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item}: write KEY=VALUE, for example guards.max_score=0.9")
        place = values
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {item}: {part} was set to a value before")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {item}: the value is not YAML") from None
    for name in ("negatives", "window", "sampling", "judgments", "seed"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    if args.direction:
        values["directions"] = args.direction
    if args.relative_margin is not None:
        margin = None if args.relative_margin == "off" else yaml.safe_load(args.relative_margin)
        values.setdefault("guards", {})["relative_margin"] = margin
    if args.memory is not None:
        values.setdefault("search", {})["memory_mb"] = args.memory
    return values
