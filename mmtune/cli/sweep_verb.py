"""Search for the best values of recipe keys: one training run a trial, chosen by Optuna, judged on data.val.

  mmtune sweep RECIPE.yaml "train.lr=[1e-5..1e-3 log]" "tune={lora,full}" train.epochs=3 --out sweeps/a --gate data/test

KEY=[LOW..HIGH] is a range (integers if both ends are), KEY=[LOW..HIGH log] one in the logarithm, KEY={A,B} a choice; KEY=VALUE sets a
key for all trials. Trials that are worse than the median of the earlier ones at the same point are stopped early.

After an interruption, the same command continues: finished trials count, and the running one continues from its last checkpoint.
Exit status with --gate: 0 the best model passes the recipe's gate, 1 it fails or the data is too small to decide.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe with data.val")
    parser.add_argument("space", nargs="+", metavar="KEY=VALUES", help="values to try, or one value for all trials")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the study, the trials and the report")
    parser.add_argument("--trials", type=int, default=20, help="number of trials in all (default %(default)s)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="start no further trial after this time")
    parser.add_argument(
        "--gate", metavar="DATA", help="third split on which the best model is compared with the base, by the recipe's gate"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler (default %(default)s)")
    parser.add_argument("--no-prune", action="store_true", help="train every trial to its end")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.sweeps.run_sweep import sweep
    from mmtune.training.stop_signals import Stopped

    try:
        result = sweep(
            args.recipe,
            args.space,
            args.out,
            trials=args.trials,
            timeout=args.timeout,
            gate=args.gate,
            seed=args.seed,
            prune=not args.no_prune,
            quiet=args.quiet,
        )
    except Stopped as e:
        return Result({"stopped": str(e)}, f"{e}; the same command continues", 130)
    return Result(result.to_dict(), f"{result}\n{args.out}/sweep.html", result.status)
