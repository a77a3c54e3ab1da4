"""Vectors -> metrics in every direction: between modalities by row or group, within one by group."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmtune.contracts import Embeddings, direction
from mmtune.errors import DataError, ModelError
from mmtune.evaluation import metrics
from mmtune.evaluation.clusters import row_clusters
from mmtune.evaluation.ranks import ranks
from mmtune.evaluation.result import Direction, Result
from mmtune.relevance.items import Items, unite
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks


def evaluate_vectors(
    vectors: Mapping[str, Embeddings],
    *,
    ks: Sequence[int] = (1, 5, 10),
    pairs: Sequence[tuple[str, str]] | None = None,
    within: bool = True,
    qrels: Qrels | None = None,
    chunk: int = 4096,
    per_query: bool = False,
    fingerprint: str = "",
) -> Result:
    """Retrieval metrics of one corpus.

    pairs: the directed pairs (a, b) wanted, queries of a among candidates of b; None: all, and within each modality unless
    `within` is False. A candidate is relevant when it shares a row or a group with the query, or by `qrels` alone when they
    are given. Identical content is one item with rows and groups united. Queries that nothing answers are left out and
    counted. Ranks are exact in one total order (see `mmtune.search.exact`): neither the rows' order nor `chunk` (queries at a
    time) changes a bit of the answer. `per_query` keeps every query's values, for comparisons.
    """
    ks = metrics.check_ks(tuple(ks))
    if pairs is None:
        pairs = [(a, b) for a in vectors for b in vectors if a != b or within]
    missing = sorted({m for p in pairs for m in p} - set(vectors))
    if missing:
        raise DataError(f"{', '.join(missing)}: no vectors of that modality; there are: {', '.join(vectors) or 'none'}")
    marks = {vectors[m].fingerprint for p in pairs for m in p} - {""}
    if len(marks) > 1:
        raise ModelError(
            f"vectors of {len(marks)} models ({', '.join(sorted(marks))}) in one evaluation; embed all with one model"
        )
    items = {m: unite(m, vectors[m]) for m in dict.fromkeys(m for p in pairs for m in p)}
    result = Result(fingerprint or next(iter(marks), ""), {}, {}, {})
    linked = row_clusters(vectors) if per_query else {}
    for a, b in sorted(pairs, key=lambda p: p[0] == p[1]):
        name, found = direction(a, b), evaluate_direction(items[a], items[b], ks, qrels, chunk, per_query)
        if per_query:
            found.clusters = np.array([linked[r] for r in found.query_ids], np.int64)
        result.skipped[name], result.tie_rate[name] = found.skipped, found.tie_rate
        if found.queries:
            result.directions[name] = found
    return result


def evaluate_direction(
    queries: Items,
    candidates: Items,
    ks: tuple[int, ...],
    qrels: Qrels | None = None,
    chunk: int = 4096,
    per_query: bool = False,
) -> Direction:
    """One directed pair of items; `queries is candidates` means within one modality, itself left out."""
    a, b = queries.vectors.shape[-1], candidates.vectors.shape[-1]
    if a != b and len(queries) and len(candidates):
        name = direction(queries.name, candidates.name)
        raise DataError(f"{name}: vectors of {a} and of {b} dimensions; vectors of one model share one space")
    kept, ties = [], 0
    values: dict[str, list[np.ndarray]] = {m: [] for m in metrics.names(ks)}
    for part in relevant_blocks(queries, candidates, chunk, qrels):
        itself = np.arange(part.start, part.stop) if queries is candidates else None
        rank_P, tied = ranks(queries.query_vectors[part.start : part.stop], candidates.vectors, part.items, itself)
        has = part.items.counts > 0
        if not has.any():
            continue
        q_P = np.repeat(np.cumsum(has) - 1, part.items.counts)
        for m, v in metrics.per_query(q_P, rank_P, part.grades, int(has.sum()), ks).items():
            values[m].append(v)
        kept.append(np.flatnonzero(has) + part.start)
        ties += int(tied.sum())
    at = np.concatenate(kept) if kept else np.empty(0, np.int64)
    every = {m: np.concatenate(v) for m, v in values.items()} if len(at) else {}
    found = Direction(
        queries=len(at),
        candidates=len(candidates) - (queries is candidates),
        metrics={m: float(v.mean()) for m, v in every.items()},
        skipped=len(queries) - len(at),
        tie_rate=ties / len(at) if len(at) else 0.0,
    )
    if per_query:
        found.values = every
        found.query_ids = [queries.ids[i] for i in at]
        found.query_rows = [[queries.row_ids[r] for r in queries.rows[i]] for i in at]
    return found
