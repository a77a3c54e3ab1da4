"""Lists of different lengths stored in two arrays, like a ragged tensor or the row pointers of a CSR matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Ragged:
    """Lists of int64. List i is values[start[i] : start[i + 1]], ascending and without repeats."""

    start: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(owner: np.ndarray, values: np.ndarray, size: int) -> "Ragged":
        """Build `size` lists from pairs (list number `owner`, value) in any order; repeated pairs are dropped."""
        order = np.lexsort((values, owner))
        owner, values = owner[order], values[order]
        if len(owner):
            new = np.append(True, (owner[1:] != owner[:-1]) | (values[1:] != values[:-1]))
            owner, values = owner[new], values[new]
        return Ragged.of_sorted(owner, values, size)

    @staticmethod
    def of_sorted(owner: np.ndarray, values: np.ndarray, size: int) -> "Ragged":
        """Build `size` lists from pairs that are sorted by list number, then by value, without repeats."""
        return Ragged(np.append(0, np.cumsum(np.bincount(owner, minlength=size))).astype(np.int64), values)

    @property
    def counts(self) -> np.ndarray:
        """int64 [lists]: the length of each list."""
        return np.diff(self.start)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.start[i] : self.start[i + 1]]

    def take(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the lists `which` [n] flattened: (position in `which`, value), one entry per value."""
        counts = self.start[which + 1] - self.start[which]
        owner = np.repeat(np.arange(len(which)), counts)
        ends = np.cumsum(counts)
        at = np.arange(len(owner)) - np.repeat(ends - counts, counts) + np.repeat(self.start[which], counts)
        return owner, self.values[at]

    def limited(self, limit: int) -> "Ragged":
        """Return the lists cut to at most `limit` values each, picked at even distances."""
        counts = self.counts
        if not len(counts) or counts.max() <= limit:
            return self
        kept = np.minimum(counts, limit)
        owner = np.repeat(np.arange(len(kept)), kept)
        j = np.arange(len(owner)) - np.repeat(np.cumsum(kept) - kept, kept)
        at = self.start[owner] + j * counts[owner] // kept[owner]
        return Ragged(np.append(0, np.cumsum(kept)).astype(np.int64), self.values[at])

    def contains(self, lists: np.ndarray, values: np.ndarray) -> np.ndarray:
        """bool [B, W]: whether values[b, w] is in list number lists[b]."""
        out = np.zeros(values.shape, bool)
        if len(self.values):
            for i in np.flatnonzero(self.counts[lists]):
                out[i] = np.isin(values[i], self[int(lists[i])])
        return out
