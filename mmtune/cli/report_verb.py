"""Write a self-contained HTML report: the verdict of the gate, results by slice, learning curves, and example searches.

  mmtune report runs/a --out a.html                    a training run: compares its base model with its artifact on data.val
  mmtune report runs/b --out b.html                    the runs of `mmtune train --seeds`: differences over the seeds
  mmtune report --base A --candidate B --data D --out a.html
  mmtune report comparison.json --out a.html           the output of `mmtune compare --json`; loads no models
  mmtune report runs/a --label category --out a.html   confusion matrices by this column instead of by group
  mmtune report runs/a --task knn --label defect --reference data/train --cluster recording --out a.html

The report can be opened from disk, without a network.
"""

import argparse

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.eval_verb import task_arguments, task_values
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="RUN|COMPARISON", help="directory of a run, or JSON file of a comparison")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="file to write the report to")
    parser.add_argument("--base", metavar="MODEL", help="the base model (default: the base model of the run)")
    parser.add_argument("--candidate", metavar="MODEL", help="the candidate model (default: the artifact of the run)")
    parser.add_argument(
        "--data", metavar="DATA", help="packed rows that neither model was trained on (default: data.val of the recipe)"
    )
    parser.add_argument("--gate", metavar="FILE", help="YAML file with the gate (default: the gate of the recipe)")
    parser.add_argument(
        "--slice",
        action="append",
        metavar="COLUMN",
        help='also report per value of this metadata column, or per quartile of "size:MODALITY" (length, duration, area)',
    )
    parser.add_argument("--retention", metavar="DATA", help="packed rows of general data, on which the metrics must not fall")
    parser.add_argument("--qrels", metavar="FILE", help="relevance judgments to use instead of the groups, TREC or JSON lines")
    task_arguments(parser)
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="metadata column whose values the intervals resample, e.g. recording or machine (default: groups and equal content; with "
        '--task a recording column, if there is one, else single rows; "": single rows)',
    )
    parser.add_argument(
        "--examples", type=int, default=6, metavar="N", help="number of example queries of each kind (default %(default)s)"
    )
    parser.add_argument(
        "--allow-trained",
        action="store_true",
        help="only warn about rows that a model was trained on, instead of refusing them",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_quiet(parser)


def run(args: argparse.Namespace) -> Result:
    from mmtune.comparison.gate import read_gate
    from mmtune.evaluation.tasks.task import RETRIEVAL
    from mmtune.reporting.report import report
    from mmtune.reporting.task_section import ReportedTask

    tasks = []
    if args.task != RETRIEVAL:
        tasks = [ReportedTask(args.task, task_values(args), args.cluster)]
    elif any(value for name, value in task_values(args).items() if name != "label"):
        raise RecipeError("--reference and the other options of tasks but --label need --task zero_shot, knn or anomaly")
    done = report(
        args.target,
        args.out,
        base=args.base,
        candidate=args.candidate,
        data=args.data,
        gate=read_gate(args.gate) if args.gate else None,
        slices=args.slice,
        retention=args.retention,
        qrels=args.qrels,
        examples=args.examples,
        batch_size=args.batch_size,
        quiet=args.quiet,
        allow_trained=args.allow_trained,
        tasks=tasks,
        label=args.label,
        cluster=args.cluster,
    )
    return Result(done.to_dict(), f"{done.out}  {done.verdict}, {done.bytes / 1e6:.1f} MB")
