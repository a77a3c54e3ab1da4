"""Public functions that evaluate models and data: evaluate, compare, report, doctor, advise."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    from mmtune.comparison.compare_tasks import TaskComparison
    from mmtune.comparison.comparison_result import Comparison
    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data
    from mmtune.evaluation.evaluate_seeds import SeedsEvaluation
    from mmtune.evaluation.result import Result
    from mmtune.evaluation.tasks.evaluate_task import TaskResult
    from mmtune.model.dual_encoder import Model
    from mmtune.quality.advise import Advice
    from mmtune.quality.findings import Diagnosis
    from mmtune.recipe.gate_block import Gate
    from mmtune.relevance.judgments import Qrels
    from mmtune.reporting.report import ReportResult
    from mmtune.reporting.subject import ModelSpec
    from mmtune.reporting.task_section import ReportedTask


def evaluate(
    model: Model | str | Path | Mapping[str, str],
    data: DataLike,
    *,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    task: str = "retrieval",
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: Qrels | str | Path | None = None,
    slices: Sequence[str] = (),
    within: bool = True,
    group_pooling: str | None = None,
    per_query: bool = False,
    queries: int | None = None,
    trec: str | Path | None = None,
    label: str | None = None,
    class_names: str | None = None,
    prompts: Sequence[str] = (),
    reference: Data | str | None = None,
    neighbours: int | None = None,
    exclude_same: str | None = None,
    normal: str | None = None,
    machine: str | None = None,
    task_options: Mapping[str, object] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    skip_bad: bool = False,
    allow_trained: bool = False,
    read: Literal["index", "stream"] | None = None,
    cluster: str | None = None,
) -> Result | TaskResult | SeedsEvaluation:
    """Evaluate a model on data: retrieval metrics in every direction between modalities, or the metrics of another task.

    If the model has a query prompt, queries are encoded with it. If the model was trained with `matryoshka`, the result also has
    the metrics of each of its truncated dimensions, in `dims`.

    For all tasks:
        model: a `Model`, or what `mmtune.load` accepts, or the directory of several seeds that `mmtune train --seeds` wrote: the
            result then has mean, sd and an interval over the seeds
        data: what `mmtune.open_data` accepts (packed data by name, rows in memory), or opened data
        columns, id, group: for rows in memory, as in `mmtune.open_data`
        task: "retrieval", "zero_shot", "knn", "anomaly", a registered task, or "package.module:Class"
        modalities: modalities to evaluate; None means all that both the model and the data have
        batch_size: batch size for encoding
        quiet: show no progress
        dim: truncate embeddings to this many dimensions (Matryoshka) and normalise them again
        skip_bad: leave out values that cannot be decoded, with a DataWarning; by default the first one is a DataError
        allow_trained: only warn about rows that the model was trained on; by default they are a DataError
        read: "stream" embeds the rows while the shards of `data` are read from start to end, and keeps no copies of shards; "index" reads
            with random access. None means "stream" for `pipe:COMMAND`, else "index"

    For retrieval:
        ks: cut-off ranks k of the metrics
        metrics: further metrics by name, e.g. "ndcg@3" or "package.module:Class@10"
        qrels: graded relevance judgments, or their file; None means that rows and groups decide what is relevant
        slices: metadata columns, or "size:MODALITY", by whose values the metrics are also reported; lowest nDCG first
        within: also evaluate retrieval within each modality, e.g. image to image
        group_pooling: "mean" averages the embeddings of all images or sounds of a group to one item
        per_query: keep the metric values of every query in the result
        queries: evaluate this many random queries of each direction against all candidates; the result then has 95% intervals of
            the mean over all queries. None means all queries
        trec: directory in which to write, for each direction, a TREC run (a-to-b.run) and judgments (a-to-b.qrels)

    For other tasks (details: `ZeroShot`, `NearestNeighbours` and `AnomalyDetection` in `mmtune.evaluation`):
        label: for zero_shot and knn: metadata column, or "group", with the true class
        class_names: for zero_shot: metadata column or text modality with the names of the classes; None means the label itself
        prompts: for zero_shot: templates with one {}, whose embeddings are averaged; empty means those of the model
        reference: for knn: data whose labelled rows vote; for anomaly: data with normal rows; None means rows of `data`
        neighbours: for knn and anomaly: number of nearest neighbours
        exclude_same: for retrieval within one modality, knn and anomaly: metadata column, e.g. the recording; rows with equal values are
            no candidates and no neighbours of each other
        normal: for anomaly: "COLUMN=VALUE" of the normal rows
        machine: for anomaly: metadata column; rows are compared only with normal rows of the same value
        cluster: metadata column whose values the intervals of `mmtune eval --task` resample (`TaskResult.clusters`); None: a column called
            recording, if several rows have one value of it, else single rows; "": single rows
        slices: for anomaly: metadata columns by whose values the anomalous rows are also reported
        task_options: keyword arguments of a task of your own
    """
    set_openmp_wait_policy()
    if columns or id or group:
        from mmtune.data.in_memory import as_opened

        data = as_opened(data, columns=columns, id=id, group=group)
    from mmtune.evaluation.evaluate_model import evaluate as evaluate_
    from mmtune.evaluation.evaluate_seeds import evaluate_seeds
    from mmtune.evaluation.seed_statistics import seed_runs

    evaluate_one = functools.partial(
        evaluate_,
        data=data,
        task=task,
        modalities=modalities,
        ks=ks,
        metrics=metrics,
        qrels=qrels,
        slices=slices,
        within=within,
        group_pooling=group_pooling,
        per_query=per_query,
        queries=queries,
        trec=trec,
        label=label,
        class_names=class_names,
        prompts=prompts,
        reference=reference,
        neighbours=neighbours,
        exclude_same=exclude_same,
        normal=normal,
        machine=machine,
        task_options=task_options,
        batch_size=batch_size,
        quiet=quiet,
        dim=dim,
        skip_bad=skip_bad,
        allow_trained=allow_trained,
        read=read,
        cluster=cluster,
    )
    runs = seed_runs(model)
    return evaluate_seeds(runs, evaluate_one) if runs else evaluate_one(model)


def compare(
    base: Model | str | Path | Mapping[str, str],
    candidate: Model | str | Path | Mapping[str, str],
    data: Data | str,
    *,
    gate: Gate | Mapping[str, object] | None = None,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    qrels: Qrels | str | Path | None = None,
    slices: Sequence[str] = (),
    retention: Data | str | None = None,
    confusable: bool | str | Path = True,
    within: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    base_dim: int | None = None,
    cluster: str | None = None,
    exclude_same: str | None = None,
    allow_trained: bool = False,
) -> Comparison | TaskComparison:
    """Compare a candidate model with a base model on the same queries, and decide by the gate whether the candidate is better.

    They are compared by retrieval, or by the task of the gate, e.g. gate={"task": "knn", "task_options": {"label": "fault"}}; then
    `qrels`, `slices`, `within`, `dim`, `base_dim`, `ks` and `confusable` have no meaning.

    base, candidate: each a `Model`, or what `mmtune.load` accepts, or a directory of several seeds (`mmtune train --seeds`); a
        difference is then the mean over the seeds, and its interval the wider of those of queries and of seeds at each end
    data: test data, opened or as for `mmtune.open_data`
    gate: conditions for accepting the candidate, with the keys of the recipe block `gate`; None means the default gate
    modalities: modalities to evaluate; None means all that the models and the data have
    ks: cut-off ranks k of the metrics
    qrels: graded relevance judgments, or their file; None means that rows and groups decide what is relevant
    slices: metadata columns, or "size:MODALITY", by whose values the comparison is also reported
    retention: other data on which the candidate must not be worse, reported as the slice "retention"
    confusable: whether to report the confusable slice, i.e. queries whose relevant candidate has a very similar candidate of
        another group. The base model determines this slice. A path reads the slice from that file, or writes it if the file
        does not exist
    within: also compare retrieval within each modality; with a single modality that is always done
    batch_size: batch size for encoding
    quiet: show no progress
    dim: truncate the embeddings of both models to this many dimensions
    base_dim: another number of dimensions for the base model
    cluster: metadata column of `data`, e.g. the recording or machine, whose values the intervals resample; None means the gate's, else
        groups and rows of equal content
    exclude_same: metadata column of `data`, e.g. the recording; within one modality, rows with the query's value are no candidates
    allow_trained: only warn about rows of `data` or `retention` that a model was trained on

    Raises DataError if the data contain rows that one of the models was trained on, unless `allow_trained`.
    """
    set_openmp_wait_policy()
    from mmtune.comparison.compare_models import compare as compare_

    return compare_(
        base,
        candidate,
        data,
        gate=gate,
        modalities=modalities,
        ks=ks,
        qrels=qrels,
        slices=slices,
        retention=retention,
        confusable=confusable,
        within=within,
        batch_size=batch_size,
        quiet=quiet,
        dim=dim,
        base_dim=base_dim,
        cluster=cluster,
        exclude_same=exclude_same,
        allow_trained=allow_trained,
    )


def report(
    target: str | Path | None,
    out: str | Path,
    *,
    base: ModelSpec | None = None,
    candidate: ModelSpec | None = None,
    data: str | None = None,
    gate: Mapping[str, object] | None = None,
    slices: Sequence[str] | None = None,
    retention: str | None = None,
    qrels: Qrels | str | Path | None = None,
    examples: int = 6,
    batch_size: int = 64,
    quiet: bool = True,
    allow_trained: bool = False,
    tasks: Sequence[ReportedTask] = (),
    label: str | None = None,
    cluster: str | None = None,
) -> ReportResult:
    """Write an HTML report to `out` about a training run, a saved comparison, or two models.

    target: a run directory, a directory of several seeds (`mmtune train --seeds`), a JSON file written by `mmtune compare`, or None to compare `base` with `candidate` on `data`
    out: file to write
    base, candidate: models to compare when `target` is None
    data: test data
    gate: conditions for accepting the candidate, with the keys of the recipe block `gate`
    slices: metadata columns, or "size:MODALITY"; None means columns with few different values
    retention: other data on which the candidate must not be worse
    qrels: graded relevance judgments, or their file, which decide what is relevant instead of rows and groups
    examples: number of example queries of each kind in each direction
    batch_size: batch size for encoding
    quiet: show no progress
    allow_trained: only warn about rows that a model was trained on
    tasks: other tasks by which both models are evaluated on the test data, e.g.
        [mmtune.reporting.ReportedTask("knn", {"label": "defect"}, cluster="recording")]
    label: metadata column whose values are the rows and columns of the confusion matrices; None means the group
    cluster: metadata column, e.g. the recording, whose values the intervals of the comparison resample; default: groups and equal content

    Raises DataError if the data contain rows that a model was trained on (unless `allow_trained`), or if a required file is missing.
    """
    set_openmp_wait_policy()
    from mmtune.reporting.report import report as report_

    return report_(
        target,
        out,
        base=base,
        candidate=candidate,
        data=data,
        gate=gate,
        slices=slices,
        retention=retention,
        qrels=qrels,
        examples=examples,
        batch_size=batch_size,
        quiet=quiet,
        allow_trained=allow_trained,
        tasks=tasks,
        label=label,
        cluster=cluster,
    )


def doctor(
    data: Data | str,
    model: Model | str | Path | None = None,
    *,
    against: Sequence[Data | str] = (),
    split: str | None = None,
    limit: int = 50_000,
    quiet: bool = True,
) -> Diagnosis:
    """Check data for problems: ids and groups, duplicates, leaks between splits, and values that are broken or unusual.

    data: data to check
    model: if given, the embeddings of the data are checked, too
    against: data of other splits, e.g. the training shards, to find leaks
    split: metadata column with the name of the split; None means "split", if the data have this column
    limit: maximum number of rows per split that are decoded and embedded; they are spread evenly over the split
    quiet: show no progress
    """
    set_openmp_wait_policy()
    from mmtune.quality.doctor import doctor as doctor_

    return doctor_(data, model, against=against, split=split, limit=limit, quiet=quiet)


def advise(
    model: Model | str | Path | Mapping[str, str],
    data: Data | str,
    *,
    corpus_size: int,
    target: str | None = None,
    direction: str | None = None,
    price_per_hour: float | None = None,
    limit: int = 5000,
    quiet: bool = True,
) -> Advice:
    """Recommend whether and how to tune a model, from quick measurements on your data.

    Measures the metrics of the model as it is, the gain from training a linear head, and the embedding speed of this machine.

    model: model to start from
    data: sample of your data
    corpus_size: number of items that the index will have
    target: metric value that you need, as "METRIC=VALUE"
    direction: "A->B", queries of modality A, an index of modality B; None means text queries and an index of the other modality
    price_per_hour: price of this machine, for an estimate of the cost
    limit: maximum number of rows to use
    quiet: show no progress
    """
    set_openmp_wait_policy()
    from mmtune.quality.advise import advise as advise_

    return advise_(
        model,
        data,
        corpus_size=corpus_size,
        target=target,
        direction=direction,
        price_per_hour=price_per_hour,
        limit=limit,
        quiet=quiet,
    )
