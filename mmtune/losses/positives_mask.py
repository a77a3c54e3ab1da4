"""Which candidates are positives of which queries, from labels, a block of queries at a time: [Q, C] never exists as a whole.

The torch twin of `mmtune.relevance`. Two items are the same thing when they share a non-zero label of the same kind (row id,
group, content). An item may carry several labels of a kind: a caption that ten rows share carries ten row ids and the union
of their groups.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

MATCHES_AT_ONCE = 1 << 20  # bounds the index tensors of one expansion (8 bytes each) when a label is very common

ItemLabels: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""kind -> (item [n], label [n]) int64: one entry for every label that an item carries; entries with label 0 are ignored."""


class PositivesMask:
    """The positives between Q queries and C candidates. `block(i, j)` is the bool matrix [j - i, C] of queries [i, j)."""

    def __init__(self, queries: ItemLabels, candidates: ItemLabels, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.labels = (queries, candidates)

    @cached_property
    def _sorted_labels(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of every kind: the queries' (item, label) sorted by item, the candidates' (label, item) sorted by label."""
        queries, candidates = self.labels
        per_kind = []
        for kind in queries:
            if kind in candidates:
                query_item, query_label = _nonzero_labels(*queries[kind])
                candidate_item, candidate_label = _nonzero_labels(*candidates[kind])
                by_item = torch.argsort(query_item, stable=True)
                by_label = torch.argsort(candidate_label, stable=True)
                sorted_candidates = candidate_label[by_label], candidate_item[by_label]
                per_kind.append((query_item[by_item], query_label[by_item], *sorted_candidates))
        return per_kind

    @property
    def _device(self) -> torch.device | None:
        return self._sorted_labels[0][0].device if self._sorted_labels else None

    @staticmethod
    def from_arrays(query_labels: Tensor, candidate_labels: Tensor) -> "PositivesMask":
        """From one label a kind: int64 [Q, L] and [C, L], column l compared with column l."""

        def by_kind(labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            items = torch.arange(len(labels), device=labels.device)
            return {str(k): (items, labels[:, k]) for k in range(labels.shape[1])}

        shape = len(query_labels), len(candidate_labels)
        return PositivesMask(by_kind(query_labels), by_kind(candidate_labels), shape)

    @cached_property
    def transposed(self) -> "PositivesMask":
        """The same positives with queries and candidates exchanged."""
        return PositivesMask(self.labels[1], self.labels[0], (self.shape[1], self.shape[0]))

    def pairs(self, start: int, stop: int, limit: int | None = None) -> tuple[Tensor, Tensor] | None:
        """(query - start, candidate) of the positives of queries [start, stop), with repeats; None for more than `limit`."""
        rows: list[Tensor] = []
        columns: list[Tensor] = []
        total = 0
        for r, c in self._expand(start, stop):
            total += len(r)
            if limit is not None and total > limit:
                return None
            rows.append(r)
            columns.append(c)
        empty = torch.empty(0, dtype=torch.int64, device=self._device)
        return (torch.cat(rows), torch.cat(columns)) if rows else (empty, empty)

    def block(self, start: int, stop: int) -> Tensor:
        """[stop - start, C] bool: True where query and candidate are the same thing."""
        mask = torch.zeros(stop - start, self.shape[1], dtype=torch.bool, device=self._device)
        for rows, columns in self._expand(start, stop):
            mask[rows, columns] = True
        return mask

    def _expand(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(query - start, candidate) of the positives, at most about MATCHES_AT_ONCE at a time."""
        for query_item, query_label, candidate_label, candidate_item in self._sorted_labels:
            bounds = torch.searchsorted(query_item, torch.tensor([start, stop], device=query_item.device))
            a, b = bounds.tolist()
            label = query_label[a:b]
            low = torch.searchsorted(candidate_label, label)
            count = torch.searchsorted(candidate_label, label, right=True) - low
            item = query_item[a:b] - start
            ends = torch.cumsum(count, 0)
            done = 0
            while done < b - a:
                base = int(ends[done - 1]) if done else 0
                limit = torch.tensor(base + MATCHES_AT_ONCE, device=ends.device)
                stop_at = min(max(int(torch.searchsorted(ends, limit, right=True)), done + 1), b - a)
                n = count[done:stop_at]
                rows = torch.repeat_interleave(item[done:stop_at], n)
                offset = torch.arange(len(rows), device=rows.device) - torch.repeat_interleave(torch.cumsum(n, 0) - n, n)
                yield rows, candidate_item[torch.repeat_interleave(low[done:stop_at], n) + offset]
                done = stop_at


def _nonzero_labels(item: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    keep = label != 0
    return item[keep], label[keep]
