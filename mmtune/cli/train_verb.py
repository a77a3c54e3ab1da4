"""Train a model as a recipe describes.

  mmtune train RECIPE.yaml model=hf:DIR data.train=DIR train.epochs=12 run.dir=runs/a

The run directory (run.dir) will contain checkpoints/, metrics.jsonl, tensorboard/ and artifact/. The artifact is the tuned model;
pass it as MODEL to the other commands.
Several processes: torchrun --nproc-per-node N -m mmtune train RECIPE.yaml ...   (or accelerate launch -m mmtune train ...;
or mmtune train RECIPE.yaml --engine ray --workers N, which starts them by Ray Train)
After an interruption, run the same command with --resume; the result is the same as without the interruption.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.embed_verb import engine
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe; `mmtune init` writes a commented one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a recipe key, e.g. train.epochs=12")
    parser.add_argument("--resume", action="store_true", help="continue the run in run.dir from its last checkpoint")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="skip values that cannot be decoded, and print their number (recipe key: data.skip_bad)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train N times, with the seeds train.seed, train.seed + 1, ..., in run.dir/seed-0, ..., and print mean, sd and t-interval "
        "of each metric on data.val",
    )
    engine(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.run import train
    from mmtune.runtime.distributed import silence_other_ranks
    from mmtune.training.stop_signals import Stopped

    silence_other_ranks()
    overrides = [*args.overrides, *(["data.skip_bad=true"] if args.skip_bad else [])]
    try:
        if args.seeds is not None:
            from mmtune.sweeps.repeat_seeds import repeat_seeds

            if args.engine == "ray":
                raise RecipeError(
                    "--seeds trains in this process: leave out --engine ray, or start one run for each train.seed"
                )

            repeated = repeat_seeds(args.recipe, overrides, seeds=args.seeds, resume=args.resume, quiet=args.quiet)
            return Result(repeated.to_dict(), str(repeated))
        if args.engine == "ray":
            from mmtune.training.ray_train import train_on_ray

            out = train_on_ray(train, args.recipe, overrides, resume=args.resume, quiet=args.quiet, workers=args.workers)
        else:
            out = train(args.recipe, overrides, resume=args.resume, quiet=args.quiet)
    except Stopped as e:
        return Result({"stopped": str(e)}, f"{e}; the same command with --resume continues", 130)
    return Result(out.to_dict(), str(out))
