"""`mmtune.compare`: embed data with two models and compare them.

`assemble_comparison` does the work. The compare verb, the report and the promotion of an index version all call it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtune.comparison.compare_seeds import combine_comparisons, made_once, model_pairs
from mmtune.comparison.compare_tasks import TaskComparison, compare_task
from mmtune.comparison.compare_vectors import compare_vectors
from mmtune.comparison.comparison_result import Comparison
from mmtune.comparison.confusable import read_or_freeze
from mmtune.comparison.gate import Gate, refuse_unmeasured_retention
from mmtune.comparison.retention import refuse_trained_retention
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.leakage import refuse_trained_rows, row_identity
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.evaluation.slices import metadata_slices
from mmtune.evaluation.tasks.evaluate_task import is_given
from mmtune.evaluation.tasks.knn import source_of_rows
from mmtune.evaluation.trained_pairs import warn_towers_apart
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.model.prompts import QUERY
from mmtune.relevance.judgments import Qrels, qrels_for, read_qrels

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models of a comparison.

    name: name in error messages, e.g. "the base"
    trained: labels of the rows that the model was trained on, by kind; None if not known
    indexed: if the candidates are the items of an index, the modalities that it holds
    stored: function (modalities) -> the vectors that the index holds for them
    embedded: what `embed` has computed, as (data, modalities, vectors)
    """

    model: "Model"
    name: str
    trained: "Mapping[str, np.ndarray] | None" = None
    indexed: tuple[str, ...] = ()
    stored: Callable[[Sequence[str]], dict[str, Embeddings]] | None = None
    embedded: "list[tuple[Data, list[str], dict[str, Embeddings]]]" = field(default_factory=list, repr=False, compare=False)

    def embed(self, data: "Data", modalities: Sequence[str], batch_size: int, quiet: bool) -> dict[str, Embeddings]:
        """Embed rows; with the same rows again, e.g. for the next seed of the candidate, return the vectors of the first time."""
        from mmtune.embedding.embed_rows import embed_data

        names = list(modalities)
        for of, known, vectors in self.embedded:
            if of is data and known == names:
                return vectors
        self.embedded.append((data, names, embed_data(self.model, data, names, batch_size, quiet)))
        return self.embedded[-1][2]


@dataclass(frozen=True)
class AssembledComparison:
    """A comparison together with the vectors that were compared, by modality.

    against_index: True if the candidates were the items of an index, not the rows of the data
    """

    comparison: Comparison
    base: dict[str, Embeddings]
    candidate: dict[str, Embeddings]
    qrels: Qrels | None
    against_index: bool = False


def compare(
    base: "Model | str | Path | Mapping[str, str]",
    candidate: "Model | str | Path | Mapping[str, str]",
    data: "Data | str",
    *,
    gate: "Gate | Mapping[str, object] | None" = None,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    retention: "Data | str | None" = None,
    confusable: "bool | str | Path" = True,
    within: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    dim: int | None = None,
    base_dim: int | None = None,
    cluster: str | None = None,
    exclude_same: str | None = None,
    allow_trained: bool = False,
) -> "Comparison | TaskComparison":
    """Compare two models on the same DATA, query by query, and let the gate decide (see `compare_vectors`).

    If the gate has a task, they are compared by this task instead (see `compare_task`).

    base, candidate: models, or directories of several seeds (`mmtune train --seeds`), see `compare_seeds`

    gate: what the candidate has to gain and to keep
    modalities: compare only these modalities
    ks: cut-offs
    qrels: graded judgments, or a file of them
    slices: metadata columns, or "size:MODALITY"
    retention: other DATA on which the candidate must not get worse, reported as the slice "retention"
    confusable: True makes the confusable slice from the base, without saving it. A path reads the slice from this file; if
        there is no such file, the slice is made and written to it. False leaves the slice out.
    within: also compare the directions within one modality; always True if there is only one modality
    dim: use only the first `dim` dimensions of both models' embeddings
    base_dim: the same for the base alone; overrides `dim`
    cluster: metadata column of `data`, e.g. the recording or machine, whose values the intervals resample; default: the gate's, else
        groups and rows of equal content
    exclude_same: metadata column of `data`, e.g. the recording; within one modality, rows with the query's value are no candidates
    allow_trained: only warn about rows of `data` or `retention` that a model was trained on

    Raises DataError if either model was trained on some of the rows, unless `allow_trained`.
    """
    gate = Gate.read(gate)  # first, so that a mistake in the gate is reported before a model is loaded
    rows, other = as_data(data), None if retention is None else as_data(retention)
    if gate is not None and gate.task is not None:
        retrieval = {"qrels": qrels, "slices": slices, "within": within, "dim": dim, "base_dim": base_dim}
        if given := [name for name, value in retrieval.items() if is_given(value) and value is not False]:
            raise RecipeError(f"{given[0]}: is an option of retrieval, and the gate compares by {gate.task}; leave it out")
        return compare_task(
            base,
            candidate,
            rows,
            gate.task,
            {**gate.task_options, **({"exclude_same": exclude_same} if exclude_same else {})},
            gate=gate,
            modalities=modalities,
            retention=other,
            cluster=cluster,
            batch_size=batch_size,
            quiet=quiet,
            allow_trained=allow_trained,
        )
    pairs, runs = model_pairs(base, candidate)

    widths = (dim if base_dim is None else base_dim, dim)

    def compared(model: "Model | str | Path | Mapping[str, str]", side: int) -> ComparedModel:
        return ComparedModel(as_model(model, widths[side]), ("the base", "the candidate")[side], trained_on(model))

    def one(base: ComparedModel, candidate: ComparedModel) -> Comparison:
        return assemble_comparison(
            base,
            candidate,
            rows,
            gate=gate,
            modalities=modalities,
            ks=ks,
            qrels=qrels,
            slices=slices,
            retention=other,
            confusable=confusable,
            within=within,
            batch_size=batch_size,
            quiet=quiet,
            cluster=cluster,
            exclude_same=exclude_same,
            allow_trained=allow_trained,
        ).comparison

    done = [one(b, c) for b, c in made_once(pairs, compared)]
    return done[0] if runs is None else combine_comparisons(done, runs.seeds)


