"""Mined negatives on their way into training: from a table and the data to rows that a batch takes along.

The table is read a row group at a time and kept as row numbers (4 bytes a negative). A row that shares its content with the
row that the table names (the same caption, say) has the same negatives.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.mining.hash_draws import id_hashes, splitmix64
from mmtune.mining.negatives_table import check_fingerprint, read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


class Negatives:
    """Negatives of every row by direction. rows and negatives are row numbers of the data.

    notes: what is to be said about the table (stale, ids that the data lack).
    """

    def __init__(self, table: str | Path, data: "Data | WeightedConcat", fingerprint: str, allow_stale: bool = False):
        """DataError when the table was mined with other weights (unless allowed), or none of its rows is in the data."""
        stale = check_fingerprint(table, fingerprint, allow_stale)
        self.notes = [stale] if stale else []
        self.rows = len(data)
        number = {row_id: i for i, row_id in enumerate(data.ids)}
        found: dict[str, list[np.ndarray]] = {}
        total = lost = 0
        for part in read_table(table, fingerprint, allow_stale):
            total += len(part)
            for name, pairs in _pairs(part, number):
                known = (pairs >= 0).all(1)
                lost += int((~known).sum())
                found.setdefault(name, []).append(pairs[known].astype(np.int32))
        if lost == total and total:
            raise DataError(f"{table}: none of its {total} pairs is among the rows of {data.spec}; it was mined on other data")
        if lost:
            self.notes.append(f"{table}: {lost} of {total} pairs name rows that {data.spec} lacks; not used")
        if not total:
            self.notes.append(f"{table} holds no mined negatives; its audit says why")
        self.directions = list(found)
        self._sets = {name: _Set(np.concatenate(parts), data, name) for name, parts in found.items()}
        self._hash = id_hashes(data.ids)

    def of(self, name: str, row: int) -> np.ndarray:
        """Negative rows of one row in a direction, in the table's order."""
        s = self._sets[name]
        at = s.query[row]
        return s.negatives[s.start[at] : s.start[at + 1]] if at >= 0 else np.zeros(0, np.int32)

    def extra(
        self, rows: np.ndarray, columns: int | Mapping[str, int] = 1, seed: int = 0, epoch: int = 0
    ) -> dict[str, np.ndarray]:
        """direction -> int64 [2, n]: places in `rows`, and for each a negative row outside of them that the batch takes along
        as its candidate: `columns` (of all or by direction) a row and direction, other ones each epoch; drawn by a hash of
        (seed, epoch, row), so a resumed run draws the same. Directions without any are left out."""
        rows = np.asarray(rows, np.int64)
        found: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.directions):
            s = self._sets[name]
            at = s.query[rows]
            place, at = np.flatnonzero(at >= 0), at[at >= 0]
            count = (s.start[at + 1] - s.start[at]).astype(np.uint64)
            with np.errstate(over="ignore"):
                draw = splitmix64(
                    self._hash[rows[place]] ^ splitmix64(np.array([seed * 1_000_003 + epoch * 64 + number], np.uint64))
                )
            parts = [np.zeros((2, 0), np.int64)]
            for j in range(columns if isinstance(columns, int) else columns.get(name, 0)):
                use = j < count
                pick = (draw[use] + np.uint64(j)) % count[use]  # consecutive places: without repeats
                chosen = s.negatives[s.start[at[use]] + pick.astype(np.int64)]
                parts.append(np.stack([place[use], s.another(chosen, draw[use], j)]))
            pairs = np.concatenate(parts, axis=1)
            pairs = pairs[:, ~np.isin(pairs[1], rows)]
            if pairs.size:
                found[name] = pairs
        return found

    def same_content(self, name: str, row: int) -> np.ndarray:
        """Rows that carry the same content as `row` on the candidates' side of a direction."""
        return self._sets[name].alike(row)


class _Set:
    """One direction: query [N] -> list of negatives (-1: none), and which rows are the same candidate."""

    def __init__(self, pairs: np.ndarray, data: "Data | WeightedConcat", name: str):
        a, _, b = name.partition("->")
        query, candidate = (_content(data, m) for m in (a, b))
        code = query[pairs[:, 0]]
        order = np.argsort(code, kind="stable")  # the table's order stays within a query
        code, self.negatives = code[order], pairs[order, 1]
        have, start = np.unique(code, return_index=True)
        self.start = np.append(start, len(code)).astype(np.int64)
        place = np.full(int(query.max(initial=-1)) + 1, -1, np.int64)
        place[have] = np.arange(len(have))
        self.query = np.where(data.present[a], place[query], -1) if a in data.present else np.full(len(data), -1, np.int64)
        self._candidate = candidate
        self._by_content = np.argsort(candidate, kind="stable")
        self._first = np.searchsorted(candidate[self._by_content], np.arange(int(candidate.max(initial=-1)) + 2))

    def another(self, rows: np.ndarray, draw: np.ndarray, j: int) -> np.ndarray:
        """For each row one that carries the same candidate, drawn: a caption comes with another picture each time."""
        code = self._candidate[rows]
        size = (self._first[code + 1] - self._first[code]).astype(np.uint64)
        with np.errstate(over="ignore"):
            return self._by_content[self._first[code] + (splitmix64(draw + np.uint64(j + 1)) % size).astype(np.int64)]

    def alike(self, row: int) -> np.ndarray:
        """Rows with the same candidate as `row`."""
        code = self._candidate[row]
        return self._by_content[self._first[code] : self._first[code + 1]]


def _content(data: "Data | WeightedConcat", modality: str) -> np.ndarray:
    """Content codes int64 [N] of the rows: 0 .. n-1; a row without content of its own kind has a code of its own."""
    label = data.labels.get(modality)
    if label is None:
        return np.arange(len(data))
    label = np.where(label == 0, -1 - np.arange(len(data)), label)
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _pairs(part: "pa.Table", number: dict[str, int]) -> Sequence[tuple[str, np.ndarray]]:
    """(direction, int64 [n, 2] rows, -1 where the data lack one) of a piece of a table."""
    names = np.array(part["direction"].to_pylist(), object)
    query = np.array([number.get(i, -1) for i in part["query_id"].to_pylist()], np.int64)
    negative = np.array([number.get(i, -1) for i in part["negative_id"].to_pylist()], np.int64)
    pairs = np.stack([query, negative], 1)
    return [(name, pairs[names == name]) for name in dict.fromkeys(names.tolist())]
