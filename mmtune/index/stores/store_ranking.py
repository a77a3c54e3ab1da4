"""From an engine's proposals to the total order: cosines summed again in one fixed way, ties by id descending.

Engines add in float32, in an order of their own, and break ties as they like; whether two stores agree must not depend on
that. A store proposes somewhat more than k with their vectors; when a row that was not proposed could still tie with the
k-th, it is asked for more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmtune.index.protocols import Hit
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import GRID, ordered_by_id, to_scores

Proposals = tuple[Sequence[str], np.ndarray, Sequence[Any]]
"""ids [W], their vectors float32 [W, D], and what `meta` makes metadata from [W]."""


def best(
    query_D: np.ndarray,
    k: int,
    propose: Callable[[int], Proposals],
    meta: Callable[[Any], dict[str, Any]],
    widest: int | None = None,
) -> list[Hit]:
    """The k (1 or more) best of what `propose(width)` finds, in the total order.

    `propose` returns the `width` best by its own float32 scores (fewer only when there are no more). Exact when it is;
    `widest` bounds the width where widening buys nothing (approximate indexes).
    """
    width = k + max(16, k // 4)
    # |float32 sum - exact| <= (D + 2) 2**-24 for unit vectors, some more for 1 - score; on both of two; plus the grid
    slack = 2 * (len(query_D) + 8) * 2.0**-24 + 2 / GRID
    while True:
        ids, vectors_WD, metas = propose(width)
        if not len(ids):
            return []
        keys = exact_keys(query_D[None], np.asarray(vectors_WD, np.float32))[0]
        order = ordered_by_id(keys, ids)[:k]
        done = len(ids) < width or (widest is not None and width >= widest)
        if done or (keys[order[-1]] - keys.min()) / GRID > slack:
            scores = to_scores(keys)
            return [Hit(ids[i], float(scores[i]), meta(metas[i])) for i in order]
        width *= 4
