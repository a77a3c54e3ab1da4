"""Read negatives that the user gives: pairs of row ids in a CSV, TSV, JSONL or Parquet file, e.g. the one that `pack` writes.

Columns, of which the first two are needed:
    query_id, negative_id: row ids, strings or integers
    direction: "a->b", queries of modality a, candidates of modality b; without it a pair holds in all trained directions whose
        modalities its rows have
    verdict: if the file has this column (a table of `mmtune mine`), only rows with the verdict "mined" are read
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.errors import DataError
from mmtune.mining.negatives_table import MINED

QUERY_NAMES = ("query_id", "query", "qid", "query-id", "anchor_id", "anchor")
NEGATIVE_NAMES = ("negative_id", "negative", "neg_id", "negative-id", "item_id", "doc_id", "candidate_id", "corpus-id")
"""Accepted names of the columns, in order of preference."""


@dataclass(frozen=True)
class GivenPair:
    """One line of a file: its row number from 1, the two row ids, and the direction or None."""

    row: int
    query_id: str
    negative_id: str
    direction: str | None


def read_negatives(path: str | Path) -> Iterator[GivenPair]:
    """Yield the pairs of a file.

    Raises DataError if the file or a column is missing, with the most similar column name, and for a row without an id.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file of negatives (recipe key data.negatives)")
    source = open_source(path)
    query, negative = _column(path, source.columns, QUERY_NAMES), _column(path, source.columns, NEGATIVE_NAMES)
    lower = {c.strip().lower(): c for c in source.columns}
    named, verdict = lower.get("direction"), lower.get("verdict")
    for row, cells in source.rows(set()):
        if isinstance(cells, InvalidRow):
            raise DataError(f"{path} row {row}: {cells.reason}")
        if verdict and cells.get(verdict) != MINED:
            continue
        ids = identity_string(cells.get(query)), identity_string(cells.get(negative))
        if ids[0] is None or ids[1] is None:
            raise DataError(f"{path} row {row}: {query if ids[0] is None else negative} is empty; give the id of a row")
        direction = identity_string(cells.get(named)) if named else None
        if direction is not None and "->" not in direction:
            raise DataError(f'{path} row {row}: the direction {direction!r} is not of the form "a->b"')
        yield GivenPair(row, ids[0], ids[1], direction)


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    lower = {c.strip().lower(): c for c in columns}
    for name in names:
        if name in lower:
            return lower[name]
    near = next((n for name in names for n in difflib.get_close_matches(name, columns, 1)), None)
    hint = f"did you mean {near!r}? " if near else ""
    raise DataError(f"{path}: no column {names[0]!r}; {hint}columns: {', '.join(columns)}")
