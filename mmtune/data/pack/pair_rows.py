"""Make rows from tables of explicit pairs: a query, its positive, its negatives, and a score.

- A query and its positive of another modality are one row; of the same modality they are two rows of one group, with the ids
  ID and `ID~positive`.
- A negative is a row with one value, its id is `ID~COLUMN`, unless the same content is stored already, as an item of a row or as a
  negative of an earlier row: then it is not stored again, and the table of negatives names the row that has it.
- Without an id column, a row that repeats the query and the positive of an earlier row is not stored again; its negatives become
  negatives of that row.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from mmtune import modalities
from mmtune.data.identity_labels import shared_group
from mmtune.data.pack.columns import ColumnRoles, PackRow, assign_columns, named_column, path_or_bytes
from mmtune.data.pack.negative_columns import NegativeColumns, PairColumn, find_negative_columns
from mmtune.data.pack.pair_tables import PairTables
from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource
from mmtune.errors import Rejected


@dataclass
class PairRows(ColumnRoles):
    """The roles of the columns of a table of explicit pairs.

    pair_columns: the columns of queries, positives and negatives
    score: column with the score of each row's pair, or None
    tables: the negatives and judgments; filled by `rows`
    repeated: number of source rows that repeat the pair of an earlier one; counted by `rows`
    """

    pair_columns: NegativeColumns = field(default_factory=lambda: NegativeColumns(None, None, ()))
    score: str | None = None
    tables: PairTables = field(default_factory=PairTables)
    repeated: int = 0
    _owners: dict[tuple[str, str, bytes], str] = field(default_factory=dict)  # (split, modality, content) -> id of the row
    _digests: dict[str, bytes] = field(default_factory=dict)  # path -> content, of files that have the size of another file
    _first_ids: dict[bytes, str] = field(default_factory=dict)  # content of a whole row -> id of the first such row

    def by_role(self) -> dict[str, str | None]:
        negatives = {f"negative {i}": f"{c.column}" for i, c in enumerate(self.pair_columns.negatives, 1)}
        query, positive = self.pair_columns.query, self.pair_columns.positive
        own = {"query": query and query.column, "positive": positive and positive.column, "score": self.score}
        return {**super().by_role(), **{role: c for role, c in own.items() if c}, **negatives}

    def index_contents(self) -> None:
        """Read the source once, to know which row has which content, so that `rows` stores no content twice."""
        plain = ColumnRoles(self.source, self.modalities, self.id, self.group, self.split, [])
        negative = {c.modality for c in self.pair_columns.negatives}
        paths: set[str] = set()
        for source_row, cells in self.source.rows(set(filter(None, self.by_role().values()))):
            if isinstance(cells, InvalidRow):
                continue
            rows = plain.rows(source_row, cells, 0)
            stored = [*rows, *self._positives(rows, source_row, cells)]
            for row in stored:
                paths |= {p for p in row.paths() if "://" not in p}
                for m in negative & set(row.values):
                    self._owners.setdefault((row.split or "", m, self._content(row.values[m], m)), row.id)
            for _, negative_row in self._negatives(rows, source_row, cells):
                paths |= {p for p in negative_row.paths() if "://" not in p}
        self._digests = digests_of_equal_sizes(paths)
        by_path, self._owners = self._owners, {}
        for (split, m, content), owner in by_path.items():
            path = content.removeprefix(b"path:").decode("utf-8", "surrogateescape")
            self._owners.setdefault((split, m, self._digests.get(path, content)), owner)

    def rows(self, source_row: int, cells: Cells | InvalidRow, first_number: int) -> list[PackRow]:
        """Make the rows of one source row, as described in the module; records its negatives and its judgment in `tables`."""
        heads = super().rows(source_row, cells, first_number)
        if isinstance(cells, InvalidRow):
            return heads
        positives = self._positives(heads, source_row, cells)
        score = self._join(heads, positives, cells)
        out, ids = [*heads, *positives], [row.id for row in heads]
        repeated = self._first_id(out)
        if repeated is not None:
            self.repeated += 1
            out, ids = [], [repeated]
        else:
            self._judge(heads, positives, score)
        for column, negative in self._negatives(heads, source_row, cells):
            owner = negative.id
            if negative.reason is None:
                value = negative.values[column.modality]
                key = (negative.split or "", column.modality, self._content(value, column.modality))
                owner = self._owners.setdefault(key, negative.id)
            if owner == negative.id:
                out.append(negative)
            for query_id in ids:
                for name in self.pair_columns.directions(column, list(heads[0].values)):
                    self.tables.add_negative(negative.split or "", name, query_id, owner, source_row)
        for n, row in enumerate(out):
            row.number, row.item = first_number + n, n + 1 if len(out) > 1 else 0
        return out

    def _positives(self, heads: Sequence[PackRow], source_row: int, cells: Cells) -> list[PackRow]:
        """Make the rows of positives that have the modality of their query; they get their group in `_join`."""
        column = self.pair_columns.positive
        if column is None or not self.pair_columns.within:
            return []
        return list(self._value_rows(column, "positive", heads[0], source_row, cells))

    def _negatives(self, heads: Sequence[PackRow], source_row: int, cells: Cells) -> Iterator[tuple[PairColumn, PackRow]]:
        """Make a row for every negative of a source row."""
        for column in self.pair_columns.negatives:
            for row in self._value_rows(column, column.column, heads[0], source_row, cells):
                yield column, row

    def _value_rows(self, column: PairColumn, suffix: str, head: PackRow, source_row: int, cells: Cells) -> Iterator[PackRow]:
        """Make a row with a single value for every value in the cell of a column."""
        cell = cells.get(column.column)
        for n, value in enumerate(cell if isinstance(cell, list) else [cell], 1):
            row = PackRow(0, source_row, split=head.split, id=f"{head.id}~{suffix}" + (f"#{n}" if n > 1 else ""))
            try:
                if path_or_bytes(value) == (None, None):
                    continue
                self._add_value(row, column.modality, value)
            except ValueError as e:
                row.reason = f"{column.column}: {e}"
            row.file = row.files.get(column.modality)
            yield row

    def _join(self, heads: Sequence[PackRow], positives: Sequence[PackRow], cells: Cells) -> float | None:
        """Put queries and positives into one group, and return the score of the pair. A pair with a score up to 0 is no positive."""
        score: float | None = None
        cell = cells.get(self.score) if self.score else None
        if cell not in (None, ""):
            try:
                score = float(str(cell))
                if not math.isfinite(score):
                    raise ValueError
            except ValueError:
                for row in heads:
                    row.reason = row.reason or f"{self.score}: {cell!r} is not a number"
        if positives and (score is None or score > 0):
            contents = [self._content(v, m) for row in (*heads, *positives) for m, v in row.values.items()]
            group = heads[0].group or shared_group(heads[0].id, b"\0".join(contents))
            for row in (*heads, *positives):
                row.group = group
        return score

    def _judge(self, heads: Sequence[PackRow], positives: Sequence[PackRow], score: float | None) -> None:
        """Record the score as a judgment; of a pair within one modality that is no positive, also as a negative."""
        if score is None:
            return
        for head in heads:
            split = head.split or ""
            if not positives:
                self.tables.add_judgment(split, head.id, head.id, score, None)
            for row in positives:
                name = f"{next(iter(row.values), '')}->{next(iter(row.values), '')}"
                self.tables.add_judgment(split, head.id, row.id, score, name)
                if score <= 0:
                    self.tables.add_negative(split, name, head.id, row.id, head.source_row)

    def _first_id(self, rows: Sequence[PackRow]) -> str | None:
        """Return the id of an earlier row with the same values, group and metadata, or None; only if the source has no ids."""
        if self.id or any(row.reason for row in rows) or rows[0].item or not self.pair_columns.negatives:
            return None
        contents = [[m, self._content(v, m).hex()] for row in rows for m, v in sorted(row.values.items())]
        group = rows[0].group if self.group else None
        whole = json.dumps([rows[0].split, group, rows[0].meta, contents], sort_keys=True)
        first = self._first_ids.setdefault(blake2b(whole.encode("utf-8", "replace"), digest_size=16).digest(), rows[0].id)
        return first if first != rows[0].id else None

    def _content(self, value: bytes | str, modality: str) -> bytes:
        """What identifies the content of a value: the digest of its bytes, or its path if no other file has its size."""
        if isinstance(value, bytes):
            try:
                value = modalities.get(modality).content_key(value)
            except Rejected:
                pass
            return blake2b(value, digest_size=16).digest()
        path = os.path.normpath(value) if "://" not in value else value
        return self._digests.get(path, b"path:" + path.encode("utf-8", "surrogateescape"))


def assign_pair_columns(
    source: RowSource,
    columns: dict[str, str],
    id: str | None,
    group: str | None,
    split: str | None,
    *,
    query: str | None = None,
    positive: str | None = None,
    negatives: Sequence[str] = (),
    score: str | None = None,
) -> ColumnRoles:
    """Assign roles to the columns of a source, see `assign_columns`; those of explicit pairs, negatives and scores as well.

    query, positive, negatives: "COLUMN" or "COLUMN:MODALITY"; without any, usual names are recognised
    score: column with the score of each row's pair
    """
    found = find_negative_columns(source, columns, query, positive, negatives)
    if found is None and score is None:
        return assign_columns(source, columns, id, group, split)
    found = found or NegativeColumns(None, None, ())
    roles = assign_columns(source, {**columns, **found.row_columns()}, id, group, split)
    used = {c.column for c in found.all()}
    meta = [c for c in roles.meta if c not in used]
    rows = PairRows(
        source,
        roles.modalities,
        roles.id,
        roles.group,
        roles.split,
        meta,
        numbers={c: kind for c, kind in roles.numbers.items() if c not in used},
        pair_columns=found,
        score=named_column(source, score, "score") if score else None,
    )
    if found.negatives:
        rows.index_contents()
    return rows


def digests_of_equal_sizes(paths: set[str]) -> dict[str, bytes]:
    """Path -> digest, of the files whose size equals that of another file. All other files have contents of their own."""
    of_size: dict[int, list[str]] = {}
    for path in sorted({os.path.normpath(p) for p in paths}):
        try:
            of_size.setdefault(os.stat(path).st_size, []).append(path)
        except (OSError, ValueError):
            continue
    out = {}
    for same in of_size.values():
        for path in same if len(same) > 1 else ():
            try:
                with open(path, "rb") as f:
                    out[path] = blake2b(f.read(), digest_size=16).digest()
            except OSError:
                continue
    return out
