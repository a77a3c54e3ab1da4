"""Evaluate a re-ranker: retrieve the first candidates of each query with a dual encoder, re-rank them, and compare the metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mmtune.contracts import Embeddings, JsonObject, Pair, direction
from mmtune.evaluation.left_out import LeftOut
from mmtune.evaluation.metrics import MetricColumn, RelevantRanks, per_query_values
from mmtune.evaluation.ranks import relevant_ranks
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.positives import relevant_blocks
from mmtune.relevance.ragged import Ragged
from mmtune.search.exact import topk

ScoreItems: TypeAlias = Callable[[str, str, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Function (query modality, candidate modality, query rows [Q], candidate rows [N], i [P], j [P]) that returns the scores [P] of the
pairs (query i, candidate j); rows are positions in the embeddings of the modality."""
QUERIES_AT_ONCE = 64
SHOWN = ("hit@1", "mrr", "ndcg@10")
"""Metrics in the text form of a result."""


@dataclass(frozen=True)
class RerankedDirection:
    """Metrics of one direction before and after re-ranking.

    queries: number of queries with a relevant candidate
    depth: number of candidates of each query that were re-ranked
    first_stage, reranked: {metric: mean over the queries}
    """

    queries: int
    depth: int
    first_stage: dict[str, float]
    reranked: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the re-ranker, under the name that a `Direction` of a dual encoder has for its metrics."""
        return self.reranked

    def to_dict(self) -> JsonObject:
        """Return the fields as plain data."""
        return {
            "queries": self.queries,
            "depth": self.depth,
            "first_stage": self.first_stage,
            "reranked": self.reranked,
        }


@dataclass(frozen=True)
class RerankResult:
    """Metrics of all directions before and after re-ranking. directions: {"a->b": metrics}"""

    directions: dict[str, RerankedDirection]

    def to_dict(self) -> JsonObject:
        """Return the metrics as plain data."""
        return {"reranked_directions": {name: d.to_dict() for name, d in self.directions.items()}}

    def __str__(self) -> str:
        lines = []
        for name, d in self.directions.items():
            shown = ", ".join(f"{m} {d.first_stage[m]:.4f} -> {d.reranked[m]:.4f}" for m in SHOWN)
            lines.append(f"{name}: {d.queries} queries, the first {d.depth} candidates re-ranked: {shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FirstStage:
    """The first candidates of one direction, which every re-ranking uses.

    queries, candidates: the items
    top: int64 [Q, K], the first candidates of each query, best first; -1 where there are fewer
    relevant: the relevant candidates of each query
    rank: int64 [P], the first-stage rank of each entry of `relevant`, from 1
    grade: [P]
    """

    queries: Items
    candidates: Items
    top: np.ndarray
    relevant: Ragged
    rank: np.ndarray
    grade: np.ndarray

    @property
    def query_numbers(self) -> np.ndarray:
        """int64 [P]: number of the query of each relevant candidate, counting only queries that have one."""
        has = self.relevant.counts > 0
        return np.repeat(np.cumsum(has) - 1, self.relevant.counts)


def first_stage(vectors: Mapping[str, Embeddings], pair: Pair, depth: int) -> FirstStage:
    """Retrieve the first `depth` candidates of every query of a direction (query modality, candidate modality)."""
    queries = unique_items(pair[0], vectors[pair[0]])
    candidates = queries if pair[0] == pair[1] else unique_items(pair[1], vectors[pair[1]])
    within = queries is candidates
    _, top = topk(np.asarray(queries.query_vectors), np.asarray(candidates.vectors), depth + within)
    if within:
        kept = [row[row != n][:depth] for n, row in enumerate(top)]
        top = np.stack(kept) if kept else top[:, :depth]
    blocks = list(relevant_blocks(queries, candidates, 4096))
    owner = np.concatenate([np.repeat(np.arange(b.start, b.stop), b.items.counts) for b in blocks])
    relevant = Ragged.of(owner, np.concatenate([b.items.values for b in blocks]), len(queries))
    excluded = LeftOut(queries).of(np.arange(len(queries))) if within else None
    rank, _ = relevant_ranks(np.asarray(queries.query_vectors), candidates.vectors, relevant, excluded)
    return FirstStage(queries, candidates, top, relevant, rank, np.concatenate([b.grades for b in blocks]))


def reranked_ranks(stage: FirstStage, score: ScoreItems) -> np.ndarray:
    """Return the rank of each relevant candidate after re-ranking, int64 [P].

    The first candidates are ordered by score, those of equal score as before; all others keep their rank.
    """
    rank, head = stage.rank.copy(), (stage.queries.head, stage.candidates.head)
    wanted = np.flatnonzero(stage.relevant.counts > 0)
    for start in range(0, len(wanted), QUERIES_AT_ONCE):
        some = wanted[start : start + QUERIES_AT_ONCE]
        top = stage.top[some]
        used, j = np.unique(top, return_inverse=True)
        i = np.repeat(np.arange(len(some)), top.shape[1])
        names = stage.queries.name, stage.candidates.name
        scores = score(*names, head[0][some], head[1][used], i, j.ravel()).reshape(top.shape)
        order = np.argsort(-scores, axis=1, kind="stable")
        place = np.argsort(order, axis=1) + 1
        for n, query in enumerate(some):
            span = slice(stage.relevant.start[query], stage.relevant.start[query + 1])
            new = dict(zip(top[n].tolist(), place[n].tolist(), strict=True))
            rank[span] = [new.get(c, r) for c, r in zip(stage.relevant.values[span].tolist(), rank[span].tolist(), strict=True)]
    return rank


def rerank_direction(stage: FirstStage, score: ScoreItems, columns: Sequence[MetricColumn]) -> RerankedDirection:
    """Compute the metrics of a direction before and after re-ranking."""

    def means(rank: np.ndarray) -> dict[str, float]:
        ranks = RelevantRanks(stage.query_numbers, rank, stage.grade)
        return {name: float(v.mean()) for name, v in per_query_values(ranks, columns).items()}

    queries = int((stage.relevant.counts > 0).sum())
    if not queries:
        return RerankedDirection(0, stage.top.shape[1], {}, {})
    return RerankedDirection(queries, stage.top.shape[1], means(stage.rank), means(reranked_ranks(stage, score)))


def name_of(pair: Pair) -> str:
    """The name of a direction in metrics."""
    return direction(*pair)
