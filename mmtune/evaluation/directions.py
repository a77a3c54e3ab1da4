"""Compute retrieval metrics from vectors, in every direction between two modalities and within each modality."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmtune.contracts import Embeddings, direction
from mmtune.errors import DataError, ModelError, RecipeError
from mmtune.evaluation.clusters import row_clusters
from mmtune.evaluation.left_out import LeftOut
from mmtune.evaluation.metrics import MetricColumn, RelevantRanks, metric_columns, per_query_values
from mmtune.evaluation.query_sample import mean_interval, relevant_to, sample_queries
from mmtune.evaluation.ranks import relevant_ranks
from mmtune.evaluation.result import Direction, Result
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks


def evaluate_vectors(
    vectors: Mapping[str, Embeddings],
    *,
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] | None = None,
    within: bool = True,
    qrels: Qrels | None = None,
    exclude_same: Mapping[str, str | None] | None = None,
    chunk: int = 4096,
    per_query: bool = False,
    queries: int | None = None,
    fingerprint: str = "",
) -> Result:
    """Compute retrieval metrics from the vectors of one model, {modality: Embeddings}.

    ks: cut-offs
    metrics: additional metrics by name, e.g. "ndcg@3" or "package.module:Class@10"
    pairs: the directions (query modality, candidate modality) to evaluate; None: all of them
    within: False leaves out the directions within one modality; used only if `pairs` is None
    qrels: graded judgments. They alone decide what is relevant; without them a candidate is relevant if it shares a row or a
        group with the query.
    exclude_same: {row id: e.g. its recording}. Within one modality, candidates with the query's value are left out, as the query itself
        is. None, and rows without a value: only the query itself
    chunk: number of queries processed at a time
    per_query: keep the values of every query; needed for comparisons and slices
    queries: number of queries of each direction, drawn at random; all items stay candidates. Default: all queries
    fingerprint: the model's fingerprint, for the result; default: the fingerprint of the vectors

    Rows of identical content are merged into one item with the rows and groups of all of them. Queries without a relevant
    candidate are left out and counted. Ranks are exact, in one total order (see `mmtune.search.tie_order`). So neither the order of
    the rows nor `chunk` changes the result.
    """
    columns = metric_columns(ks, metrics)
    if queries is not None and queries < 2:
        raise RecipeError(f"queries: {queries} is not 2 or more")
    if pairs is None:
        pairs = [(a, b) for a in vectors for b in vectors if a != b or within]
    names = list(dict.fromkeys(m for p in pairs for m in p))
    missing = sorted(set(names) - set(vectors))
    if missing:
        raise DataError(f"{', '.join(missing)}: no vectors of this modality; there are: {', '.join(vectors) or 'none'}")
    fingerprints = {vectors[m].fingerprint for m in names} - {""}
    if len(fingerprints) > 1:
        raise ModelError(
            f"vectors of {len(fingerprints)} models ({', '.join(sorted(fingerprints))}) in one evaluation; embed all modalities with one model"
        )
    items = {m: unique_items(m, vectors[m]) for m in names}
    cluster_of = row_clusters(vectors) if per_query else None
    evaluated = {
        direction(a, b): evaluate_direction(
            items[a], items[b], columns, qrels, chunk, cluster_of, queries, LeftOut(items[a], exclude_same) if a == b else None
        )
        for a, b in sorted(pairs, key=lambda p: p[0] == p[1])
    }
    return Result(
        fingerprint or next(iter(fingerprints), ""),
        {name: d for name, d in evaluated.items() if d.queries},
        {name: d.skipped for name, d in evaluated.items()},
        {name: d.tie_rate for name, d in evaluated.items()},
    )


def evaluate_direction(
    queries: Items,
    candidates: Items,
    columns: Sequence[MetricColumn],
    qrels: Qrels | None = None,
    chunk: int = 4096,
    cluster_of: Mapping[str, int] | None = None,
    sample: int | None = None,
    left_out: LeftOut | None = None,
) -> Direction:
    """Compute the metrics of one direction.

    cluster_of: {row id: cluster}; if given, the values of every query are kept
    sample: number of queries that are drawn at random; None: all
    left_out: candidates that are left out for each query; needed if `queries is candidates`
    """
    a, b = queries.vectors.shape[-1], candidates.vectors.shape[-1]
    if a != b and len(queries) and len(candidates):
        name = direction(queries.name, candidates.name)
        raise DataError(f"{name}: query vectors have {a} dimensions, candidate vectors {b}; embed both with one model")
    kept: list[np.ndarray] = []
    ties = 0
    sampled = sample_queries(queries.name, len(queries), sample)
    drawn = len(queries) if sampled is None else int(sampled.sum())
    parts: dict[str, list[np.ndarray]] = {c.name: [] for c in columns}
    for part in relevant_blocks(queries, candidates, chunk, qrels):
        numbers, relevant, grades = relevant_to(part, sampled)
        excluded = None
        if left_out is not None:
            excluded = left_out.of(numbers)
            relevant, grades = left_out.without(excluded, relevant, grades)
        has = relevant.counts > 0
        if not has.any():
            continue
        asking = queries.query_vectors[part.start : part.stop] if sampled is None else queries.query_vectors[numbers]
        rank_P, tied = relevant_ranks(asking, candidates.vectors, relevant, excluded)
        query_P = np.repeat(np.cumsum(has) - 1, relevant.counts)
        for name, v in per_query_values(RelevantRanks(query_P, rank_P, grades), columns).items():
            parts[name].append(v)
        kept.append(numbers[has])
        ties += int(tied.sum())
    at = np.concatenate(kept) if kept else np.empty(0, np.int64)
    values = {name: np.concatenate(v) for name, v in parts.items()} if len(at) else {}
    ids = [queries.ids[i] for i in at.tolist()] if cluster_of is not None else []
    return Direction(
        queries=len(at),
        candidates=len(candidates) - (queries is candidates),
        metrics={name: float(v.mean()) for name, v in values.items()},
        skipped=drawn - len(at),
        sampled_from=None if sampled is None else len(queries),
        intervals=None if sampled is None else {n: mean_interval(v, drawn / len(queries)) for n, v in values.items()},
        tie_rate=ties / len(at) if len(at) else 0.0,
        query_ids=ids,
        query_rows=[[queries.row_ids[r] for r in queries.rows[i]] for i in at.tolist()] if cluster_of is not None else [],
        clusters=None if cluster_of is None else np.array([cluster_of[row] for row in ids], np.int64),
        values=None if cluster_of is None else values,
    )
