"""Load mined negatives for training: from a negatives table, find the rows that join a batch as additional candidates.

The table is read one row group at a time and kept as row numbers (4 bytes per negative). The negatives of a row also apply to
all rows with the same content on the query side, e.g. rows with the same caption.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.data.identity_labels import identity_strings, splitmix64
from mmtune.data.shards.weighted_concat import refuse_shared_ids
from mmtune.errors import DataError
from mmtune.mining.id_hashes import id_hashes
from mmtune.mining.negatives_table import check_fingerprint, read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


class BatchNegatives:
    """The mined negatives of every row, by direction. Rows and negatives are row numbers of the data.

    directions: the directions in the table
    notes: messages for the user, e.g. that the table is stale or names ids that are not in the data
    """

    def __init__(self, table: str | Path, data: "Data | WeightedConcat", fingerprint: str, allow_stale: bool = False):
        """Read the table.

        Raises DataError if the table was mined with other weights (unless `allow_stale`), if none of its rows is in the data,
        or if an id is in several training sets.
        """
        stale = check_fingerprint(table, fingerprint, allow_stale)
        self.notes = [stale] if stale else []
        self.rows = len(data)
        number: dict[str | None, int] = {row_id: i for i, row_id in enumerate(data.ids)}
        pairs: dict[str, list[np.ndarray]] = {}
        total = unknown = 0
        for part in read_table(table, fingerprint, allow_stale):
            total += len(part)
            refuse_shared_ids(data, (*part["query_id"].unique().to_pylist(), *part["negative_id"].unique().to_pylist()), table)
            for name, rows in _row_pairs(part, number):
                known = (rows >= 0).all(1)
                unknown += int((~known).sum())
                pairs.setdefault(name, []).append(rows[known].astype(np.int32))
        if unknown == total and total:
            raise DataError(f"{table}: none of its {total} pairs has both rows in {data.spec}; it was mined on other data")
        if unknown:
            self.notes.append(f"{table}: {unknown} of {total} pairs have rows that are not in {data.spec}; they are not used")
        if not total:
            self.notes.append(f"{table} has no mined negatives; see its audit for the reason")
        self._index({name: np.concatenate(parts) for name, parts in pairs.items()}, data)

    @classmethod
    def of_pairs(cls, pairs: Mapping[str, np.ndarray], data: "Data | WeightedConcat") -> "BatchNegatives":
        """Return the negatives given as direction -> int [n, 2], (query row, negative row)."""
        out = cls.__new__(cls)
        out.notes, out.rows = [], len(data)
        out._index(pairs, data)
        return out

    def _index(self, pairs: Mapping[str, np.ndarray], data: "Data | WeightedConcat") -> None:
        self.directions = list(pairs)
        self._by_direction = {name: _DirectionNegatives(rows, data, name) for name, rows in pairs.items()}
        self._hash = id_hashes(data.ids)

    def most(self, name: str) -> int:
        """The largest number of negatives that a query has in direction `name`."""
        return int(np.diff(self._by_direction[name].start).max(initial=0))

    def of(self, name: str, row: int) -> np.ndarray:
        """Return the negatives of one row in direction `name`, int32 [n], in table order."""
        of_direction = self._by_direction[name]
        query = of_direction.query[row]
        return of_direction.of_query(query) if query >= 0 else np.zeros(0, np.int32)

    def draw(
        self, rows: np.ndarray, per_query: int | Mapping[str, int] = 1, seed: int = 0, epoch: int = 0
    ) -> dict[str, np.ndarray]:
        """Draw negatives for the batch `rows`: {direction: int64 [2, n]}, pairs (position in `rows`, negative row).

        Each negative row is not in `rows` and joins the batch as an additional candidate. Directions without any are left out.

        per_query: number of negatives per row, for all directions or by direction
        seed, epoch: the draw depends on a hash of (seed, epoch, row). So it changes every epoch, and a resumed run repeats it.
        """
        rows = np.asarray(rows, np.int64)
        drawn: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.directions):
            count = per_query if isinstance(per_query, int) else per_query.get(name, 0)
            # one number per (seed, epoch, direction); there are fewer than 64 directions
            stream = np.array([seed * 1_000_003 + epoch * 64 + number], np.uint64)
            pairs = self._by_direction[name].draw(rows, count, self._hash, stream)
            pairs = pairs[:, ~np.isin(pairs[1], rows)]
            if pairs.size:
                drawn[name] = pairs
        return drawn

    def same_content(self, name: str, row: int) -> np.ndarray:
        """Return the rows with the same content as `row` in the candidate modality of direction `name`."""
        return self._by_direction[name].same_candidate(row)


class _DirectionNegatives:
    """The negatives of one direction. query: int64 [N], the number of each row's list of negatives, -1 for none."""

    def __init__(self, pairs: np.ndarray, data: "Data | WeightedConcat", name: str):
        a, _, b = name.partition("->")
        query, candidate = (_content_codes(data, m) for m in (a, b))
        code = query[pairs[:, 0]]
        order = np.argsort(code, kind="stable")  # stable: keeps the table's order within a query
        code, self.negatives = code[order], pairs[order, 1]
        having, start = np.unique(code, return_index=True)
        self.start = np.append(start, len(code)).astype(np.int64)
        number = np.full(int(query.max(initial=-1)) + 1, -1, np.int64)
        number[having] = np.arange(len(having))
        self.query = np.where(data.present[a], number[query], -1) if a in data.present else np.full(len(data), -1, np.int64)
        self._candidate = candidate
        self._by_content = np.argsort(candidate, kind="stable")
        self._first = np.searchsorted(candidate[self._by_content], np.arange(int(candidate.max(initial=-1)) + 2))

    def of_query(self, query: int) -> np.ndarray:
        """Return the negatives in list number `query`."""
        return self.negatives[self.start[query] : self.start[query + 1]]

    def draw(self, rows: np.ndarray, count: int, hashes: np.ndarray, stream: np.ndarray) -> np.ndarray:
        """Draw up to `count` negatives for each of `rows`: int64 [2, n], (position in `rows`, negative row)."""
        query = self.query[rows]
        position, query = np.flatnonzero(query >= 0), query[query >= 0]
        available = (self.start[query + 1] - self.start[query]).astype(np.uint64)
        with np.errstate(over="ignore"):
            draw = splitmix64(hashes[rows[position]] ^ splitmix64(stream))
        parts = [np.zeros((2, 0), np.int64)]
        for j in range(count):
            use = j < available
            pick = (draw[use] + np.uint64(j)) % available[use]  # consecutive positions, so no negative is drawn twice
            negatives = self.negatives[self.start[query[use]] + pick.astype(np.int64)]
            parts.append(np.stack([position[use], self._another_row(negatives, draw[use], j)]))
        return np.concatenate(parts, axis=1)

    def _another_row(self, rows: np.ndarray, draw: np.ndarray, j: int) -> np.ndarray:
        """Replace each row by a random row with the same candidate content, e.g. the same caption with another image."""
        code = self._candidate[rows]
        size = (self._first[code + 1] - self._first[code]).astype(np.uint64)
        with np.errstate(over="ignore"):
            offset = splitmix64(draw + np.uint64(j + 1)) % size
        return self._by_content[self._first[code] + offset.astype(np.int64)]

    def same_candidate(self, row: int) -> np.ndarray:
        """Return the rows with the same candidate content as `row`."""
        code = self._candidate[row]
        return self._by_content[self._first[code] : self._first[code + 1]]


def _content_codes(data: "Data | WeightedConcat", modality: str) -> np.ndarray:
    """Number the contents of the rows: int64 [N], 0 .. n-1. A row without a content label gets its own number."""
    label = data.labels.get(modality)
    if label is None:
        return np.arange(len(data))
    label = np.where(label == 0, -1 - np.arange(len(data)), label)
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _row_pairs(part: "pa.Table", number: Mapping[str | None, int]) -> list[tuple[str, np.ndarray]]:
    """Split part of a table by direction: [(direction, int64 [n, 2] row numbers)], -1 for ids that are not in the data."""
    names = np.array(part["direction"].to_pylist(), object)
    query = np.array([number.get(i, -1) for i in identity_strings(part["query_id"])], np.int64)
    negative = np.array([number.get(i, -1) for i in identity_strings(part["negative_id"])], np.int64)
    pairs = np.stack([query, negative], 1)
    return [(name, pairs[names == name]) for name in dict.fromkeys(names.tolist())]
