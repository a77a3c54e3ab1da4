"""Compare a candidate model with the base, paired by query, with confidence intervals and the gate's verdict.

  mmtune compare hf:DIR runs/a/artifact data/test --slice category --retention data/general

The gate is read from --gate FILE (a recipe with a `gate:` key, or the gate alone):
  gate: {metric: ndcg@10, direction: "A->B", min_gain: 0.01, guards: {retention: -0.01, confusable: 0.0}}
Exit status: 0 the candidate passes, 1 it fails or the data cannot decide, 2 bad input.
"""

import argparse

from mmtune.cli.dispatch import Result
from mmtune.cli.eval_verb import cutoffs
from mmtune.comparison.gate import read_gate
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="MODEL in use")
    parser.add_argument("candidate", metavar="CANDIDATE", help="MODEL that may replace it")
    parser.add_argument("data", metavar="DATA", help="packed rows that neither was trained on")
    parser.add_argument("--gate", metavar="FILE", help="YAML with the gate (default: the mean over directions must rise)")
    gate_options(parser)
    parser.add_argument("--k", default="1,5,10", help="cut-offs (default %(default)s)")
    parser.add_argument("--slice", action="append", default=[], metavar="COLUMN", help='a metadata column, or "size:MODALITY"')
    parser.add_argument("--retention", metavar="DATA", help="packed rows of the general domain, whose scores must not fall")
    parser.add_argument(
        "--confusable", metavar="FILE", help="the frozen confusable slice; written from BASE where FILE does not exist"
    )
    parser.add_argument("--qrels", metavar="FILE", help="graded judgments, TREC or JSON lines")
    parser.add_argument("--within", action="store_true", help="also the directions within one modality")
    parser.add_argument("--dim", type=int, metavar="N", help="use the first N dimensions of both, normalised again")
    parser.add_argument(
        "--base-dim", type=int, metavar="N", help="as --dim, for BASE alone: to judge a CANDIDATE of fewer dimensions"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="of the embedding (default %(default)s)")


def gate_options(parser: argparse.ArgumentParser) -> None:
    """Options that override keys of the gate in --gate FILE; `gate_of` reads both."""
    parser.add_argument("--metric", help="metric of the gate, e.g. ndcg@10")
    parser.add_argument("--direction", help='direction of the gate, "A->B" or "mean"')
    parser.add_argument("--min-gain", type=float, help="smallest gain that is worth a change")
    parser.add_argument(
        "--guard",
        action="append",
        default=[],
        metavar="NAME=BOUND",
        help="a slice or direction and the lowest change that it may show",
    )


def gate_of(args: argparse.Namespace) -> JsonObject | None:
    """The gate of the file, overridden by the options; None where there is neither."""
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

    comparison = compare(
        args.base,
        args.candidate,
        args.data,
        gate=gate_of(args),
        ks=cutoffs(args.k),
        qrels=args.qrels,
        slices=args.slice,
        retention=args.retention,
        confusable=args.confusable or True,
        within=args.within,
        batch_size=args.batch_size,
        quiet=False,
        dim=args.dim,
        base_dim=args.base_dim,
    )
    return Result(comparison.to_dict(), str(comparison), comparison.status)
