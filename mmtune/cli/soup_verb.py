"""Average the weights of several runs of one base model into an artifact: often better than any of them, and as fast as one.

  mmtune soup runs/a/artifact runs/b/artifact runs/c/artifact --data data/val --out soups/abc

greedy (the default): from the best on DATA down, a model is added while the mean's score does not fall; uniform: all of them.
The printed score chose the soup: evaluate the soup on other rows, e.g. with `mmtune compare`.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="artifacts of one base model and one layout; the base itself is allowed"
    )
    parser.add_argument("--data", required=True, metavar="DATA", help="packed rows that none of them was trained on")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the soup, an artifact")
    parser.add_argument("--how", default="greedy", help="greedy (the default) or uniform")
    parser.add_argument(
        "--metric", default="map", help="metric, averaged over the directions between modalities (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64)


def run(args: argparse.Namespace) -> Result:
    from mmtune.training.regularise.soup import soup

    done = soup(args.models, args.data, args.out, how=args.how, metric=args.metric, batch_size=args.batch_size)
    lines = [f"{'+' if s['taken'] else '-'} {s['model']}: {args.metric} {s['alone']:.4f} alone" for s in done.steps]
    lines += [f"{done.artifact}: {args.metric} {done.score:.4f}, the best single one has {done.best_single:.4f}"]
    return Result(done.to_dict(), "\n".join(lines))
