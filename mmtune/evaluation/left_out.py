"""Which candidates are left out for a query in a search within one modality: itself, and clips of its own recording."""

from collections.abc import Mapping

import numpy as np

from mmtune.relevance.items import Items, names_to_labels
from mmtune.relevance.positives import Positives
from mmtune.relevance.ragged import Ragged


class LeftOut:
    """The candidates that are left out for each query within `items`.

    source: {row id: e.g. its recording}; items with a row of the same source are left out for each other. None: only the item itself
    """

    def __init__(self, items: Items, source: Mapping[str, str | None] | None = None):
        self.size = len(items)
        self._same: Positives | None = None
        if source is not None:
            of = items.regrouped(names_to_labels([source.get(row) for row in items.row_ids]))
            self._same = Positives(of, of, ("group",))

    def of(self, q: np.ndarray) -> Ragged:
        """The candidates that are left out for queries q [B]."""
        if self._same is None:
            return Ragged(np.arange(len(q) + 1), q)
        query, key = self._same.keys.take(q)
        which, candidate = self._same.members.take(key)
        return Ragged.of(np.concatenate([np.arange(len(q)), query[which]]), np.concatenate([q, candidate]), len(q))

    def without(self, left_out: Ragged, relevant: Ragged, grades: np.ndarray) -> tuple[Ragged, np.ndarray]:
        """Return the relevant candidates of some queries that are not left out, with their grades. Expects the query itself to be absent.

        left_out: what `of` returned for these queries
        """
        if self._same is None:
            return relevant, grades
        number = np.arange(len(relevant))
        owner, others = np.repeat(number, relevant.counts), np.repeat(number, left_out.counts)
        kept = ~np.isin(owner * self.size + relevant.values, others * self.size + left_out.values)
        return Ragged.of_sorted(owner[kept], relevant.values[kept], len(relevant)), grades[kept]
