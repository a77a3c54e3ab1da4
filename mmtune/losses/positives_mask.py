"""Decide from labels which candidates are positives of which queries, without storing the full [Q, C] mask.

The mask is made for a range of queries at a time. `mmtune.relevance` applies the same rule to numpy arrays.

A query and a candidate are a positive pair if they share a non-zero label of the same kind (row id, group, or content). An
item can carry several labels of one kind. For example, a caption that ten rows share has ten row ids and all their groups.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

# Maximum number of pairs in one chunk. It bounds the index tensors (8 bytes per pair) when a label is very common.
MATCHES_AT_ONCE = 1 << 20

ItemLabels: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""{kind: (item [n], label [n])}, both int64, with one entry for every label of every item. Label 0 means no label."""


class PositivesMask:
    """The positive pairs between Q queries and C candidates. `block(i, j)` is the mask [j - i, C] of queries i to j (exclusive).

    queries, candidates: the labels of their items
    shape: (Q, C)
    """

    def __init__(self, queries: ItemLabels, candidates: ItemLabels, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.labels = (queries, candidates)

    @cached_property
    def _sorted_labels(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each kind: the queries' items and labels sorted by item, then the candidates' labels and items sorted by label."""
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
        """Make a mask from one label per item and kind: int64 [Q, L] and [C, L]. Column l is compared with column l."""

        def by_kind(labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            items = torch.arange(len(labels), device=labels.device)
            return {str(k): (items, labels[:, k]) for k in range(labels.shape[1])}

        shape = len(query_labels), len(candidate_labels)
        return PositivesMask(by_kind(query_labels), by_kind(candidate_labels), shape)

    @cached_property
    def transposed(self) -> "PositivesMask":
        """The same positive pairs, with queries and candidates exchanged."""
        return PositivesMask(self.labels[1], self.labels[0], (self.shape[1], self.shape[0]))

    def pairs(self, start: int, stop: int, limit: int | None = None) -> tuple[Tensor, Tensor] | None:
        """List the positives of queries start to stop (exclusive) as (query - start, candidate).

        A pair is repeated if it shares several labels. Returns None if there are more than `limit` entries.
        """
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
        """Bool mask [stop - start, C] of the positives of queries start to stop (exclusive)."""
        mask = torch.zeros(stop - start, self.shape[1], dtype=torch.bool, device=self._device)
        for rows, columns in self._expand(start, stop):
            mask[rows, columns] = True
        return mask

    def _expand(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the positives as (query - start, candidate) in chunks of at most about MATCHES_AT_ONCE pairs."""
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
