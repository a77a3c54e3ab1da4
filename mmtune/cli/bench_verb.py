"""Measure how fast a recipe trains on this machine, or how well tuned towers do on your sets beside other methods.

  mmtune bench RECIPE.yaml data.workers=4
  mmtune bench quality --data shop=data/shop --image-tower timm:NAME@FILE --text-tower st:DIR --out bench/shop

With a recipe: runs a few training steps on the recipe's data, then only data loading, then only embedding, and says whether data
loading or the encoders are the bottleneck. This takes about a minute and writes no files. For comparisons with
sentence-transformers, open_clip and a plain PyTorch loop, see notebooks/speed.ipynb or run `pytest -m bench -s`.

With `quality`: every DIR holds the packed sets `train` and `val`, whose groups are the classes. The same pretrained towers are
scored on val as they are (heads as the recipe fits them), tuned by mmtune, tuned by sentence-transformers on as many pairs, under a linear
probe, nearest neighbours, Tip-Adapter and CLIP-Adapter; mean, standard deviation, 95% interval over the seeds, and seconds. Results
are written to OUT as they are made: quality.json, quality.md; the same command continues after an interruption. Needs the extra `bench`.
"""

import argparse

from mmtune import modalities
from mmtune.cli.dispatch import Result, add_quiet
from mmtune.errors import RecipeError

QUALITY = "quality"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe, as for `mmtune train`; or the word quality")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a recipe key, e.g. data.workers=4")
    parser.add_argument("--steps", type=int, help="number of training steps to time (default 16)")
    add_quiet(parser)
    group = parser.add_argument_group("bench quality")
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a set: DIR/train and DIR/val, packed with --group; repeatable",
    )
    for m in modalities.names():
        group.add_argument(f"--{m}-tower", dest=f"tower_{m}", metavar="MODEL", help=f"the pretrained {m} tower")
    group.add_argument("--out", metavar="DIR", help="directory of the results")
    group.add_argument("--seeds", type=int, metavar="N", help="number of seeds, from 0 (default 3)")
    group.add_argument("--shots", metavar="N,N", help="train on so many rows of each group, e.g. 1,4,16 (default: on all)")
    group.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="metadata column whose values the intervals of differences resample (default: a recording column, if there is one, else single "
        "queries)",
    )
    group.add_argument("--methods", metavar="NAME,NAME", help="methods to run (default: all)")
    group.add_argument(
        "--recipe",
        dest="recipes",
        action="append",
        default=[],
        metavar="NAME=RECIPE",
        help="recipe of the set NAME (default: that of `mmtune init --encoders` for its size); key=value overrides all recipes",
    )


def run(args: argparse.Namespace) -> Result:
    if args.recipe == QUALITY:
        return _quality(args)
    from mmtune.benchmark.throughput import bench

    towers = {f"{m}-tower": f"tower_{m}" for m in modalities.names()}
    options = {
        "data": "data",
        "out": "out",
        "shots": "shots",
        "methods": "methods",
        "recipe": "recipes",
        "cluster": "cluster",
        "seeds": "seeds",
    }
    for option, name in {**options, **towers}.items():
        if getattr(args, name):
            raise RecipeError(f"--{option}: is an option of `mmtune bench quality`")
    throughput = bench(args.recipe, args.overrides, steps=16 if args.steps is None else args.steps, quiet=args.quiet)
    return Result(throughput.to_dict(), str(throughput))


def _quality(args: argparse.Namespace) -> Result:
    from mmtune.benchmark.quality_bench import METHODS, bench_quality

    if not args.out:
        raise RecipeError("--out DIR: name a directory for the results")
    if args.steps is not None:
        raise RecipeError(
            "--steps: is an option of `mmtune bench RECIPE`; here the recipe says how long is trained (train.epochs=N)"
        )
    towers = {m: getattr(args, f"tower_{m}") for m in modalities.names() if getattr(args, f"tower_{m}")}
    result = bench_quality(
        _named(args.data, "--data", "NAME=DIR"),
        towers,
        args.out,
        seeds=3 if args.seeds is None else args.seeds,
        methods=[m.strip() for m in args.methods.split(",")] if args.methods else METHODS,
        shots=_numbers(args.shots),
        recipes=_named(args.recipes, "--recipe", "NAME=RECIPE"),
        overrides=args.overrides,
        cluster=args.cluster,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))


def _named(given: list[str], option: str, form: str) -> dict[str, str]:
    """Split NAME=VALUE arguments. Raises RecipeError for one of another form, or for a name that occurs twice."""
    named: dict[str, str] = {}
    for item in given:
        name, _, value = item.partition("=")
        if not name or not value or "/" in name:
            raise RecipeError(f"{option} {item}: write {form}, with a name without /")
        if name in named:
            raise RecipeError(f"{option} {item}: the name {name} occurs twice")
        named[name] = value
    return named


def _numbers(given: str | None) -> list[int]:
    try:
        return [int(n) for n in given.split(",")] if given else []
    except ValueError:
        raise RecipeError(f"--shots {given}: write numbers, e.g. 1,4,16") from None
