"""Store vectors in embedded LanceDB: one table per (collection, version, modality), in a directory or in object storage.

Every write commits a new table version atomically; a write that is killed leaves the table unchanged. A row holds the whole
metadata as JSON, and also one typed column for each (kind, path) of the metadata (`store_rows.typed_column`). Filters test the
typed columns. They are passed as expressions with bound values, never as SQL text. The column `present` lists the typed columns
that a row has, so that missing values can be recognised.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MissingExtra, StoreUnavailable
from mmtune.index.query.filters import Filter
from mmtune.index.stores import store_ranking, store_rows
from mmtune.index.stores.lancedb_errors import message_of, reports_outages, storage_error
from mmtune.index.stores.lancedb_filters import COLUMN_TYPES, FilterExpression
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import LanceDBConnection
    from lancedb.expr import Expr
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import LanceTable

MAX_FLAT = 50_000
"""Up to this many vectors, "auto" means exact search."""

MIN_FOR_INDEX = 256
"""An 8-bit quantiser needs at least this many training vectors; fewer are searched exactly, whatever index is requested."""

MAX_COLUMNS = 1000
"""Most columns of a table; a limit against metadata with ever new keys."""
BATCH = 10_000
"""Ids per delete or fetch expression."""
ATTEMPTS = 3
"""Attempts of a search whose table version is cleaned up while it reads."""
UNRENAMED = re.compile(r"#\d+$")
"""Matches the name of a file that LanceDB writes under another name first (`X.manifest#1`), and that a killed writer left."""
READER_GRACE = timedelta(minutes=10)
"""How long the files of a replaced table version are kept, for searches that still read them."""

SMALL_FRAGMENTS, ROWS_PER_FRAGMENT = 32, 4000
"""Each upsert adds a fragment, and each fragment makes later ones slower. So fragments are merged when there are more small ones than
SMALL_FRAGMENTS, and than one for ROWS_PER_FRAGMENT rows: merging writes the rows again, so a large table is merged less often."""
CHECK_EVERY = 8
"""Fragments are counted at every CHECK_EVERYth table version."""

BASE_COLUMNS = ["id", "vector", "meta", "present"]


def _lancedb() -> ModuleType:
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb
        import lancedb.expr
        import lancedb.index
    except ImportError:
        raise MissingExtra('store lancedb needs lancedb: pip install "mmtune[lancedb]"') from None
    return lancedb


class LanceStore:
    """Implements `mmtune.index.stores.Store` with LanceDB.

    The location's url is a directory or an object-storage URI that can hold many tables. None means the location's directory.
    """

    kind = "lancedb"

    def __init__(self, location: StoreLocation, db: "LanceDBConnection", table: "LanceTable"):
        self._location, self._db, self._table, self._label = location, db, table, self._label_of(location)
        schema = table.schema
        document = json.loads((schema.metadata or {}).get(b"mmtune", b"null"))
        vector = schema.field("vector").type if "vector" in schema.names else None
        stamp = store_rows.read_stamp(document, getattr(vector, "list_size", None), self._label)
        self.fingerprint, self.dim = stamp["fingerprint"], stamp["dim"]
        self._index = self._built()

    @staticmethod
    def _label_of(location: StoreLocation) -> str:
        return f"{location.url or location.directory}/{store_rows.check_name(location.name)}"

    @staticmethod
    def _connect(location: StoreLocation) -> "LanceDBConnection":
        uri = location.url or str(location.directory)
        # An interval of 0 makes every search check whether another process has written.
        return _lancedb().connect(uri, read_consistency_interval=timedelta(0))

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "LanceStore":
        """Create an empty table that records the fingerprint; an existing table of that name is replaced."""
        import pyarrow as pa

        fields = [pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)]
        fields += [pa.field(n, pa.string(), nullable=False) for n in ("meta", "present")]
        schema = pa.schema(fields, {"mmtune": json.dumps(store_rows.stamp(fingerprint, dim))})
        try:
            db = cls._connect(location)
            return cls(location, db, db.create_table(location.name, schema=schema, mode="overwrite"))
        except (OSError, RuntimeError, ValueError) as e:
            raise storage_error(cls._label_of(location), e) from e.__cause__

    @classmethod
    def open(cls, location: StoreLocation) -> "LanceStore":
        """Open the table at `location`. Raises DataError when there is no such table, or it records no fingerprint."""
        label = cls._label_of(location)
        try:
            db = cls._connect(location)
            table = db.open_table(location.name)
            return cls(location, db, table)
        except (OSError, RuntimeError, ValueError) as e:
            if isinstance(error := storage_error(label, e), StoreUnavailable):
                raise error from None
            if not isinstance(e, ValueError | FileNotFoundError):
                raise error from e.__cause__
            raise DataError(f"{label}: no such LanceDB table ({message_of(e)})") from None

    def probe(self) -> None:
        """Count the rows. Raises StoreUnavailable when the storage cannot be reached."""
        try:
            self._table.count_rows()
        except (OSError, RuntimeError, ValueError) as e:
            raise StoreUnavailable(f"{self._label}: {message_of(e)}") from None

    @reports_outages
    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        ids, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, self._label)
        if not ids:
            return
        import pyarrow as pa

        values = [dict(store_rows.typed_columns(m)) for m in plain]
        schema = self._with_columns({c for row in values for c in row})
        columns: dict[str, pa.Array] = {
            "id": pa.array(ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self.dim),
            "meta": pa.array([store_rows.document(m) for m in plain], pa.string()),
            "present": pa.array([f" {' '.join(row)} " for row in values], pa.string()),
        }
        for name in schema.names[len(BASE_COLUMNS) :]:
            columns[name] = pa.array([row.get(name) for row in values], schema.field(name).type)
        data = pa.table([columns[n] for n in schema.names], schema=schema.remove_metadata())
        self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)
        if self._table.version % CHECK_EVERY == 0:
            self._merge_fragments()

    def _merge_fragments(self) -> None:
        """Merge fragments if there are too many small ones. All rows are written already: if it fails, a later upsert tries again."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._small_fragments() > max(SMALL_FRAGMENTS, len(self) // ROWS_PER_FRAGMENT):
                self._clean(READER_GRACE)

    def _small_fragments(self) -> int:
        return int(self._statistics()["fragment_stats"]["num_small_fragments"])

    def _statistics(self) -> JsonObject:
        return cast("JsonObject", self._table.stats())  # LanceDB annotates a dataclass, but returns a dict

    def _with_columns(self, names: set[str]) -> "pa.Schema":
        """Add the missing ones of these columns to the table, and return its schema; BASE_COLUMNS come first."""
        import pyarrow as pa

        schema = self._table.schema
        new = sorted(names - set(schema.names))
        if len(schema.names) + len(new) > MAX_COLUMNS:
            raise DataError(
                f"{self._label}: the metadata has more than {MAX_COLUMNS} different keys, {new[0]!r} among them; remove some"
            )
        if new:
            self._table.add_columns(pa.schema([pa.field(n, getattr(pa, COLUMN_TYPES[n[0]])()) for n in new]))
            schema = self._table.schema
        return schema

    @reports_outages
    def delete(self, ids: Sequence[str]) -> None:
        ids = list(ids)
        for start in range(0, len(ids), BATCH):
            self._table.delete(_lancedb().expr.col("id").isin(ids[start : start + BATCH]))

    @reports_outages
    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> dict[str, object]:
        store_rows.check_index(index, self._label, search_dim, memory_mb)
        count, first = len(self), not self._table.list_indices()
        if index == "auto":
            index = "flat" if count <= MAX_FLAT else "hnsw"
        for old in self._table.list_indices():
            if old.columns == ["vector"]:
                self._table.drop_index(old.name)
        built: dict[str, object] = {"index": "flat"}
        if index != "flat" and count < MIN_FOR_INDEX:
            built["note"] = f"{count} vectors; fewer than {MIN_FOR_INDEX} are searched exactly"
        elif index != "flat":
            built = {"index": index, **self._create_vector_index(index, count)}
        if count:
            self._table.create_index("id", config=_lancedb().index.BTree())
        # No process searches before the first build, so old table versions can be removed at once.
        self._clean(timedelta(0) if first else READER_GRACE)
        self._index = self._built()
        return built

    @reports_outages
    def reclaim(self) -> str:
        """Merge small files, add new rows to the index, and delete the files of replaced table versions that no search reads now."""
        before = self.size()
        self._clean(READER_GRACE)
        minutes = READER_GRACE.total_seconds() / 60
        note = f"files merged, new rows added to the index, table versions older than {minutes:g} min deleted"
        return note if self.size() != before else f"{note}: nothing was older; --full deletes all at once"

    @reports_outages
    def compact(self) -> None:
        """Rewrite the table without deleted rows, build its index again, and delete all earlier files, also those of a killed writer.

        No other process may write meanwhile; a search that runs in one may have to be repeated.
        """
        schema, index = self._table.schema, self._index
        rows = self._table.search().select(schema.names).to_arrow().select(schema.names)
        data = rows.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata)
        self._table = self._db.create_table(self._location.name, data=data, schema=schema, mode="overwrite")
        self.build(index)
        self._clean(timedelta(0), uncommitted=True)
        for path in self._directory.rglob("*#*"):
            if UNRENAMED.search(path.name):
                path.unlink(missing_ok=True)

    def _create_vector_index(self, index: str, count: int) -> dict[str, int]:
        """Build an hnsw or ivfpq index and return its settings."""
        kinds = _lancedb().index
        if index == "hnsw":
            settings = {"m": 20, "ef_construction": 200}
            self._table.create_index("vector", config=kinds.HnswSq(distance_type="dot", **settings))
            return settings
        # Coarse codes (eight dimensions each) and few k-means iterations suffice: candidates are re-ranked with full vectors.
        sub = next((self.dim // n for n in (8, 6, 4, 3, 2) if self.dim % n == 0), self.dim)
        settings = {"num_partitions": max(1, min(round(count**0.5), count // 256)), "num_sub_vectors": sub}
        self._table.create_index("vector", config=kinds.IvfPq(distance_type="dot", max_iterations=20, **settings))
        return settings

    def _clean(self, older: timedelta, uncommitted: bool = False) -> None:
        """uncommitted: also delete files that no version has, which LanceDB keeps for 7 days otherwise."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warns that readers may lose files; READER_GRACE prevents that
            self._table.optimize(cleanup_older_than=older, delete_unverified=uncommitted)

    def _built(self) -> str:
        kinds = {i.index_type.lower() for i in self._table.list_indices() if i.columns == ["vector"]}
        return "flat" if not kinds else "hnsw" if any("hnsw" in k for k in kinds) else "ivfpq"

    @reports_outages
    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        condition = None if where is None else FilterExpression(_lancedb().expr, set(self._table.schema.names)).of(where, True)
        query_QD = store_rows.check_queries(query_QD, self.dim, k, self._label)
        widest = None if self._index == "flat" else 4 * k + 64

        def propose(query_D: np.ndarray, width: int) -> store_ranking.Candidates:
            rows = self._nearest(query_D, condition, width, exact=widest is None)
            if widest is not None and rows.num_rows < width:
                # Too few candidates of the index match the filter, so scan all matching rows exactly.
                rows = self._nearest(query_D, condition, width, exact=True)
            return store_ranking.Candidates(rows["id"].to_pylist(), self._vectors(rows), rows["meta"].to_pylist())

        return store_ranking.rank(query_QD, k, propose, widest)

    def _vectors(self, rows: "pa.Table") -> np.ndarray:
        return rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)

    def _nearest(self, query_D: np.ndarray, condition: "Expr | None", width: int, exact: bool) -> "pa.Table":
        """Search once; again on the current table version if the files of the one that was searched were cleaned up meanwhile."""
        for attempt in range(ATTEMPTS):
            try:
                return self._query(query_D, condition, width, exact).to_arrow()
            except RuntimeError as e:
                if "Not found" not in str(e) or attempt == ATTEMPTS - 1:
                    raise
                self._table.checkout_latest()
        raise AssertionError("unreachable")

    def _query(self, query_D: np.ndarray, condition: "Expr | None", width: int, exact: bool) -> "LanceVectorQueryBuilder":
        query: LanceVectorQueryBuilder = self._table.search(query_D, vector_column_name="vector")
        query = query.distance_type("dot").limit(width)
        query = query.select(["id", "vector", "meta", "_distance"])
        if condition is not None:
            query = query.where(condition, prefilter=True)
        if exact:
            return query.bypass_vector_index()
        if self._index == "hnsw":
            return query.ef(max(200, 4 * width))
        return query.nprobes(max(20, round(len(self) ** 0.5 / 8))).refine_factor(10)

    @reports_outages
    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        ids, vectors = list(ids), dict[str, np.ndarray]()
        for start in range(0, len(ids), BATCH):
            some = _lancedb().expr.col("id").isin(ids[start : start + BATCH])
            rows = self._table.search().where(some).select(["id", "vector"]).to_arrow()
            vectors |= zip(rows["id"].to_pylist(), self._vectors(rows), strict=True)
        return store_rows.stack_in_order(ids, vectors, self.dim, self._label)

    @reports_outages
    def ids(self) -> list[str]:
        return self._table.search().select(["id"]).to_arrow()["id"].to_pylist()

    @reports_outages
    def __len__(self) -> int:
        return self._table.count_rows()

    @property
    def _directory(self) -> Path:
        """The table's directory; on object storage, a path that does not exist."""
        return Path(self._location.url or self._location.directory) / f"{self._location.name}.lance"

    @reports_outages
    def size(self) -> int:
        root = self._directory
        if root.is_dir():
            return store_rows.directory_size(root)
        indexes = sum(i.size_bytes or 0 for i in self._table.list_indices())
        return int(self._statistics()["total_bytes"]) + indexes

    @reports_outages
    def drop(self) -> None:
        self._db.drop_table(self._location.name, ignore_missing=True)

    def close(self) -> None:
        for name in ("_table", "_db"):  # LanceDB has no close(): it releases handles and caches when the objects are freed
            vars(self).pop(name, None)
