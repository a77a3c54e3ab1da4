"""From an engine's candidates to the total order: cosines summed again in one fixed way, ties by id descending.

Engines add in float32, in an order of their own, and break ties as they like; whether two stores agree must not depend on that.
An engine proposes somewhat more than k candidates with their vectors; when a row that was not proposed could still tie with the
k-th, more candidates are requested.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.index.stores.store_protocol import Hit
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import GRID, order_by_key_and_id, to_scores


@dataclass(frozen=True, slots=True)
class Candidates:
    """What an engine proposes for one query: ids [W], their vectors float32 [W, D], and their metadata [W], as JSON or
    parsed."""

    ids: Sequence[str]
    vectors_WD: np.ndarray
    meta: Sequence[str | Mapping[str, object]]


Propose = Callable[[np.ndarray, int], Candidates]
"""(query [D], width) -> the `width` best by the engine's own float32 scores (fewer only when there are no more)."""


def rank(query_QD: np.ndarray, k: int, propose: Propose, widest: int | None = None) -> list[list[Hit]]:
    """The k (1 or more) best of what `propose` returns for each query, in the total order. Exact when `propose` is; `widest`
    bounds the width where widening gains nothing (approximate indexes)."""
    return [_rank_one(query_D, k, propose, widest) for query_D in query_QD]


def _rank_one(query_D: np.ndarray, k: int, propose: Propose, widest: int | None) -> list[Hit]:
    width = k + max(16, k // 4)
    # |float32 sum - exact| <= (D + 2) 2**-24 for unit vectors, some more for 1 - score; on both of two; plus the grid
    slack = 2 * (len(query_D) + 8) * 2.0**-24 + 2 / GRID
    while True:
        candidates = propose(query_D, width)
        ids = candidates.ids
        if not len(ids):
            return []
        keys = exact_keys(query_D[None], np.asarray(candidates.vectors_WD, np.float32))[0]
        order = order_by_key_and_id(keys, ids)[:k]
        done = len(ids) < width or (widest is not None and width >= widest)
        if done or (keys[order[-1]] - keys.min()) / GRID > slack:
            scores = to_scores(keys)
            return [Hit(ids[i], float(scores[i]), _parsed(candidates.meta[i])) for i in order]
        width *= 4


def _parsed(meta: str | Mapping[str, object]) -> Mapping[str, object]:
    return json.loads(meta) if isinstance(meta, str) else meta
