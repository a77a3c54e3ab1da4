"""Re-rank the candidates of a database so that every store returns the same results in the same order.

Databases sum float32 products in different orders and break ties differently. So a store asks its database for somewhat more
than k candidates with their vectors. Here their cosines are computed again in a fixed summation order, and ties are broken by
descending id. When a row that the database did not return could still tie with the k-th result, more candidates are requested.
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
    """The candidates that a database returns for one query.

    ids: ids [W].
    vectors_WD: their vectors, float32 [W, D].
    meta: their metadata [W], as JSON strings or parsed.
    """

    ids: Sequence[str]
    vectors_WD: np.ndarray
    meta: Sequence[str | Mapping[str, object]]


Propose = Callable[[np.ndarray, int], Candidates]
"""Called with (query [D], width); returns the `width` best rows by the database's own float32 scores. It may return fewer only
when no further row matches."""


def rank(query_QD: np.ndarray, k: int, propose: Propose, widest: int | None = None) -> list[list[Hit]]:
    """Return the k best candidates of each query, by exact score descending, ties by id descending.

    The result is exact if `propose` searches exactly.

    k: number of results, at least 1.
    propose: fetches candidates from the database.
    widest: stop requesting more candidates at this width. For approximate indexes, where a wider search gains nothing.
    """
    return [_rank_one(query_D, k, propose, widest) for query_D in query_QD]


def _rank_one(query_D: np.ndarray, k: int, propose: Propose, widest: int | None) -> list[Hit]:
    width = k + max(16, k // 4)
    # Bound on how far two scores can differ from the database's: a float32 dot product of L2-normalised vectors is off by at
    # most (D + 2) * 2**-24, slightly more if the database returns 1 - score; times 2 for two scores, plus the score grid.
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
