"""The pairs that could be asked: each query's nearest candidates that are not known to match."""

from dataclasses import dataclass, field

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import Positives
from mmtune.search.exact import topk

NEIGHBOURS = 20
"""Candidates of each query that could be asked."""


@dataclass
class QuestionPool:
    """N pairs of query item and candidate item.

    direction: "a->b"
    queries, candidates: row ids of the items
    query_vectors, candidate_vectors: float32 [Q, D] and [C, D], of unit length
    pair: int [N, 2], (query, candidate)
    score: float [N], cosine under the base model
    rank: int [N], rank of the candidate among the query's, from 0
    labelled: bool [Q], queries whose group is known
    tuned: float [N], cosine under the tuned model, if there is one
    tuned_rank: int [N], rank under the tuned model
    """

    direction: str
    queries: list[str]
    candidates: list[str]
    query_vectors: np.ndarray
    candidate_vectors: np.ndarray
    pair: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    labelled: np.ndarray
    tuned: np.ndarray | None = field(default=None)
    tuned_rank: np.ndarray | None = field(default=None)

    def __len__(self) -> int:
        return len(self.pair)

    def features(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the queries and candidates of some pairs, float [n, D] each."""
        return self.query_vectors[self.pair[index, 0]], self.candidate_vectors[self.pair[index, 1]]


def make_pool(
    vectors: dict[str, Embeddings],
    pair: tuple[str, str],
    tuned: dict[str, Embeddings] | None = None,
    neighbours: int = NEIGHBOURS,
) -> QuestionPool:
    """Collect the pairs of one direction. Known positives (same row, group or content) are left out; within one modality each pair
    of items is one question.

    vectors, tuned: embeddings by modality, of the base and of the tuned model, of the same rows

    Raises DataError if nothing is left to ask.
    """
    within = pair[0] == pair[1]
    queries = unique_items(pair[0], vectors[pair[0]])
    candidates = queries if within else unique_items(pair[1], vectors[pair[1]])
    positives = Positives(queries, candidates)
    q_QD, c_CD = np.asarray(queries.query_vectors), np.asarray(candidates.vectors)
    width = min(len(candidates), neighbours + within)
    parts = []
    for start in range(0, len(queries), 2048):
        number = np.arange(start, min(start + 2048, len(queries)))
        scores, found = topk(q_QD[number], c_CD, width)
        keep = (found >= 0) & ~positives.contains(number, found)
        row, rank = np.nonzero(keep)
        parts.append((number[row], found[row, rank], scores[row, rank], rank - within * (rank > 0)))
    q, c, score, rank = (np.concatenate([p[i] for p in parts]) for i in range(4))
    if within:
        _, first = np.unique(np.minimum(q, c) * len(candidates) + np.maximum(q, c), return_index=True)
        q, c, score, rank = (x[np.sort(first)] for x in (q, c, score, rank))
    if not len(q):
        raise DataError(f"{pair[0]}->{pair[1]}: there is nothing to ask: all near candidates are known to match")
    labelled = queries.labelled
    pool = QuestionPool(
        f"{pair[0]}->{pair[1]}",
        queries.ids,
        candidates.ids,
        q_QD,
        c_CD,
        np.stack([q, c], 1),
        score.astype(np.float64),
        rank,
        labelled,
    )
    if tuned is not None:
        _add_tuned(pool, tuned, pair)
    return pool


def _add_tuned(pool: QuestionPool, tuned: dict[str, Embeddings], pair: tuple[str, str]) -> None:
    """Add cosines and ranks under the tuned model."""
    queries = unique_items(pair[0], tuned[pair[0]])
    candidates = queries if pair[0] == pair[1] else unique_items(pair[1], tuned[pair[1]])
    at_q, at_c = {id: i for i, id in enumerate(queries.ids)}, {id: i for i, id in enumerate(candidates.ids)}
    order_q, order_c = [at_q[id] for id in pool.queries], [at_c[id] for id in pool.candidates]
    q_QD, c_CD = np.asarray(queries.query_vectors)[order_q], np.asarray(candidates.vectors)[order_c]
    pool.tuned = (q_QD[pool.pair[:, 0]] * c_CD[pool.pair[:, 1]]).sum(1).astype(np.float64)
    rank = np.zeros(len(pool), np.int64)
    for start in range(0, len(q_QD), 1024):
        mine = (pool.pair[:, 0] >= start) & (pool.pair[:, 0] < start + 1024)
        scores = q_QD[start : start + 1024] @ c_CD.T
        rank[mine] = (scores[pool.pair[mine, 0] - start] > pool.tuned[mine, None] + 1e-6).sum(1)
    pool.tuned_rank = rank
