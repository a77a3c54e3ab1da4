"""Public functions that measure: evaluate, compare, report, doctor, advise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.comparison.comparison_result import Comparison
    from mmtune.data.shards.dataset import Data
    from mmtune.evaluation.result import Result
    from mmtune.evaluation.tasks.evaluate_task import TaskResult
    from mmtune.model.dual_encoder import Model
    from mmtune.quality.advise import Advice
    from mmtune.quality.findings import Diagnosis
    from mmtune.recipe.gate_block import Gate
    from mmtune.relevance.judgments import Qrels
    from mmtune.reporting.report import ReportResult
    from mmtune.reporting.subject import ModelSpec


def evaluate(
    model: Model | str | Path,
    data: Data | str,
    *,
    task: str = "retrieval",
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: Qrels | str | Path | None = None,
    slices: Sequence[str] = (),
    within: bool = True,
    group_pooling: str | None = None,
    per_query: bool = False,
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
) -> Result | TaskResult:
    """Metrics of MODEL on DATA in every direction (see `evaluate_vectors`), or another `task`: "zero_shot", "knn", "anomaly", a
    registered one, or "package.module:Class".

    modalities: these alone; ks: cut-offs; metrics: further metrics by name, e.g. "package.module:Class@10"; qrels: graded
    judgments, or their file; slices: metadata columns, or "size:MODALITY", reported the worst first by nDCG; within: also the
    directions within one modality; group_pooling: "mean" makes the images or sounds of each group one item (see
    `pool_groups`); per_query: keep every query's values; trec: a directory for a run (a-to-b.run) and judgments
    (a-to-b.qrels) of every direction, as TREC files; dim: the first so many dimensions, of unit length again.

    Options of tasks: label, class_names and prompts of zero_shot; label, reference, neighbours and exclude_same of knn; normal,
    machine, reference, neighbours, exclude_same and slices of anomaly (see `ZeroShot`, `NearestNeighbours` and
    `AnomalyDetection` in `mmtune.evaluation`); task_options: those of any other task.

    A model trained with `matryoshka` dims shows each of them under `dims`, too. Where the model has a prompt for queries, it
    goes around the query side of every direction (see `mmtune.model.prompts`).
    """
    from mmtune.evaluation.evaluate_model import evaluate as evaluate_

    return evaluate_(
        model,
        data,
        task=task,
        modalities=modalities,
        ks=ks,
        metrics=metrics,
        qrels=qrels,
        slices=slices,
        within=within,
        group_pooling=group_pooling,
        per_query=per_query,
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
    )


def compare(
    base: Model | str | Path,
    candidate: Model | str | Path,
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
) -> Comparison:
    """Compare two models on the same DATA, query by query, and let the gate decide (see `compare_vectors`).

    slices: metadata columns, or "size:MODALITY"; retention: other DATA that must not get worse, reported as the slice
    "retention"; confusable: True freezes the confusable slice from the base in memory, a path reads it from there, or writes
    it there when there is no such file; within: also the directions within one modality (always, when there is only one).
    dim: both models with their first so many dimensions; base_dim: the base with another number of them.

    Raises DataError for rows that either model was trained on.
    """
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
) -> ReportResult:
    """Write the report of a RUN directory, of a comparison's JSON, or (target None) of base and candidate on data, to `out`.

    slices: metadata columns or "size:MODALITY" (default: columns of few values); retention: DATA on which nothing may be lost;
    qrels: judgments or their file, which then decide what is relevant instead of rows and groups; examples: queries shown of
    each kind and direction. DataError for rows that a model was trained on, and for anything missing.
    """
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
    """Examine DATA: identity, duplicates, leaks between splits, and every value; with MODEL also its embedding space.

    against: other splits, e.g. the training shards; split: the metadata column that names splits (default: "split", if there
    is one); limit: of each split at most so many rows are decoded and embedded, evenly spread.
    """
    from mmtune.quality.doctor import doctor as doctor_

    return doctor_(data, model, against=against, split=split, limit=limit, quiet=quiet)


def advise(
    model: Model | str | Path,
    data: Data | str,
    *,
    corpus_size: int,
    target: str | None = None,
    direction: str | None = None,
    price_per_hour: float | None = None,
    limit: int = 5000,
    quiet: bool = True,
) -> Advice:
    """Measure the baseline, the gain of a linear head and the embedding rate on at most `limit` rows of DATA, and recommend.

    corpus_size: items of the index to be; target: "METRIC=VALUE" that is needed; direction: "A->B", where B is what the index
    holds (default: a text query that searches for the other modality); price_per_hour: of this machine.
    """
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
