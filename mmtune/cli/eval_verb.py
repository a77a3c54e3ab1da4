"""Compute the retrieval metrics of MODEL on DATA in every direction (e.g. text->image), or the metrics of another task.

  mmtune eval runs/a/artifact packed/test
  mmtune eval MODEL DATA --queries 10000
  mmtune eval MODEL "s3://bucket/shards-{000..099}.tar" --read stream --queries 10000
  mmtune eval MODEL DATA --task zero_shot --label category --prompt "a photo of {}"
  mmtune eval runs/a packed/test                     the runs of `mmtune train --seeds`: mean, sd and interval over the seeds

Tasks and their options:
  zero_shot  classification by class names:  --label COLUMN [--class-names COLUMN] [--prompt TEMPLATE ...]
  knn        k-NN classification:            --label COLUMN [--reference DATA] [--neighbours 5] [--exclude-same COLUMN]
  anomaly    anomaly detection:              --normal COLUMN=VALUE [--machine COLUMN] [--reference DATA]
                                             [--exclude-same COLUMN] [--scorer nearest|mahalanobis|gmm]
                                             [--domain COLUMN] [--balance smote|mixup] [--known-anomalies]

In retrieval, a candidate is relevant if it is from the same row or group as the query, or by a judgment (--qrels). Rows with
identical content count as one item, which belongs to the groups of all these rows. Ties are ranked by descending id, as in
trec_eval, and the share of ties is reported. A model that was trained with Matryoshka loss is also evaluated at each of its
dimensions. Processes started by torchrun share the embedding.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from mmtune.cli.collection_arguments import add_skip_bad
from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.embed_verb import add_read
from mmtune.errors import RecipeError

SCORER_OPTIONS = ("scorer", "domain", "balance", "known_anomalies")
"""Options of the task anomaly that are not parameters of `evaluate`, but part of its `task_options`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model to evaluate")
    parser.add_argument("data", metavar="DATA", help="packed rows to evaluate on")
    task_arguments(parser)
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="metadata column, e.g. recording or machine, whose values the intervals of a task resample (default: a recording column, if there is one, else "
        'single rows; "": single rows)',
    )
    parser.add_argument(
        "--task-option", action="append", default=[], metavar="NAME=VALUE", help="option of a custom task (may be repeated)"
    )
    parser.add_argument(
        "--group-pooling", metavar="HOW", help='"mean": average the embeddings of a group, e.g. of all photos of a product'
    )
    parser.add_argument("--k", default="1,5,10", help="cut-offs k of the metrics (default %(default)s)")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="additional metric: a name, or package.module:Class@10 (may be repeated)",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="evaluate only this modality (may be repeated)")
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help='also report per value of this metadata column, or per quartile of "size:MODALITY" (length, duration, area)',
    )
    parser.add_argument("--qrels", metavar="FILE", help="graded relevance judgments, TREC or JSON lines")
    parser.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="evaluate N random queries of each direction, with 95%% intervals (default: all)",
    )
    parser.add_argument("--no-within", action="store_true", help="do not evaluate searches within one modality")
    parser.add_argument("--out", metavar="FILE", help="also write the JSON document to FILE")
    parser.add_argument(
        "--trec", metavar="DIR", help="write the rankings and judgments of every direction to DIR, as TREC files"
    )
    parser.add_argument("--dim", type=int, metavar="N", help="truncate the embeddings to N dimensions (Matryoshka)")
    parser.add_argument(
        "--allow-trained",
        action="store_true",
        help="only warn about rows that a model was trained on, instead of refusing them",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_read(parser)
    add_skip_bad(parser)
    add_quiet(parser)


def task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --task and the options of the tasks zero_shot, knn and anomaly. `task_values` returns the options."""
    parser.add_argument("--task", default="retrieval", help="retrieval (default), zero_shot, knn or anomaly")
    parser.add_argument("--label", metavar="COLUMN", help='metadata column of the true class, or "group" (default)')
    parser.add_argument("--class-names", metavar="COLUMN", help="metadata column of the class names (default: that of --label)")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEMPLATE",
        help="prompt template for class names (may be repeated; the embeddings are averaged)",
    )
    parser.add_argument(
        "--reference", metavar="DATA", help="labelled or normal reference rows (default: the other rows of DATA)"
    )
    parser.add_argument("--neighbours", type=int, metavar="N", help="number of nearest neighbours (default: knn 5, anomaly 1)")
    parser.add_argument(
        "--exclude-same",
        metavar="COLUMN",
        help="rows with the same value in this metadata column, e.g. windows of one recording, are no neighbours of each other, and no "
        "candidates in searches within a modality",
    )
    parser.add_argument(
        "--normal", metavar="COLUMN=VALUE", help="the rows that are normal, by their value in a metadata column"
    )
    parser.add_argument(
        "--machine", metavar="COLUMN", help="metadata column of machines; compare each row only with normal rows of its machine"
    )
    add_scorer(parser)


def add_scorer(parser: argparse.ArgumentParser) -> None:
    """Add the options of scorers of anomalies, which `predict` has, too: those in `SCORER_OPTIONS`."""
    parser.add_argument(
        "--scorer", metavar="NAME", help="scorer of anomalies: nearest (default), mahalanobis, gmm, or package.module:Class"
    )
    parser.add_argument(
        "--domain",
        metavar="COLUMN",
        help="metadata column of domains, e.g. source and target: adds figures of each domain (eval: AUROC, and the score of DCASE task 2)",
    )
    parser.add_argument(
        "--balance", metavar="HOW", help="smote or mixup: interpolate normal embeddings until all domains have equally many"
    )
    parser.add_argument(
        "--known-anomalies", action="store_true", help="use the anomalous rows of --reference as examples of anomalies"
    )


def task_values(args: argparse.Namespace) -> dict[str, object]:
    """Return the task options that `task_arguments` added, by name."""
    names = ("label", "class_names", "reference", "neighbours", "exclude_same", "normal", "machine", *SCORER_OPTIONS)
    given = {name: getattr(args, name) for name in names}
    return {**{name: None if value is False else value for name, value in given.items()}, "prompts": args.prompt}


def run(args: argparse.Namespace) -> Result:
    from mmtune.comparison.compare_tasks import interval_lines, machine_intervals, machine_lines, task_intervals
    from mmtune.data.shards.streamed_sets import is_streamed
    from mmtune.evaluation.evaluate_model import evaluate
    from mmtune.evaluation.evaluate_seeds import evaluate_seeds
    from mmtune.evaluation.seed_statistics import seed_runs
    from mmtune.evaluation.tasks.evaluate_task import TaskResult
    from mmtune.runtime.distributed import init_processes, silence_other_ranks
    from mmtune.runtime.files import write_json

    silence_other_ranks()
    streamed = is_streamed(args.data, args.read)
    runs = seed_runs(args.model)
    if args.cluster and runs is not None:
        raise RecipeError(
            f"--cluster: {args.model} holds several seeds, whose interval is over the seeds; name the model of one"
        )
    ks = cutoffs(args.k)
    scorer = {name: value for name, value in task_values(args).items() if name in SCORER_OPTIONS}
    with init_processes() as processes:
        evaluate_one = functools.partial(
            evaluate,
            data=args.data,
            modalities=args.only,
            ks=ks,
            qrels=args.qrels,
            slices=args.slice,
            within=not args.no_within,
            trec=args.trec,
            queries=args.queries,
            batch_size=args.batch_size,
            dim=args.dim,
            quiet=args.quiet or not processes.is_main_process,
            processes=processes,
            group_pooling=args.group_pooling,
            metrics=args.metric,
            task=args.task,
            task_options={**scorer, **_task_options(args.task_option)},
            label=args.label,
            class_names=args.class_names,
            prompts=args.prompt,
            reference=args.reference,
            neighbours=args.neighbours,
            exclude_same=args.exclude_same,
            normal=args.normal,
            machine=args.machine,
            skip_bad=args.skip_bad,
            allow_trained=args.allow_trained,
            read=args.read,
            cluster=args.cluster,
        )
        if runs is not None and args.trec:
            raise RecipeError(f"--trec: {args.model} holds several seeds; name the model of one, e.g. {runs.artifacts[0]}")
        result = evaluate_seeds(runs, evaluate_one) if runs else evaluate_one(args.model)
    document, text = result.to_dict(), str(result)
    if isinstance(result, TaskResult):
        document["intervals"] = intervals = task_intervals(result)
        document["cluster"] = result.cluster
        if machines := machine_intervals(result):
            document["machine_intervals"] = machines
        text = "\n".join([text, *machine_lines(machines), *interval_lines(intervals, result.cluster)])
    elif (
        processes.is_main_process
        and not streamed
        and not args.exclude_same
        and (note := copies_note(args.data, list(document.get("directions", ()))))
    ):
        document["note"], text = note, f"{text}\n{note}"
    if args.out and processes.is_main_process:
        write_json(Path(args.out), document)
    return Result(document, text)


def copies_note(data: str, directions: Sequence[str]) -> str:
    """Say that pieces of one recording are right answers for each other in searches within a modality; "" if there are none."""
    from mmtune.data.shards.dataset import open_data
    from mmtune.evaluation.clusters import recordings_in

    within = [d for d in directions if len(set(d.split("->"))) == 1]
    if not within or (found := recordings_in(open_data(data))) is None:
        return ""
    return (
        f"note: {', '.join(within)}: rows of one {found.column} ({found.values} in {found.rows} rows) are right answers for each other, "
        f"which makes these figures high; `--exclude-same {found.column}` leaves them out"
    )


def cutoffs(text: str) -> tuple[int, ...]:
    """Parse the value of --k, e.g. "1,5,10". Raises RecipeError for anything else than integers separated by commas."""
    try:
        return tuple(int(k) for k in text.split(","))
    except ValueError:
        raise RecipeError(f"--k {text}: write whole numbers, e.g. 1,5,10") from None


def _task_options(given: list[str]) -> dict[str, object]:
    """Parse the values of --task-option: ["threshold=0.5"] becomes {"threshold": 0.5}; values are parsed as YAML.

    Raises RecipeError when an option is not of the form NAME=VALUE.
    """
    import yaml

    options: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--task-option {text}: write NAME=VALUE, e.g. threshold=0.5")
        options[name] = yaml.safe_load(value)
    return options
