"""Compare a candidate model with a base model on the same queries, with confidence intervals, and decide by a gate.

  mmtune compare hf:DIR runs/a/artifact data/test --slice category --retention data/general
  mmtune compare hf:DIR runs/a/artifact data/test --task knn --label fault --reference data/train --cluster recording
  mmtune compare hf:DIR runs/a data/test          runs/a holds the runs of `mmtune train --seeds`: an interval of queries and seeds

The gate states the gain that the candidate must reach, and the losses that it may have (guards). It is read from --gate FILE, a
recipe with a `gate:` key or the gate alone:
  gate: {metric: ndcg@10, direction: "A->B", min_gain: 0.01, guards: {retention: -0.01, confusable: 0.0}}
  gate: {task: knn, task_options: {label: fault, reference: data/train}, cluster: recording, metric: macro_f1, min_gain: 0.01}

Exit status: 0 the candidate passes, 1 it fails or the data is too small to decide, 2 invalid input.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.eval_verb import cutoffs, task_arguments, task_values
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the MODEL that is in use")
    parser.add_argument("candidate", metavar="CANDIDATE", help="the MODEL that may replace BASE")
    parser.add_argument("data", metavar="DATA", help="packed rows that neither model was trained on")
    parser.add_argument(
        "--gate",
        metavar="FILE",
        help="YAML file with the gate (default: ndcg@10, mean over all directions, must rise; no direction may lose more than 0.01, nor "
        "the retention slice, and the confusable slice nothing)",
    )
    gate_options(parser)
    task_arguments(parser)
    parser.set_defaults(task=None)  # the gate's, else retrieval
    parser.add_argument("--k", metavar="N,N", help="cut-offs k of the metrics (default 1,5,10)")
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help='also compare per value of this metadata column, or per quartile of "size:MODALITY" (length, duration, area)',
    )
    parser.add_argument("--retention", metavar="DATA", help="packed rows of general data, on which the metrics must not fall")
    parser.add_argument(
        "--confusable",
        metavar="FILE",
        help="file with the queries whose relevant items have a very similar twin; if it does not exist, BASE chooses them",
    )
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="metadata column whose values the intervals resample, e.g. recording or machine (default: groups and equal content; with --task a "
        'recording column, if there is one, else single rows; "": single rows)',
    )
    parser.add_argument("--qrels", metavar="FILE", help="graded relevance judgments, TREC or JSON lines")
    parser.add_argument("--within", action="store_true", help="also compare searches within one modality")
    parser.add_argument(
        "--dim", type=int, metavar="N", help="truncate the embeddings of both models to N dimensions (Matryoshka)"
    )
    parser.add_argument(
        "--base-dim", type=int, metavar="N", help="like --dim, for BASE only; for a CANDIDATE that has fewer dimensions"
    )
    parser.add_argument(
        "--allow-trained",
        action="store_true",
        help="only warn about rows that a model was trained on, instead of refusing them",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_quiet(parser)


def gate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that override keys of the gate in --gate FILE. `gate_of` reads the file and these options."""
    parser.add_argument("--metric", help="gate: the metric, e.g. ndcg@10")
    parser.add_argument("--direction", help='gate: the direction, "A->B", or "mean" over all directions')
    parser.add_argument("--min-gain", type=float, help="gate: smallest gain that is worth replacing the model")
    parser.add_argument(
        "--guard",
        action="append",
        default=[],
        metavar="NAME=BOUND",
        help="gate: lowest allowed change of the metric on a slice or direction, e.g. retention=-0.01 (may be repeated); with this option "
        "only what it names is guarded",
    )


def gate_of(args: argparse.Namespace) -> JsonObject | None:
    """Return the gate from --gate FILE, overridden by the options; None if neither is given."""
    from mmtune.comparison.gate import read_gate

    gate: JsonObject = dict((read_gate(args.gate) if args.gate else None) or {})
    for key in ("metric", "direction", "min_gain"):
        if getattr(args, key) is not None:
            gate[key] = getattr(args, key)
    for guard in args.guard:
        name, equals, bound = guard.rpartition("=")
        try:
            gate["guards"] = {**(gate.get("guards") or {}), name: float(bound)}
        except ValueError:
            equals = ""
        if not equals:
            raise RecipeError(f"--guard {guard}: write NAME=BOUND, e.g. retention=-0.01")
    return gate or None


def run(args: argparse.Namespace) -> Result:
    from mmtune.comparison.compare_models import compare
    from mmtune.evaluation.tasks.task import RETRIEVAL

    gate, options = gate_of(args), {name: value for name, value in task_values(args).items() if value}
    task = args.task or (gate or {}).get("task") or RETRIEVAL
    if task == RETRIEVAL:
        if set(options) - {"exclude_same"}:
            raise RecipeError("--label, --reference and the other options of tasks need --task zero_shot, knn or anomaly")
        gate = gate and {**gate, "task": None, "task_options": {}}
    else:
        for name in ("confusable", "qrels", "slice", "within", "dim", "base_dim", "k"):
            if getattr(args, name):
                raise RecipeError(f"--{name.replace('_', '-')}: is an option of retrieval, not of --task {task}")
        of_gate = (gate or {}).get("task_options") if (gate or {}).get("task") == task else None
        gate = {**(gate or {}), "task": task, "task_options": {**(of_gate or {}), **options}}
    comparison = compare(
        args.base,
        args.candidate,
        args.data,
        gate=gate,
        ks=cutoffs(args.k or "1,5,10"),
        qrels=args.qrels,
        slices=args.slice,
        retention=args.retention,
        confusable=args.confusable or True,
        within=args.within,
        batch_size=args.batch_size,
        quiet=args.quiet,
        dim=args.dim,
        base_dim=args.base_dim,
        cluster=args.cluster,
        exclude_same=args.exclude_same if task == RETRIEVAL else None,
        allow_trained=args.allow_trained,
    )
    return Result(comparison.to_dict(), str(comparison), comparison.status)
