"""Merge the segments of a faiss store: find the current rows and read them block by block, in descending order of id.

Vectors and metadata stay in their memory-mapped files. Memory holds one sorted copy of the ids and about 16 bytes per row.
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
    """The current rows in descending order of id: the i-th one is row `row[i]` of `segments[number[i]]`."""

    segments: Sequence[Segment]
    number: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def blocks(self, size: int = BLOCK) -> Iterator[RowBlock]:
        """Yield the rows in order, in blocks of at most `size` rows."""
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
    """Return the distinct values of a sorted array, and for each value the slice of `order` at its positions."""
    values, starts = np.unique(sorted_N, return_index=True)
    return values.tolist(), np.split(order, starts[1:])


def current_rows(segments: Sequence[Segment]) -> CurrentRows:
    """Find the current rows of `segments` (oldest first). The last entry of an id decides: a row, or a tombstone."""
    ids: list[pa.Array] = []
    for segment in segments:
        ids += [*segment.ids.chunks, pa.array(segment.deleted, pa.large_string())]
    sizes = [(len(s.ids), len(s.deleted)) for s in segments]
    number = np.repeat(np.arange(len(segments), dtype=np.int32), [a + b for a, b in sizes])
    row = np.concatenate([np.empty(0, np.int64), *(x for a, b in sizes for x in (np.arange(a), np.full(b, -1)))])
    time = 2 * number + (row >= 0)  # within a segment, the tombstones are older than the rows
    table = pa.table({"id": pa.chunked_array(ids, pa.large_string()), "time": time})
    order = pc.sort_indices(table, [("id", "descending"), ("time", "descending")])
    sorted_ids = pc.take(table["id"], order)
    first = np.ones(len(sorted_ids), bool)
    if len(sorted_ids) > 1:
        first[1:] = pc.not_equal(sorted_ids.slice(1), sorted_ids.slice(0, len(sorted_ids) - 1)).to_numpy()
    current = order.to_numpy()[first]
    current = current[row[current] >= 0]
    return CurrentRows(segments, number[current], row[current])
