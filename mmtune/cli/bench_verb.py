"""Measure how fast a recipe trains on this machine, and whether data loading or the encoders are the bottleneck.

  mmtune bench RECIPE.yaml data.workers=4

Runs a few training steps on the recipe's data, then only data loading, then only embedding. This takes about a minute and
writes no files. For comparisons with sentence-transformers, open_clip and a plain PyTorch loop, see notebooks/speed.ipynb or run
`pytest -m bench -s`.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe, as for `mmtune train`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a recipe key, e.g. data.workers=4")
    parser.add_argument("--steps", type=int, default=16, help="number of training steps to time (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> Result:
    from mmtune.benchmark.throughput import bench

    throughput = bench(args.recipe, args.overrides, steps=args.steps, quiet=args.quiet)
    return Result(throughput.to_dict(), str(throughput))
