"""Join pairs of (query, item id) with a table of items, so that `mmtune pack` takes the pairs as they are."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import path_or_bytes
from mmtune.data.pack.file_names import existing_path
from mmtune.data.sources.row_source import InvalidRow, RowSource, open_source
from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.runtime.files import write_bytes

NO_ITEM = "the item is not in the catalog, or has no content there"
BATCH = 4096


def language() -> str:
    """The modality of queries that people type."""
    return next(n for n in modalities.names() if modalities.get(n).language)


@dataclass
class CatalogJoin:
    """A table of items, and what of it becomes part of the pairs.

    source: the opened table
    id: column of the item ids
    candidate: column of what is searched for: a file, or a title
    modality: modality of the candidates
    carried: further column -> its name in pairs.parquet
    """

    source: RowSource
    id: str
    candidate: str
    modality: str
    carried: dict[str, str]
    _items: dict[str, tuple[str, dict[str, str | None]]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, catalog: str | Path, id: str, candidate: str | None) -> "CatalogJoin":
        """Open the table. candidate: "COLUMN" or "COLUMN:MODALITY"; None means the first column with a usual name of a modality.

        Raises DataError if a column does not exist, or if no column holds what is searched for.
        """
        source = open_source(catalog)
        if id not in source.columns:
            raise DataError(f"{catalog}: no column {id!r} (--catalog-id); it has {', '.join(source.columns[:20])}")
        column, modality = _candidate(source, candidate)
        reserved = {"query", "item", "grade", "weight", "split", "impressions", "clicks", "carts", "orders", "examinations"}
        reserved |= {"source", "positive", "negative", modality, f"negative_{modality}", "id"}
        # a name that `pack` would take for contents becomes one of metadata
        carried = {
            c: f"item_{c}" if c in reserved or _modality_named(c) else c for c in source.columns if c not in (id, column)
        }
        return cls(source, id, column, modality, carried)

    def identity(self) -> JsonObject:
        """What the joined columns depend on."""
        return {"sha256": self.source.sha256, "id": self.id, "candidate": self.candidate, "modality": self.modality}

    @property
    def positive_column(self) -> str:
        """Name of the column of candidates, as `pack` recognises it."""
        return "positive" if self.modality == language() else self.modality

    @property
    def negative_column(self) -> str:
        """Name of the column of negatives, as `pack` recognises it."""
        return "negative" if self.modality == language() else f"negative_{self.modality}"

    def columns(self) -> dict[str, pa.DataType]:
        """The columns that `add_columns` adds."""
        own = {"id": pa.string(), self.positive_column: pa.string(), self.negative_column: pa.list_(pa.string())}
        return {**own, **dict.fromkeys(self.carried.values(), pa.string())}

    def load(self, ids: set[str], files: Path, drops: DropCounts) -> None:
        """Read the items with these ids; contents that are bytes in the table are written to the directory `files`."""
        for row, id, content, cells in self._rows(files):
            if id in self._items:
                drops.add("an id that the catalog has twice; its first row is used", f"{id} (row {row})", unit="catalog rows")
            elif id in ids and content is not None:
                self._items[id] = content, {name: _text(cells.get(c)) for c, name in self.carried.items()}

    def add_columns(self, table: pa.Table, drops: DropCounts) -> pa.Table:
        """Add the contents and carried columns of each pair's item, and those of its skipped items as negatives."""
        known = [item in self._items for item in table["item"].to_pylist()]
        for item, is_known in zip(table["item"].to_pylist(), known, strict=True):
            if not is_known:
                drops.add(NO_ITEM, item, unit="pairs")
        table = table.filter(pa.array(known, pa.bool_()))
        found = [self._items[item] for item in table["item"].to_pylist()]
        negatives = [
            list(dict.fromkeys(self._items[n][0] for n in ids if n in self._items))
            for ids in table["negative_items"].to_pylist()
        ]
        splits = table["split"].to_pylist() if "split" in table.column_names else ["train"] * len(table)
        pairs = zip(table["query"].to_pylist(), table["item"].to_pylist(), splits, strict=True)
        ids = [f"{query} > {item}" + ("" if split == "train" else f" ({split})") for query, item, split in pairs]
        table = table.append_column("id", pa.array(ids, pa.string()))
        table = table.append_column(self.positive_column, pa.array([content for content, _ in found], pa.string()))
        table = table.append_column(self.negative_column, pa.array(negatives, pa.list_(pa.string())))
        for name in self.carried.values():
            table = table.append_column(name, pa.array([meta[name] for _, meta in found], pa.string()))
        return table.drop_columns(["negative_items"])

    def write_evaluation(self, files: Path, queries: Iterable[str], drops: DropCounts) -> int:
        """Write evaluation.parquet: a row for each query and each item of the catalog, with the ids of judgments.jsonl.

        Returns the number of rows.
        """
        names = ["id", language(), *([self.modality] if self.modality != language() else [])]
        schema = pa.schema([(name, pa.string()) for name in names])
        seen: set[str] = set()

        def rows() -> Iterator[dict[str, str]]:
            for _, id, content, _cells in self._rows(files):
                if id and content is not None and id not in seen:
                    seen.add(id)
                    yield {"id": id, self.modality: content}
            for query in queries:
                if query in seen:
                    drops.add("a query that equals an item's id is not evaluated", query, unit="queries")
                else:
                    yield {"id": query, language(): query}

        count, batch = 0, list[dict[str, str]]()
        with pq.ParquetWriter(files / "evaluation.parquet", schema) as writer:
            for row in rows():
                batch.append(row)
                count += 1
                if len(batch) == BATCH:
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                    batch = []
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        return count

    def _rows(self, files: Path) -> Iterator[tuple[int, str, str | None, JsonObject]]:
        """Yield (row number, id, content or None, cells); the content is a text, or a path or URL."""
        for number, cells in self.source.rows({self.id, self.candidate}):
            if isinstance(cells, InvalidRow):
                continue
            id = identity_string(cells.get(self.id))
            if id:
                yield number, id, self._content(id, cells.get(self.candidate), files), dict(cells)

    def _content(self, id: str, cell: object, files: Path) -> str | None:
        value = cell[0] if isinstance(cell, list) and cell else cell
        path, data = path_or_bytes(value)
        if self.modality == language():
            return str(value).strip() or None if value not in (None, [], "") else None
        if data is not None:
            name = f"files/{hashlib.sha256(id.encode()).hexdigest()[:24]}.{modalities.get(self.modality).extensions[0]}"
            if not (files / name).exists():
                write_bytes(files / name, data)
            return name
        if not path:
            return None
        return path if "://" in path else existing_path(os.path.abspath(os.path.join(self.source.folder, path)))


