"""Measure how fast a recipe trains on this machine with its own rows, and whether data or towers are the bottleneck.

  mmtune bench RECIPE.yaml data.workers=4

Runs a few training steps, then loading alone, then embedding; about a minute, and nothing is written. For comparisons with
sentence-transformers, open_clip and a bare PyTorch loop see notebooks/speed.ipynb, or run `pytest -m bench -s`.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe, as for `mmtune train`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys by dotted name")
    parser.add_argument("--steps", type=int, default=16, help="number of timed steps")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> Result:
    from mmtune.benchmark.throughput import bench

    throughput = bench(args.recipe, args.overrides, steps=args.steps, quiet=args.quiet)
    return Result(throughput.to_dict(), str(throughput))
