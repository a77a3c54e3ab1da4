"""Read a file of scores as a teacher, and read tables that refer to pairs of training rows by id."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Pair, direction
from mmtune.data.identity_labels import identity_string
from mmtune.errors import DataError, first_line
from mmtune.training.teacher_outputs import TeacherScores

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat

Columns = dict[str, list[object]]
"""A table as {column name: list of values}."""


def teacher_from_file(name: str, path: str, data: "WeightedConcat", pairs: Sequence[Pair]) -> TeacherScores:
    """Read scores from a table with columns query_id, item_id and score.

    The table also needs the column direction if several pairs of modalities are trained. Raises DataError for a line whose ids
    are not training rows, and for a score that is not a finite number.
    """
    columns = score_table_columns(path, ["query_id", "item_id", "score"])
    if "direction" not in columns and len(pairs) > 1:
        raise DataError(
            f"teachers.{name}.scores: {path} has no column 'direction', which is needed because the recipe trains several pairs"
        )
    scores = {}
    for pair in pairs:
        left, right, lines = rows_of_pairs(columns, data, pair, path)
        if len(left):
            values = np.array([_to_float(columns["score"][i]) for i in lines], np.float64)
            for line in lines[~np.isfinite(values)]:
                shown = columns["score"][line]
                raise DataError(
                    f"teachers.{name}.scores: {path}: column 'score' of line {line + 1} is {shown!r}, which is not a finite number"
                )
            scores[pair] = data.labels[pair[0]][left], data.labels[pair[1]][right], values
    if not scores:
        raise DataError(f"teachers.{name}.scores: {path} has no score for any pair of modalities that is trained here")
    return TeacherScores(name, scores, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _to_float(value: object) -> float:
    """Convert to float, with NaN for anything that is not a number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def score_table_columns(path: str, needed: list[str]) -> Columns:
    """Read a Parquet, JSONL, CSV or TSV table, chosen by its suffix. Raises DataError if a column of `needed` is missing."""
    import pyarrow as pa
    from pyarrow import csv
    from pyarrow import json as arrow_json
    from pyarrow import parquet as pq

    suffix = Path(path).suffix
    try:
        if suffix == ".parquet":
            table = pq.read_table(path)
        elif suffix == ".jsonl":
            table = arrow_json.read_json(path)
        elif suffix in (".csv", ".tsv"):
            ids_as_text = csv.ConvertOptions(column_types={n: pa.string() for n in ("query_id", "item_id", "negative_id")})
            table = csv.read_csv(path, None, csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","), ids_as_text)
        else:
            raise DataError(f"{path}: unknown kind of table; use .parquet, .jsonl, .csv or .tsv")
    except (OSError, pa.ArrowInvalid) as e:
        raise DataError(f"{path}: {first_line(e)}") from None
    if missing := [n for n in needed if n not in table.column_names]:
        raise DataError(f"{path}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return {n: table[n].to_pylist() for n in table.column_names}


def rows_of_pairs(columns: Columns, data: "WeightedConcat", pair: Pair, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the lines about this pair of modalities, in either direction.

    Returns (row number of a, row number of b, line number from 0), each [n]. Raises DataError if an id is not among the
    training rows, or is in several training sets.
    """
    row_of_id = {i: n for n, i in enumerate(data.ids)}
    directions = columns.get("direction") or [direction(*pair)] * len(columns["query_id"])
    backward = direction(pair[1], pair[0])
    found: list[tuple[int, int, int]] = []
    ids = [[identity_string(i) or "" for i in columns[name]] for name in ("query_id", "item_id")]
    for line, (d, query, item) in enumerate(zip(directions, *ids, strict=True)):
        if d not in (direction(*pair), backward):
            continue
        for id_, m in ((query, pair[d == backward]), (item, pair[d != backward])):
            data.refuse_shared_id((id_,), f"{path}: line {line + 1}")
            if id_ not in row_of_id or not data.present[m][row_of_id[id_]]:
                raise DataError(f"{path}: line {line + 1}: the training data have no row {id_!r} with {m}")
        a, b = row_of_id[query], row_of_id[item]
        found.append((b, a, line) if d == backward else (a, b, line))
    left, right, lines = np.array(found, np.int64).reshape(-1, 3).T
    return left, right, lines
