"""`mmtune.evaluate`: evaluate a model on a dataset, by retrieval metrics or by another task."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from mmtune.contracts import Embeddings
from mmtune.data.shards.streamed_sets import Read, is_streamed
from mmtune.embedding.embed_rows import embed_data
from mmtune.embedding.open_stream import open_to_embed
from mmtune.errors import RecipeError
from mmtune.evaluation.clusters import default_cluster
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.group_pooling import pool_groups
from mmtune.evaluation.leakage import refuse_trained_rows, row_identity
from mmtune.evaluation.matryoshka_dims import evaluate_dims, trained_dims
from mmtune.evaluation.model_and_data import as_data, as_model, warn_unused_judgments
from mmtune.evaluation.result import Result
from mmtune.evaluation.slices import Slices, metadata_slices, slice_direction
from mmtune.evaluation.tasks.evaluate_task import TaskResult, check_options, evaluate_task
from mmtune.evaluation.tasks.knn import source_of_rows
from mmtune.evaluation.tasks.task import RETRIEVAL
from mmtune.evaluation.trained_pairs import untrained_directions, warn_towers_apart
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.relevance.judgments import Qrels, qrels_for
from mmtune.relevance.trec_files import write_qrels, write_run
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@overload
def evaluate(  # type: ignore[overload-overlap]  # "retrieval" is a str, too
    model: "Model | str | Path | Mapping[str, str]",
    data: "DataLike",
    *,
    task: Literal["retrieval"] = "retrieval",
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    within: bool = True,
    group_pooling: str | None = None,
    per_query: bool = False,
    queries: int | None = None,
    trec: "str | Path | None" = None,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    skip_bad: bool = False,
    allow_trained: bool = False,
    read: Read | None = None,
    cluster: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Result: ...


@overload
def evaluate(
    model: "Model | str | Path | Mapping[str, str]",
    data: "DataLike",
    *,
    task: str,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    within: bool = True,
    group_pooling: str | None = None,
    per_query: bool = False,
    queries: int | None = None,
    trec: "str | Path | None" = None,
    label: str | None = None,
    class_names: str | None = None,
    prompts: Sequence[str] = (),
    reference: "Data | str | None" = None,
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
    read: Read | None = None,
    cluster: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> TaskResult: ...


def evaluate(
    model: "Model | str | Path | Mapping[str, str]",
    data: "DataLike",
    *,
    task: str = RETRIEVAL,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    within: bool = True,
    group_pooling: str | None = None,
    per_query: bool = False,
    queries: int | None = None,
    trec: "str | Path | None" = None,
    label: str | None = None,
    class_names: str | None = None,
    prompts: Sequence[str] = (),
    reference: "Data | str | None" = None,
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
    read: Read | None = None,
    cluster: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> "Result | TaskResult":
    """Evaluate MODEL on DATA by retrieval metrics in every direction (see `evaluate_vectors`), or by another `task`.

    task: "retrieval", "zero_shot", "knn", "anomaly", a registered task, or "package.module:Class"
    modalities: evaluate only these modalities
    ks: cut-offs
    metrics: additional metrics by name, e.g. "package.module:Class@10"
    qrels: graded judgments, or a file of them
    slices: metadata columns, or "size:MODALITY"; metrics are reported for each of their values, lowest nDCG first
    within: also evaluate the directions within one modality
    group_pooling: "mean" averages the images or sounds of each group into one item (see `pool_groups`)
    per_query: keep the values of every query
    queries: evaluate this many random queries of each direction, with intervals of the mean over all; None means all
    exclude_same: metadata column, e.g. the recording. Within one modality, rows with the query's value are no candidates; see also the
        tasks knn and anomaly
    trec: a directory for the run (a-to-b.run) and the qrels (a-to-b.qrels) of every direction, as TREC files
    batch_size: number of rows embedded at a time
    dim: use only the first `dim` dimensions of the embeddings, L2-normalised again
    skip_bad: leave out values that cannot be decoded, with a DataWarning; by default the first one is a DataError
    allow_trained: evaluate even rows that the model was trained on, with a warning. By default they are a DataError
    read: "stream" embeds the rows while the shards of `data` are read from start to end, and keeps no shard (see `open_streamed`);
        "index" reads any row at any time. None means "stream" for `pipe:COMMAND`, else "index"
    cluster: for tasks: metadata column whose values are to be resampled for intervals (`TaskResult.clusters`); None: a column called
        recording, if several rows have one value of it, else single rows; "": single rows
    processes: processes that all make this call. Each embeds a share of the rows, all get the result, and rank 0 writes files.

    The other options belong to single tasks (see the tasks' classes in `mmtune.evaluation`):
    zero_shot: label, class_names, prompts
    knn: label, reference, neighbours, exclude_same
    anomaly: normal, machine, reference, neighbours, exclude_same, slices
    any other task: task_options

    If the model was trained with `matryoshka` dims, the result has the metrics at each of these dimensions under `dims`. If the
    model has a prompt template for queries, it is used for the queries of every direction (see `mmtune.model.prompts`).
    """
    given = as_data(reference, True) if skip_bad and reference is not None else reference
    options: dict[str, object] = dict(label=label, class_names=class_names, prompts=prompts, reference=given)
    options |= dict(neighbours=neighbours, exclude_same=exclude_same, normal=normal, machine=machine, slices=slices)
    options |= task_options or {}
    check_options(task, {**options, "qrels": qrels, "trec": trec, "group_pooling": group_pooling, "queries": queries})
    if cluster and task == RETRIEVAL:
        raise RecipeError("--cluster: eval has intervals of tasks alone (--task); for retrieval use compare")
    loaded = as_model(model, dim)
    if is_streamed(data, read):
        rows = open_to_embed(str(data), loaded, modalities, batch_size, quiet, skip_bad, processes=processes)
    else:
        rows = as_data(data, skip_bad)
    if task == RETRIEVAL:
        if qrels is None:
            warn_unused_judgments(rows)
        parts, judged = metadata_slices(rows, slices), qrels_for(qrels, rows.ids)
        names = [m for m in rows.modalities if m in loaded.towers and m in (modalities or rows.modalities)]
        identities = {m: row_identity(rows, m) for m in names}
        refuse_trained_rows(identities, trained_on(model), "the model", allow_trained)
        warn_towers_apart(loaded, "the model", names)
        vectors = embed_data(loaded, rows, modalities, batch_size, quiet, processes=processes)
        place = trec if processes.is_main_process else None
        source = source_of_rows(rows, exclude_same)
        return _retrieval(loaded, vectors, judged, parts, ks, metrics, within, group_pooling, per_query, place, queries, source)
    column = default_cluster(rows, cluster)
    clusters = source_of_rows(rows, column)
    result = evaluate_task(
        loaded,
        rows,
        task,
        options,
        trained=trained_on(model),
        modalities=modalities,
        batch_size=batch_size,
        quiet=quiet,
        allow_trained=allow_trained,
        processes=processes,
    )
    return replace(result, clusters=clusters, cluster=column)


def _retrieval(
    model: "Model",
    vectors: dict[str, Embeddings],
    qrels: Qrels | None,
    parts: Slices,
    ks: Sequence[int],
    metrics: Sequence[str],
    within: bool,
    group_pooling: str | None,
    per_query: bool,
    trec: "str | Path | None",
    queries: int | None,
    source: Mapping[str, str | None] | None,
) -> Result:
    """Evaluate retrieval on embedded data, with slices, Matryoshka dimensions and TREC files."""
    if source is not None and (trec is not None or group_pooling is not None):
        other = "trec" if trec is not None else "group_pooling"
        raise RecipeError(
            f"exclude_same: not together with {other}, which knows no candidates that are left out for some queries"
        )
    if group_pooling is not None:
        vectors = pool_groups(vectors, group_pooling, qrels)
    measure = functools.partial(
        evaluate_vectors, ks=ks, metrics=metrics, qrels=qrels, within=within, queries=queries, exclude_same=source
    )
    result = measure(vectors, per_query=per_query or bool(parts))
    for name in result.directions if trec is not None else ():
        (a, b), place = name.split("->"), Path(str(trec))
        write_run(place / f"{a}-to-{b}.run", vectors, (a, b), k=max(100, *ks))
        write_qrels(place / f"{a}-to-{b}.qrels", vectors, (a, b), qrels)
    worst_by = f"ndcg@{max(ks)}"
    dims = trained_dims(model) if group_pooling is None else []  # truncated vectors would have to be pooled anew
    return replace(
        result,
        slices={n: slice_direction(d, parts, worst_by) for n, d in result.directions.items()} if parts else {},
        untrained_directions=untrained_directions(model, result.directions),
        dims=evaluate_dims(vectors, result, dims, measure),
    )
