"""`mmtune.evaluate` and `mmtune.compare`: MODEL and DATA in, a typed result out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mmtune.comparison.comparison import Comparison, compare_vectors
from mmtune.comparison.confusable import Confusable, freeze
from mmtune.comparison.gate import MEAN, Gate
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.group_pooling import pool_views
from mmtune.evaluation.leakage import identity, refuse_trained
from mmtune.evaluation.matryoshka_dims import evaluate_dims, trained_dims
from mmtune.evaluation.result import Result
from mmtune.evaluation.slices import named, slice_direction
from mmtune.evaluation.trained_pairs import unseen
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.relevance.relevant import Qrels
from mmtune.relevance.trec_files import judgments, write_qrels, write_run
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.evaluation.tasks.evaluate_task import TaskResult
    from mmtune.model.dual_encoder import Model


def _model(model: "Model | str | Path", dim: int | None = None) -> "Model":
    from mmtune.model.artifact import load

    found = load(model) if isinstance(model, str | Path) else model
    return found if dim is None else found.prefix(dim)


def _data(data: "Data | str") -> "Data":
    from mmtune.data.shards.dataset import open_data

    return open_data(data) if isinstance(data, str) else data


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

    found, rows = _model(model, dim), _data(data)
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
    parts = named(rows, slices)
    vectors = embed_data(found, rows, modalities, batch_size, quiet, processes=processes)
    judged = judgments(qrels, rows.ids)
    vectors = vectors if views is None else pool_views(vectors, views, judged)
    result = evaluate_vectors(vectors, ks=ks, qrels=judged, within=within, per_query=per_query or bool(parts))
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


def compare(
    base: "Model | str | Path",
    candidate: "Model | str | Path",
    data: "Data | str",
    *,
    gate: "Gate | Mapping[str, Any] | None" = None,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    general: "Data | str | None" = None,
    confusable: "bool | str | Path" = True,
    within: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    base_dim: int | None = None,
) -> Comparison:
    """Both models on the same DATA, query by query, and the gate's verdict (see `compare_vectors`).

    general: other DATA on which nothing may be lost; confusable: True freezes the slice from the base in memory, a path
    reads it from there, or freezes it there when there is no such file. Rows that either model was trained on: DataError.
    dim: both with their first so many dimensions, the base with `base_dim` where that is given.
    """
    made, rows = Gate.read(gate), _data(data)
    parts = named(rows, slices)
    other = _data(general) if general is not None else None
    vectors: list[dict[str, Embeddings]] = []
    extra: list[dict[str, Embeddings]] = []
    from mmtune.embedding.embed import embed_data, shared_modalities

    both = [_model(base, dim if base_dim is None else base_dim), _model(candidate, dim)]
    wanted = [m for m in shared_modalities(both[0], rows, modalities) if m in both[1].towers]
    if not wanted:
        raise DataError(f"{rows.spec}: nothing that both models embed; the candidate has {', '.join(both[1].towers)}")
    rows_only = {m: identity(rows, m) for m in wanted}
    for name, given in (("the base", base), ("the candidate", candidate)):
        refuse_trained(rows_only, trained_on(given), name)  # before anything is embedded
    for model in both:
        vectors.append(embed_data(model, rows, wanted, batch_size, quiet))
        if other is not None:
            extra.append(embed_data(model, other, [m for m in wanted if m in other.modalities], batch_size, quiet))
    judged = judgments(qrels, rows.ids)
    return compare_vectors(
        *vectors,
        gate=made,
        ks=ks,
        qrels=judged,
        within=within,
        slices=parts,
        extra={"general": (extra[0], extra[1])} if extra else None,
        confusable=_confusable(confusable, vectors[0], made, judged),
    )


def _confusable(
    where: "bool | str | Path", base: dict[str, Embeddings], gate: Gate | None, qrels: Qrels | None
) -> Confusable | None:
    """Read the frozen slice, or freeze it: for the gate's direction, or the first between two modalities."""
    if where is False:
        return None
    if not isinstance(where, bool) and Path(where).exists():
        return Confusable.read(where)
    wanted = gate.direction if gate else MEAN
    pairs = [(a, b) for a in base for b in base if a != b or len(base) == 1]
    pair = next((p for p in pairs if "->".join(p) == wanted), pairs[0])
    try:
        frozen = freeze(base, pair, qrels=qrels)
    except DataError:
        if isinstance(where, bool):
            return None  # nothing here can be confused: no two groups
        raise
    if not isinstance(where, bool):
        frozen.save(where)
    return frozen
