"""`mmtune.evaluate`: MODEL and DATA in, a typed result out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.group_pooling import pool_views
from mmtune.evaluation.inputs import as_data, as_model
from mmtune.evaluation.matryoshka_dims import evaluate_dims, trained_dims
from mmtune.evaluation.result import Result
from mmtune.evaluation.slices import metadata_slices, slice_direction
from mmtune.evaluation.trained_pairs import unseen
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.relevance.judgments import Qrels, qrels_for
from mmtune.relevance.trec_files import write_qrels, write_run
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.evaluation.tasks.evaluate_task import TaskResult
    from mmtune.model.dual_encoder import Model


@overload
def evaluate(
    model: "Model | str | Path", data: "Data | str", *, task: Literal["retrieval"] = ..., **options: Any
) -> Result: ...


@overload
def evaluate(model: "Model | str | Path", data: "Data | str", *, task: str, **options: Any) -> "TaskResult": ...


def evaluate(
    model: "Model | str | Path",
    data: "Data | str",
    *,
    task: str = "retrieval",
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    within: bool = True,
    per_query: bool = False,
    trec: "str | Path | None" = None,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    views: str | None = None,
    processes: Processes = SINGLE_PROCESS,
    **options: Any,
) -> "Result | TaskResult":
    """Metrics of MODEL on DATA in every direction (see `evaluate_vectors`), or by another `task`: zero_shot, knn, anomaly,
    whose `options` are those of `by_task.evaluate_task`.

    dim: with the first so many dimensions. A model trained with `matryoshka` dims shows each of them under `dims`, too.
    A prompt of the model for queries goes around the query side of every direction (see `mmtune.model.prompts`).

    qrels: judgments or their file; slices: metadata columns or "size:MODALITY", reported the worst first by nDCG;
    trec: a directory that gets a run (a-to-b.run) and judgments (a-to-b.qrels) of every direction, as TREC files;
    views: "mean", one item a group, the mean of its signals (see `evaluate.views`).
    processes: those that all call this; each embeds a share, all have the result, the first writes.
    """
    from mmtune.embedding.embed import embed_data
    from mmtune.evaluation.tasks.evaluate_task import evaluate_task, refuse_options

    found, rows = as_model(model, dim), as_data(data)
    if task != "retrieval":
        options |= {"slices": slices, "qrels": qrels, "trec": trec, "views": views}
        seen = trained_on(model)
        return evaluate_task(
            found,
            rows,
            task,
            trained=seen,
            modalities=modalities,
            batch_size=batch_size,
            quiet=quiet,
            processes=processes,
            **options,
        )
    refuse_options(task, options)
    parts = metadata_slices(rows, slices)
    vectors = embed_data(found, rows, modalities, batch_size, quiet, processes=processes)
    judged = qrels_for(qrels, rows.ids)
    vectors = vectors if views is None else pool_views(vectors, views, judged)
    result = evaluate_vectors(vectors, ks=ks, metrics=metrics, qrels=judged, within=within, per_query=per_query or bool(parts))
    for name in result.directions if trec is not None and processes.is_main_process else ():
        (a, b), place = name.split("->"), Path(trec)  # type: ignore[arg-type]
        write_run(place / f"{a}-to-{b}.run", vectors, (a, b), k=max(100, *ks))
        write_qrels(place / f"{a}-to-{b}.qrels", vectors, (a, b), judged)
    if parts:
        by = f"ndcg@{max(ks)}"
        result.slices = {n: slice_direction(d, parts, by) for n, d in result.directions.items()}
    result.unseen = unseen(found, result.directions)
    dims = trained_dims(found) if views is None else []  # a prefix of a mean is not the mean of prefixes
    result.dims = evaluate_dims(vectors, result, dims, ks=ks, qrels=judged, within=within)
    return result
