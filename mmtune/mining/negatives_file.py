"""Read negatives that the user gives: pairs of row ids in a CSV, TSV, JSONL or Parquet file, e.g. the one that `pack` writes.

Columns, of which the first two are needed:
    query_id, negative_id: row ids, strings or integers
    direction: "a->b", queries of modality a, candidates of modality b; without it a pair holds in all trained directions whose
        modalities its rows have
    verdict: if the file has this column (a table of `mmtune mine`), only rows with the verdict "mined" are read
A column of scores is not used; `NegativesFile.unused` names it.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmtune.data.identity_labels import identity_string, identity_strings
from mmtune.data.sources.row_source import InvalidRow, RowSource, open_source
from mmtune.errors import DataError
from mmtune.mining.negatives_table import MINED

QUERY_NAMES = ("query_id", "query", "qid", "query-id", "anchor_id", "anchor")
NEGATIVE_NAMES = ("negative_id", "negative", "neg_id", "negative-id", "item_id", "doc_id", "candidate_id", "corpus-id")
"""Accepted names of the columns, in order of preference."""
SCORE_NAMES = ("score", "scores", "similarity", "weight", "grade", "relevance", "rel", "label", "margin")


@dataclass(frozen=True)
class NegativesFile:
    """The n pairs of a file.

    row: int64 [n], the row number of each pair in the file, from 1
    query_ids, negative_ids: the row ids of the n pairs
    directions: the direction "a->b" of each pair, None where the file has none
    unused: columns that look like scores, which are not used; none for a table of `mmtune mine`
    """

    row: np.ndarray
    query_ids: list[str]
    negative_ids: list[str]
    directions: list[str | None]
    unused: list[str]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class _Columns:
    """The names that the columns have in a file; None for those that it lacks."""

    query: str
    negative: str
    direction: str | None
    verdict: str | None

    @property
    def present(self) -> list[str]:
        return [c for c in (self.query, self.negative, self.direction, self.verdict) if c is not None]


def read_negatives(path: str | Path) -> NegativesFile:
    """Read the pairs of a file.

    Raises DataError if the file or a column is missing, with the most similar column name, and for a row without an id.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file of negatives (recipe key data.negatives)")
    source = open_source(path)
    lower = {c.strip().lower(): c for c in source.columns}
    query, negative = _column(path, source.columns, QUERY_NAMES), _column(path, source.columns, NEGATIVE_NAMES)
    columns = _Columns(query, negative, lower.get("direction"), lower.get("verdict"))
    strings = _read_parquet(path, columns) if path.suffix.lower() == ".parquet" and path.is_file() else None
    row, queries, negatives, directions = strings or _read_rows(path, source, columns)
    for number, q, n, direction in zip(row.tolist(), queries, negatives, directions, strict=True):
        if q is None or n is None:
            raise DataError(f"{path} row {number}: {query if q is None else negative} is empty; give the id of a row")
        if direction is not None and "->" not in direction:
            raise DataError(f'{path} row {number}: the direction {direction!r} is not of the form "a->b"')
    unused = [] if columns.verdict else [c for name, c in lower.items() if name in SCORE_NAMES and c not in columns.present]
    return NegativesFile(row, [q or "" for q in queries], [n or "" for n in negatives], directions, unused)


_Strings = tuple[np.ndarray, list[str | None], list[str | None], list[str | None]]
"""(row numbers in the file, query ids, negative ids, directions), None for empty cells."""


def _read_parquet(path: Path, columns: _Columns) -> _Strings | None:
    """Read a Parquet file column by column. Returns None if a column is neither of strings nor of numbers."""
    table = pq.read_table(path, columns=columns.present)
    for kind in (table.schema.field(c).type for c in columns.present):
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
        ):
            return None
    row = np.arange(1, len(table) + 1)
    if columns.verdict is not None:
        mined = pc.fill_null(pc.equal(table[columns.verdict].cast(pa.string()), MINED), False)
        table, row = table.filter(mined), row[mined.to_numpy(zero_copy_only=False)]
    none: list[str | None] = [None] * len(table)
    directions = identity_strings(table[columns.direction]) if columns.direction else none
    return row, identity_strings(table[columns.query]), identity_strings(table[columns.negative]), directions


def _read_rows(path: Path, source: RowSource, columns: _Columns) -> _Strings:
    """Read any other kind of table row by row."""
    found: list[tuple[int, str | None, str | None, str | None]] = []
    for row, cells in source.rows(set()):
        if isinstance(cells, InvalidRow):
            raise DataError(f"{path} row {row}: {cells.reason}")
        if columns.verdict and cells.get(columns.verdict) != MINED:
            continue
        ids = identity_string(cells.get(columns.query)), identity_string(cells.get(columns.negative))
        found.append((row, *ids, identity_string(cells.get(columns.direction)) if columns.direction else None))
    return np.array([f[0] for f in found], np.int64), [f[1] for f in found], [f[2] for f in found], [f[3] for f in found]


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    lower = {c.strip().lower(): c for c in columns}
    for name in names:
        if name in lower:
            return lower[name]
    near = next((n for name in names for n in difflib.get_close_matches(name, columns, 1)), None)
    hint = f"did you mean {near!r}? " if near else ""
    raise DataError(f"{path}: no column {names[0]!r}; {hint}columns: {', '.join(columns)}")
