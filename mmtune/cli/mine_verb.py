"""Mine hard negatives from DATA with a model, and drop likely false negatives by guards.

  mmtune mine runs/a/artifact packed/train --out negatives.parquet
  mmtune mine MODEL DATA --out FILE --vectors DIR
  mmtune mine MODEL "s3://bucket/shards-{000..099}.tar" --read stream --out negatives.parquet
  mmtune mine MODEL DATA --out FILE --direction "a->b" --set guards.max_score=0.9 --set negatives=8

The negatives are written to --out. An HTML page beside it, the audit, shows which negatives were mined, and which candidates were
dropped and why. To correct mistakes, write judgments to a JSONL file with lines such as {"query_id": ..., "negative_id": ...,
"verdict": "positive"} (or "negative"), and pass the file as --judgments. Every key of the recipe block `mining:` can be set with
--set. Processes started by torchrun (torchrun --nproc-per-node N -m mmtune mine ...) share the embedding. With --engine ray, the
workers of a Ray cluster embed, shard by shard; after an interruption the same command continues with the shards that are left.

Exit status 1: no negative was mined; the audit shows why.
"""

import argparse

from mmtune.cli.collection_arguments import add_skip_bad
from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.embed_verb import add_read, engine
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model whose nearest neighbours are the candidates")
    parser.add_argument("data", metavar="DATA", help="packed training rows")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file to write the negatives to")
    parser.add_argument(
        "--direction",
        action="append",
        metavar="A->B",
        help="mine this direction (may be repeated; default: all directions between different modalities)",
    )
    parser.add_argument("--negatives", type=int, metavar="N", help="number of negatives per query row (default 4)")
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="take negatives from the N nearest candidates that are not positives (default 30)",
    )
    parser.add_argument(
        "--sampling", choices=("top", "random", "softmax"), help="how to choose negatives from the window (default top)"
    )
    parser.add_argument(
        "--relative-margin",
        metavar="P",
        help='drop candidates whose score exceeds P times the score of the positive: a number, "calibrated" (default) or "off"',
    )
    parser.add_argument("--judgments", metavar="JSONL", help="file of human judgments of pairs")
    parser.add_argument(
        "--verifier",
        metavar="SPEC",
        help="a second model that checks the pairs: a MODEL, or package.module:Class with score(pairs)",
    )
    parser.add_argument(
        "--truth",
        metavar="COLUMN",
        help="metadata column of the true groups, to measure how many false negatives the guards miss",
    )
    parser.add_argument(
        "--memory", type=int, metavar="MB", help="working memory in MB, in addition to the embeddings (default 1024)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="random seed of the random and softmax sampling (default 0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the recipe block `mining:`, e.g. guards.max_score=0.9 (may be repeated)",
    )
    parser.add_argument(
        "--vectors",
        metavar="DIR",
        help="vectors that `mmtune embed MODEL DATA --out DIR` wrote: mapped from disk, nothing is embedded",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_read(parser)
    add_skip_bad(parser)
    engine(parser)
    add_quiet(parser)


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
        vectors=args.vectors,
        quiet=args.quiet,
        skip_bad=args.skip_bad,
        engine=args.engine,
        workers=args.workers,
        read=args.read,
    )
    head = f"{result.table}  {result.mined} negatives; audit: {result.page}"
    return Result(result.to_dict(), f"{head}\n{summary(result.document)}", 0 if result.mined else 1)


def mining_values(args: argparse.Namespace) -> JsonObject:
    """Convert the command-line options to the recipe block `mining:`.

    Raises RecipeError when a --set is not KEY=VALUE, has invalid YAML, or contradicts an earlier --set.
    """
    import yaml

    values: JsonObject = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item}: write KEY=VALUE, for example guards.max_score=0.9")
        block = values
        *path, last = key.split(".")
        for part in path:
            block = block.setdefault(part, {})
            if not isinstance(block, dict):
                raise RecipeError(f"--set {item}: an earlier --set gave {part} a value, so it can have no keys")
        try:
            block[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {item}: the value is not valid YAML") from None
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
