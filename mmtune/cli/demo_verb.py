"""Run the whole workflow on generated data, a small product catalog and machine sounds, in minutes on a CPU.

  mmtune demo --out runs/demo

Nothing is downloaded. The demo generates pictures of products that differ in one detail, and sounds of machines with faults of
different severity. It packs both, trains a base model on coarse captions, tunes the model on detailed captions, and prints the
metrics before and after. Then it replaces the model of a search index. Pictures of example searches and a page that plays the
sounds are saved in the output directory. Resumable: after an interruption, run the same command again.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="output directory (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the generated data (default 0)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.demo.job import demo, table
    from mmtune.training.stop_signals import Stopped

    try:
        result = demo(args.out, seed=args.seed, quiet=args.quiet)
    except Stopped as e:
        return Result({"stopped": str(e)}, f"{e}; run the same command again to continue", 130)
    return Result(result.to_dict(), table(result))
