"""Candidates by metadata: rows that agree with the query in some columns and differ in another (same kind, other product)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.mining.hash_draws import id_hashes, splitmix64
from mmtune.recipe.mining_block import SiblingOptions
from mmtune.relevance.items import Items

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

LARGEST = 4096  # siblings of one kind that are looked at; of more, a fixed random choice


class Sibling:
    """The siblings of each query; the caller ranks them by score."""

    def __init__(
        self,
        queries: Items,
        candidates: Items,
        data: "Data | WeightedConcat",
        row_of: Callable[[list[str]], np.ndarray],
        rule: SiblingOptions,
    ):
        columns = [data.column(c) for c in rule.same]
        other = data.column(rule.other) if rule.other else None

        def values(items: Items) -> tuple[list[tuple[Any, ...] | None], list[Any]]:
            rows = row_of(items.ids)
            keys = [tuple(c[r] for c in columns) for r in rows]
            return [None if any(v is None for v in k) else k for k in keys], [other[r] for r in rows] if other else []

        (kind_q, self.other_q), (kind_c, self.other_c) = values(queries), values(candidates)
        kinds: dict[Any, list[int]] = {}
        for item, kind in enumerate(kind_c):
            if kind is not None:
                kinds.setdefault(kind, []).append(item)
        draw = splitmix64(id_hashes(candidates.ids))
        self.members = {}
        for kind, items in kinds.items():
            chosen = np.array(items, np.int64)
            self.members[kind] = np.sort(chosen[np.argsort(draw[chosen], kind="stable")[:LARGEST]])
        self.kind_q = kind_q
        self._codes = {v: i for i, v in enumerate(dict.fromkeys([*self.other_q, *self.other_c]))}
        self._other_c = np.array([self._codes[v] for v in self.other_c], np.int64)

    def of(self, q: int) -> np.ndarray:
        """Candidate items [n] ascending."""
        kind = self.kind_q[q]
        found = self.members.get(kind, np.zeros(0, np.int64)) if kind is not None else np.zeros(0, np.int64)
        if len(self._other_c) and len(found):
            found = found[self._other_c[found] != self._codes[self.other_q[q]]]
        return found
