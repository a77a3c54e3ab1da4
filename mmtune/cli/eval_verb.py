"""Compute retrieval metrics of MODEL on DATA in every direction, or another task with --task.

  mmtune eval runs/a/artifact packed/test
  mmtune eval MODEL DATA --task zero_shot --label category --prompt "a photo of {}"

zero_shot  classification by class names:  --label COLUMN [--class-names COLUMN] [--prompt TEMPLATE ...]
knn        classification by neighbours:   --label COLUMN [--reference DATA] [--neighbours 5] [--exclude-same recording]
anomaly    anomaly detection:              --normal COLUMN=VALUE [--machine COLUMN] [--reference DATA] [--exclude-same recording]

A candidate is relevant when it has the query's row or group, or by a judgment (--qrels). Identical content is one item with
its groups united. Ties rank by id, descending, as in trec_eval; the share of ties is reported. A model trained with
`matryoshka` dims is measured at each of them too, without encoding again. Processes started by torchrun share the embedding.
"""

import argparse
from pathlib import Path

from mmtune.cli.dispatch import Result
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model to evaluate")
    parser.add_argument("data", metavar="DATA", help="packed rows")
    parser.add_argument("--task", default="retrieval", help="retrieval (the default), zero_shot, knn or anomaly")
    parser.add_argument("--label", metavar="COLUMN", help='the true class: a metadata column, or "group" (the default)')
    parser.add_argument("--class-names", metavar="COLUMN", help="name of each class (default: the class itself)")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEMPLATE", help="template around class names; several are averaged"
    )
    parser.add_argument(
        "--reference", metavar="DATA", help="labelled or normal reference rows (default: the other rows of DATA)"
    )
    parser.add_argument("--neighbours", type=int, metavar="N", help="number of nearest neighbours (default: knn 5, anomaly 1)")
    parser.add_argument("--exclude-same", metavar="COLUMN", help="rows with the same value are not neighbours of each other")
    parser.add_argument("--normal", metavar="COLUMN=VALUE", help="which rows are normal")
    parser.add_argument("--machine", metavar="COLUMN", help="compare the rows of each machine with its own normal rows")
    parser.add_argument(
        "--task-option", action="append", default=[], metavar="NAME=VALUE", help="an option of a registered task"
    )
    parser.add_argument(
        "--group-pooling", metavar="HOW", help='"mean": signals of one group are one item, e.g. photos of a product'
    )
    parser.add_argument("--k", default="1,5,10", help="cut-offs (default %(default)s)")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="a further metric: a name, or package.module:Class@10"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="these modalities only (may be repeated)")
    parser.add_argument("--slice", action="append", default=[], metavar="COLUMN", help='a metadata column, or "size:MODALITY"')
    parser.add_argument("--qrels", metavar="FILE", help="graded judgments, TREC or JSON lines")
    parser.add_argument("--no-within", action="store_true", help="leave out the directions within one modality")
    parser.add_argument("--out", metavar="FILE", help="write the JSON document to this file too")
    parser.add_argument("--trec", metavar="DIR", help="write runs and judgments of every direction to DIR, as TREC files")
    parser.add_argument("--dim", type=int, metavar="N", help="use the first N dimensions, normalised again")
    parser.add_argument("--batch-size", type=int, default=64, help="of the embedding (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> Result:
    from mmtune.evaluation.evaluate_model import evaluate
    from mmtune.runtime.distributed import init_processes, silence_other_ranks
    from mmtune.runtime.files import write_json

    silence_other_ranks()
    ks = cutoffs(args.k)
    with init_processes() as processes:
        result = evaluate(
            args.model,
            args.data,
            modalities=args.only,
            ks=ks,
            qrels=args.qrels,
            slices=args.slice,
            within=not args.no_within,
            trec=args.trec,
            batch_size=args.batch_size,
            dim=args.dim,
            quiet=args.quiet or not processes.is_main_process,
            processes=processes,
            group_pooling=args.group_pooling,
            metrics=args.metric,
            task_options=_task_options(args.task_option),
            task=args.task,
            label=args.label,
            class_names=args.class_names,
            prompts=args.prompt,
            reference=args.reference,
            neighbours=args.neighbours,
            exclude_same=args.exclude_same,
            normal=args.normal,
            machine=args.machine,
        )
    document = result.to_dict()
    if args.out and processes.is_main_process:
        write_json(Path(args.out), document)
    return Result(document, str(result))


def cutoffs(text: str) -> tuple[int, ...]:
    """ "1,5,10" -> (1, 5, 10). RecipeError for anything else."""
    try:
        return tuple(int(k) for k in text.split(","))
    except ValueError:
        raise RecipeError(f"--k {text}: write whole numbers, e.g. 1,5,10") from None


def _task_options(given: list[str]) -> dict[str, object]:
    """["threshold=0.5"] -> {"threshold": 0.5}, values as in YAML. RecipeError for anything else."""
    import yaml

    options: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--task-option {text}: write NAME=VALUE, e.g. threshold=0.5")
        options[name] = yaml.safe_load(value)
    return options
