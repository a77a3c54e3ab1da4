"""Average the weights of several models that were tuned from the same base model (a model soup, arXiv 2203.05482).

  mmtune soup runs/a/artifact runs/b/artifact runs/c/artifact --data data/val --out soups/abc

The average is often better than each of the models, and as fast as one of them.
  greedy     (default) try the models from the best to the worst on DATA; keep a model if the average does not get worse
  uniform    average all models
The soup is chosen by its score on DATA, so this score is too optimistic. Evaluate the soup on other data, e.g. with `mmtune
compare`.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="artifacts that were tuned from the same base model and have the same architecture; the base model is allowed too",
    )
    parser.add_argument("--data", required=True, metavar="DATA", help="packed rows that none of the models was trained on")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory in which to write the soup, as an artifact")
    parser.add_argument("--how", default="greedy", help="greedy (default) or uniform")
    parser.add_argument(
        "--metric",
        default="map",
        help="metric to choose models by, averaged over the directions between modalities (default %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.training.regularise.soup import soup

    done = soup(
        args.models, args.data, args.out, how=args.how, metric=args.metric, batch_size=args.batch_size, quiet=args.quiet
    )
    lines = [f"{'+' if s['taken'] else '-'} {s['model']}: {args.metric} {s['alone']:.4f} alone" for s in done.steps]
    lines += [f"{done.artifact}: {args.metric} {done.score:.4f}; best single model: {done.best_single:.4f}"]
    return Result(done.to_dict(), "\n".join(lines))