def _text(cell: object) -> str | None:
    return None if cell is None or isinstance(cell, bytes | list | dict) else str(cell)


def _candidate(source: RowSource, candidate: str | None) -> tuple[str, str]:
    """The column of what is searched for, and its modality."""
    if candidate:
        name, _, modality = (
            candidate.rpartition(":") if candidate not in source.columns and ":" in candidate else (candidate, "", "")
        )
        if name not in source.columns:
            raise DataError(f"{source.path}: no column {name!r} (--candidate); it has {', '.join(source.columns[:20])}")
        if modality:
            modalities.get(modality)
        return name, modality or _modality_named(name) or _modality_of_values(source, name)
    usual = {c: m for c in source.columns if (m := _modality_named(c))}
    ordered = sorted(usual, key=lambda c: usual[c] == language())
    if not ordered:
        raise DataError(
            f"{source.path}: no column has a usual name of what is searched for; name it by --candidate COL (it has "
            f"{', '.join(source.columns[:20])})"
        )
    return ordered[0], usual[ordered[0]]


def _modality_named(column: str) -> str:
    lower = column.strip().lower()
    return next((n for n in modalities.names() if lower in (n, *modalities.get(n).columns)), "")


def _modality_of_values(source: RowSource, column: str) -> str:
    for _, cells in source.rows({column}):
        path, _ = path_or_bytes(None if isinstance(cells, InvalidRow) else cells.get(column))
        if path:
            return modalities.by_extension().get(path.rpartition(".")[2].lower(), language())
    return language()