def assemble_comparison(
    base: ComparedModel,
    candidate: ComparedModel,
    data: "Data",
    *,
    gate: "Gate | Mapping[str, object] | None" = None,
    modalities: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    qrels: "Qrels | str | Path | None" = None,
    slices: Sequence[str] = (),
    retention: "Data | None" = None,
    confusable: "bool | str | Path" = True,
    within: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    cluster: str | None = None,
    exclude_same: str | None = None,
    allow_trained: bool = False,
) -> AssembledComparison:
    """Refuse trained rows (with `allow_trained`, warn), embed the data and the retention data with both models, and compare. Options are those of `compare`.

    If both models have an index (`ComparedModel.indexed`) with relevant items for the queries, by row, group or judgment, the
    queries are the rows of the modalities that are not indexed, and the candidates are the stored vectors. Otherwise the rows
    of the data are both queries and candidates.
    """
    from mmtune.embedding.embed_rows import shared_modalities

    gate = Gate.read(gate)
    if gate is not None and gate.task is not None:
        raise RecipeError(
            f"gate.task: this comparison is by retrieval, and the gate compares by {gate.task}; leave the task out"
        )
    if retention is None:
        refuse_unmeasured_retention(gate)
    sides = (base, candidate)
    if cluster is None and gate is not None:
        cluster = gate.cluster
    parts, source = metadata_slices(data, slices), source_of_rows(data, cluster)
    names = [m for m in shared_modalities(base.model, data, modalities) if m in candidate.model.towers]
    if not names:
        raise DataError(
            f"{data.spec}: no modality that both models embed; the candidate has {', '.join(candidate.model.towers)}"
        )
    rows = {m: row_identity(data, m) for m in names}
    for side in sides:  # before anything is embedded, which takes long
        refuse_trained_rows(rows, side.trained, side.name, allow_trained)
        warn_towers_apart(side.model, side.name, names)
    indexed = [m for m in base.indexed if m in candidate.indexed]
    judged = _judgments(qrels, data, indexed)
    kept = retention_source = None
    if retention is not None:
        retention_source = source_of_rows(retention, gate.retention_cluster if gate else None)
        wanted = [m for m in retention.modalities if m in (*names, *indexed) and all(m in s.model.towers for s in sides)]
        for side in sides:
            refuse_trained_retention(retention, wanted, side.trained, side.name, allow_trained)
        kept = tuple(s.embed(retention, wanted, batch_size, quiet) for s in sides)
    pairs: list[tuple[str, str]] | None = None
    vectors = _against_index(sides, rows, data, indexed, judged, batch_size, quiet)
    against_index = vectors is not None
    if vectors is None:
        vectors = [s.embed(data, names, batch_size, quiet) for s in sides]
    else:
        pairs = [(q, m) for q in names if q not in indexed for m in indexed]
    comparison = compare_vectors(
        vectors[0],
        vectors[1],
        gate=gate,
        ks=ks,
        pairs=pairs,
        within=within or (len(names) == 1 and not against_index),
        qrels=judged,
        exclude_same=source_of_rows(data, exclude_same),
        slices=parts,
        retention=None if kept is None else (kept[0], kept[1]),
        retention_source=retention_source,
        confusable=read_or_freeze(confusable, vectors[0], gate, judged),
        source=source,
    )
    return AssembledComparison(comparison, vectors[0], vectors[1], judged, against_index)


def _judgments(qrels: "Qrels | str | Path | None", data: "Data", indexed: Sequence[str]) -> Qrels | None:
    """Return the judgments, read if `qrels` is a file. Without an index they have to be about rows of the data."""
    if not indexed:
        return qrels_for(qrels, data.ids)
    return qrels if qrels is None or isinstance(qrels, Mapping) else read_qrels(qrels)


def _against_index(
    sides: Sequence[ComparedModel],
    rows: Mapping[str, Embeddings],
    data: "Data",
    indexed: Sequence[str],
    qrels: Qrels | None,
    batch_size: int,
    quiet: bool,
) -> list[dict[str, Embeddings]] | None:
    """Return each model's query vectors of the data and its stored vectors; None if no item is relevant to a query."""
    from mmtune.embedding.embed_rows import embed_data

    queries = [m for m in rows if m not in indexed]
    if not queries or not indexed:
        return None
    stored = [s.stored(indexed) for s in sides if s.stored is not None]
    if qrels is None and not any(_share_a_row_or_group(rows[q], stored[0][m]) for q in rows for m in indexed if q != m):
        return None
    embedded = [embed_data(s.model, data, queries, batch_size, quiet, role=QUERY) for s in sides]
    return [{**query_vectors, **items} for query_vectors, items in zip(embedded, stored, strict=True)]


def _share_a_row_or_group(queries: Embeddings, items: Embeddings) -> bool:
    """Return whether a query shares a row or a group with an item."""
    for key in ("id", "group"):
        a, b = queries.labels[key], items.labels[key]
        if np.isin(a[a != 0], b[b != 0]).any():
            return True
    return False
