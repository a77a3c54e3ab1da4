"""Run the whole workflow on a small catalog and machine sounds that it makes itself: minutes on a CPU, no download.

  mmtune demo --out runs/demo

Draws products that differ in one detail and synthesises machines with graded faults, packs both, trains a base model on
coarse captions, tunes it on fine ones, prints the metrics before and after, replaces the model behind a search, and leaves
pictures of a few searches and a page with players in its folder. Killed and run again, it continues where it stopped.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for everything (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another catalog (0)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.demo.job import demo, table
    from mmtune.training.stop_signals import Stopped

    try:
        result = demo(args.out, seed=args.seed)
    except Stopped as e:
        return Result({"stopped": str(e)}, f"{e}; the same command goes on", 130)
    return Result(result.to_dict(), table(result))
