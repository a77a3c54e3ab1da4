"""Source `siblings`: rows with the same values as the query in some metadata columns and another value in one further column.

Example: the same product category, but another product.
"""

import numpy as np

from mmtune.data.identity_labels import splitmix64
from mmtune.errors import RecipeError
from mmtune.mining.context import MiningContext, row_finder
from mmtune.mining.id_hashes import id_hashes
from mmtune.mining.sources import ScoredCandidates
from mmtune.relevance.items import Items
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import top_k_of_pairs

MAX_SIBLINGS = 4096
"""Maximum number of siblings considered per query; of more, a fixed random sample is taken."""


class SiblingCandidates:
    """Proposes the siblings of each query with the highest scores, without known positives."""

    def __init__(self, context: MiningContext):
        self.context, self.window = context, context.options.window
        data, rule = context.require_data(f"sources: {', '.join(context.options.sources)}"), context.options.siblings
        if rule is None:
            raise RecipeError(
                "mining.sources: siblings needs mining.siblings.same, the columns in which siblings have equal values"
            )
        columns = [data.column(c) for c in rule.same]
        other = data.column(rule.other) if rule.other else None
        rows_of = row_finder(data)

        def values(items: Items) -> tuple[list[tuple[object, ...] | None], list[object]]:
            rows = rows_of(items.ids)
            kinds = [tuple(c[r] for c in columns) for r in rows]
            return [None if any(v is None for v in k) else k for k in kinds], [other[r] for r in rows] if other else []

        (self.kind_q, self.other_q), (kind_c, other_c) = values(context.queries), values(context.candidates)
        by_kind: dict[tuple[object, ...], list[int]] = {}
        for item, of_item in enumerate(kind_c):
            if of_item is not None:
                by_kind.setdefault(of_item, []).append(item)
        draw = splitmix64(id_hashes(context.candidates.ids))
        self.members = {}
        for kind, items in by_kind.items():
            of_kind = np.array(items, np.int64)
            self.members[kind] = np.sort(of_kind[np.argsort(draw[of_kind], kind="stable")[:MAX_SIBLINGS]])
        self._codes = {v: i for i, v in enumerate(dict.fromkeys([*self.other_q, *other_c]))}
        self._other_c = np.array([self._codes[v] for v in other_c], np.int64)

    def siblings(self, query: int) -> np.ndarray:
        """Return the candidate items [n] that are siblings of a query item, ascending."""
        kind = self.kind_q[query]
        members = self.members.get(kind, np.zeros(0, np.int64)) if kind is not None else np.zeros(0, np.int64)
        if len(self._other_c) and len(members):
            members = members[self._other_c[members] != self._codes[self.other_q[query]]]
        return members

    def propose(self, queries: np.ndarray) -> ScoredCandidates:
        """Return candidates [B, window] of query items [B]."""
        q_BD, vectors = self.context.queries.vectors[queries], self.context.candidates.vectors
        owners, lists = [], []
        for i, query in enumerate(queries.tolist()):
            members = self.siblings(query)
            members = members[~self.context.positives.contains(np.array([query]), members[None, :])[0]]
            if len(members) > 4 * self.window:  # plain float32 scores are enough to rule most of them out
                near = q_BD[i] @ vectors[members].T
                members = members[near >= np.partition(near, -self.window)[-self.window] - 1e-4]
            owners.append(np.full(len(members), i))
            lists.append(members)
        owner, candidate = np.concatenate(owners), np.concatenate(lists)
        keys = pair_keys(q_BD, vectors, owner, candidate)
        return ScoredCandidates(*top_k_of_pairs(owner, candidate, keys, len(queries), self.window))
