"""Who is a positive of whom, from labels, a block at a time: the N x N matrix of all pairs never exists.

Two items are the same thing when they share a non-zero label of the same kind (row id, group, content). An item may carry
several labels of a kind: a caption that ten rows share carries ten row ids and the union of their groups.
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

MATCHES_AT_ONCE = 1 << 20  # bounds the index tensors of one expansion (8 bytes each) when a label is very common

Labels = Mapping[str, tuple[Tensor, Tensor]]
"""kind -> (item [n], label [n]) int64: one entry for every label that an item carries; 0 entries are ignored."""


class Relation:
    """Positives between Q queries and C candidates. `block(i, j)` is a bool matrix [j - i, C]."""

    def __init__(self, queries: Labels, candidates: Labels, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.labels = (queries, candidates)

    @cached_property
    def _kinds(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of every kind: queries' (item, label) by item, candidates' (label, item) by label."""
        queries, candidates = self.labels
        found = []
        for kind in queries:
            if kind in candidates:
                q_item, q_label = _entries(*queries[kind])
                c_item, c_label = _entries(*candidates[kind])
                order = torch.argsort(q_item, stable=True)
                by_label = torch.argsort(c_label, stable=True)
                found.append((q_item[order], q_label[order], c_label[by_label], c_item[by_label]))
        return found

    @staticmethod
    def from_arrays(q_QL: Tensor, c_CL: Tensor) -> "Relation":
        """From one label a kind: int64 [Q, L] and [C, L], column l against column l."""

        def split(x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            items = torch.arange(len(x), device=x.device)
            return {str(k): (items, x[:, k]) for k in range(x.shape[1])}

        return Relation(split(q_QL), split(c_CL), (len(q_QL), len(c_CL)))

    @cached_property
    def reversed(self) -> "Relation":
        """The same relation seen from the candidates."""
        return Relation(self.labels[1], self.labels[0], (self.shape[1], self.shape[0]))

    def matches(self, start: int, stop: int, limit: int | None = None) -> tuple[Tensor, Tensor] | None:
        """(query - start, candidate) of the related pairs of queries [start, stop), with repeats; None when over `limit`."""
        rows: list[Tensor] = []
        columns: list[Tensor] = []
        total = 0
        for r, c in self._expand(start, stop):
            total += len(r)
            if limit is not None and total > limit:
                return None
            rows.append(r)
            columns.append(c)
        empty = torch.empty(0, dtype=torch.int64, device=self._kinds[0][0].device if self._kinds else None)
        return (torch.cat(rows), torch.cat(columns)) if rows else (empty, empty)

    def block(self, start: int, stop: int) -> Tensor:
        """[stop - start, C] bool: True where query and candidate are the same thing."""
        device = self._kinds[0][0].device if self._kinds else None
        mask = torch.zeros(stop - start, self.shape[1], dtype=torch.bool, device=device)
        for rows, columns in self._expand(start, stop):
            mask[rows, columns] = True
        return mask

    def _expand(self, start: int, stop: int):  # type: ignore[no-untyped-def]
        for q_item, q_label, c_label, c_item in self._kinds:
            bounds = torch.searchsorted(q_item, torch.tensor([start, stop], device=q_item.device))
            a, b = bounds.tolist()
            label = q_label[a:b]
            low = torch.searchsorted(c_label, label)
            count = torch.searchsorted(c_label, label, right=True) - low
            item = q_item[a:b] - start
            ends = torch.cumsum(count, 0)
            done = 0
            while done < b - a:
                base = int(ends[done - 1]) if done else 0
                upto = int(torch.searchsorted(ends, torch.tensor(base + MATCHES_AT_ONCE, device=ends.device), right=True))
                upto = min(max(upto, done + 1), b - a)
                n = count[done:upto]
                rows = torch.repeat_interleave(item[done:upto], n)
                within = torch.arange(len(rows), device=rows.device) - torch.repeat_interleave(torch.cumsum(n, 0) - n, n)
                yield rows, c_item[torch.repeat_interleave(low[done:upto], n) + within]
                done = upto


def _entries(item: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    keep = label != 0
    return item[keep], label[keep]
