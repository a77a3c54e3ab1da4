"""Merging the segments of a faiss directory: which rows are current, in the order of the base, and those rows block by block.

Ids and metadata stay in their mapped files; what is held is one sorted copy of the ids and 16 bytes a row (Arrow sorts them),
however many rows there are and in whichever segments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmtune.index.stores.faiss_files import RowBlock, Segment

BLOCK = 65_536


@dataclass(frozen=True)
class CurrentRows:
    """Row `row[i]` of segment `number[i]` is the i-th current one, ids descending."""

    segments: Sequence[Segment]
    number: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def blocks(self, size: int = BLOCK) -> Iterator[RowBlock]:
        """The rows in order, at most `size` at once."""
        for start in range(0, len(self), size):
            number, row = self.number[start : start + size], self.row[start : start + size]
            order = np.argsort(number, kind="stable")
            inverse = pa.array(np.argsort(order, kind="stable"))
            vectors = np.empty((len(row), self.segments[0].vectors.shape[1]), np.float32)
            ids, meta = [], []
            for n, at in zip(*_runs(number[order], order), strict=True):
                segment, rows = self.segments[n], pa.array(row[at])
                vectors[at] = segment.vectors[row[at]]
                ids += segment.ids.take(rows).chunks
                meta += segment.meta.take(rows).chunks
            yield *(pa.concat_arrays(x).take(inverse) for x in (ids, meta)), vectors


def _runs(sorted_N: np.ndarray, order: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The values of a sorted array, and for each the part of `order` that belongs to it."""
    values, starts = np.unique(sorted_N, return_index=True)
    return values.tolist(), np.split(order, starts[1:])


def current_rows(segments: Sequence[Segment]) -> CurrentRows:
    """The current rows of segments, oldest first: the last entry of every id counts, be it a row or a tombstone."""
    ids: list[pa.Array] = []
    for segment in segments:
        ids += [*segment.ids.chunks, pa.array(segment.deleted, pa.large_string())]
    sizes = [(len(s.ids), len(s.deleted)) for s in segments]
    number = np.repeat(np.arange(len(segments), dtype=np.int32), [a + b for a, b in sizes])
    row = np.concatenate([np.empty(0, np.int64), *(x for a, b in sizes for x in (np.arange(a), np.full(b, -1)))])
    time = 2 * number + (row >= 0)  # a segment's deletions came before its rows
    table = pa.table({"id": pa.chunked_array(ids, pa.large_string()), "time": time})
    order = pc.sort_indices(table, [("id", "descending"), ("time", "descending")])
    sorted_ids = pc.take(table["id"], order)
    first = np.ones(len(sorted_ids), bool)
    if len(sorted_ids) > 1:
        first[1:] = pc.not_equal(sorted_ids.slice(1), sorted_ids.slice(0, len(sorted_ids) - 1)).to_numpy()
    current = order.to_numpy()[first]
    current = current[row[current] >= 0]
    return CurrentRows(segments, number[current], row[current])
