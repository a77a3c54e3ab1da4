"""LanceDB, embedded: one table a (collection, version, modality) in a directory or at an object store's URI.

Every write is one commit of a new table version: a killed one leaves the table as it was. A filter sees typed columns, one
for each (kind, path) of the metadata (`store_rows.column`), beside the whole metadata as JSON; filters are handed over as
expressions with bound values, never as SQL. `present` lists a row's columns, so that a missing value is told from another.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.errors import DataError, MissingExtra
from mmtune.index.protocols import INDEXES, Hit, StoreLocation
from mmtune.index.query.filters import All, AnyOf, Filter, In, IsNull, Not, Order, kind
from mmtune.index.stores import store_ranking, store_rows

FLAT_UP_TO = 50_000
"""Vectors that "auto" leaves to exact search."""

FEWEST = 256
"""Fewer vectors train no quantiser (8 bits): they are searched exactly whatever is asked."""

COLUMNS = 1000
DELETED_AT_ONCE = 10_000
READERS_MAY_TAKE = timedelta(minutes=10)
"""How long the files of a replaced table version stay for searches under way."""

BASE = ["id", "vector", "meta", "present"]
TYPES = {"n": "float64", "s": "string", "b": "bool_", "j": "bool_"}


def _lancedb() -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb
        import lancedb.expr
        import lancedb.index
    except ImportError:
        raise MissingExtra('store lancedb needs lancedb: pip install "mmtune[lancedb]"') from None
    return lancedb


class LanceStore:
    """See `contracts.Store`. `url`: a directory or object-storage URI that holds many tables; default the place's own."""

    kind = "lancedb"

    def __init__(self, place: StoreLocation, db: Any, table: Any, label: str):
        self._place, self._db, self._table, self._label = place, db, table, label
        schema = table.schema
        found = json.loads((schema.metadata or {}).get(b"mmtune", b"null"))
        vector = schema.field("vector").type if "vector" in schema.names else None
        stamp = store_rows.read_stamp(found, getattr(vector, "list_size", None), label)
        self.fingerprint, self.dim = stamp["fingerprint"], stamp["dim"]
        self._index = self._built()

    @staticmethod
    def _connect(place: StoreLocation) -> tuple[Any, str]:
        uri = place.url or str(place.directory)
        # every search looks whether another process has written
        return _lancedb().connect(uri, read_consistency_interval=timedelta(0)), f"{uri}/{store_rows.check_name(place.name)}"

    @classmethod
    def create(cls, place: StoreLocation, dim: int, fingerprint: str) -> "LanceStore":
        """An empty table, stamped; what lay there before is replaced."""
        import pyarrow as pa

        db, label = cls._connect(place)
        fields = [pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)]
        fields += [pa.field(n, pa.string(), nullable=False) for n in ("meta", "present")]
        schema = pa.schema(fields, {"mmtune": json.dumps(store_rows.stamp(fingerprint, dim))})
        return cls(place, db, db.create_table(place.name, schema=schema, mode="overwrite"), label)

    @classmethod
    def open(cls, place: StoreLocation) -> "LanceStore":
        """The table that lies there. DataError when there is none or it carries no stamp."""
        db, label = cls._connect(place)
        try:
            table = db.open_table(place.name)
        except (ValueError, FileNotFoundError) as e:
            raise DataError(f"{label}: no LanceDB table ({str(e).splitlines()[0]})") from None
        return cls(place, db, table, label)

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, Any]]) -> None:
        ids, vectors_ND, meta = store_rows.checked(ids, vectors_ND, meta, self.dim, self._label)
        if not ids:
            return
        import pyarrow as pa

        seen = [dict(store_rows.leaves(m)) for m in meta]
        schema = self._with_columns({c for row in seen for c in row})
        columns: dict[str, Any] = {
            "id": pa.array(ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self.dim),
            "meta": pa.array([store_rows.document(m) for m in meta], pa.string()),
            "present": pa.array([f" {' '.join(row)} " for row in seen], pa.string()),
        }
        for name in schema.names[len(BASE) :]:
            columns[name] = pa.array([row.get(name) for row in seen], schema.field(name).type)
        data = pa.table([columns[n] for n in schema.names], schema=schema.remove_metadata())
        self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)

    def _with_columns(self, names: set[str]) -> Any:
        """The table's schema once it has these columns, in the table's order with BASE first."""
        import pyarrow as pa

        schema = self._table.schema
        new = sorted(names - set(schema.names))
        if len(schema.names) + len(new) > COLUMNS:
            raise DataError(f"{self._label}: more than {COLUMNS} different keys in the metadata, {new[0]!r} among them")
        if new:
            self._table.add_columns(pa.schema([pa.field(n, getattr(pa, TYPES[n[0]])()) for n in new]))
            schema = self._table.schema
        return schema

    def delete(self, ids: Sequence[str]) -> None:
        ids = list(ids)
        for start in range(0, len(ids), DELETED_AT_ONCE):
            self._table.delete(_lancedb().expr.col("id").isin(ids[start : start + DELETED_AT_ONCE]))

    def build(self, index: str = "auto") -> dict[str, Any]:
        if index not in INDEXES:
            raise DataError(f"{self._label}: no index {index!r}; there are {', '.join(INDEXES)}")
        count, first = len(self), not self._table.list_indices()
        if index == "auto":
            index = "flat" if count <= FLAT_UP_TO else "hnsw"
        for old in self._table.list_indices():
            if old.columns == ["vector"]:
                self._table.drop_index(old.name)
        built: dict[str, Any] = {"index": "flat"}
        if index != "flat" and count < FEWEST:
            built["note"] = f"{count} vectors: fewer than {FEWEST} are searched exactly"
        elif index != "flat":
            config, built = self._config(index, count)
            self._table.create_index("vector", config=config)
        if count:
            self._table.create_index("id", config=_lancedb().index.BTree())
        # before the first build nobody searches: then nothing old needs to stay
        self._clean(timedelta(0) if first else READERS_MAY_TAKE)
        self._index = self._built()
        return built

    def _config(self, index: str, count: int) -> tuple[Any, dict[str, Any]]:
        parts = _lancedb().index
        if index == "hnsw":
            settings: dict[str, Any] = {"m": 20, "ef_construction": 200}
            return parts.HnswSq(distance_type="dot", **settings), {"index": index, **settings}
        # eight dimensions a code, and few rounds of k-means: answers are scored again with the whole vectors
        sub = next((self.dim // n for n in (8, 6, 4, 3, 2) if self.dim % n == 0), self.dim)
        settings = {"num_partitions": max(1, min(round(count**0.5), count // 256)), "num_sub_vectors": sub}
        return parts.IvfPq(distance_type="dot", max_iterations=20, **settings), {"index": index, **settings}

    def _clean(self, older: timedelta) -> None:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of what READERS_MAY_TAKE is for
            self._table.optimize(cleanup_older_than=older)

    def _built(self) -> str:
        kinds = {i.index_type.lower() for i in self._table.list_indices() if i.columns == ["vector"]}
        return "flat" if not kinds else "hnsw" if any("hnsw" in k for k in kinds) else "ivfpq"

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        condition = None if where is None else _Condition(set(self._table.schema.names)).of(where, True)
        query_QD = store_rows.queries(query_QD, self.dim, k, self._label)
        widest = None if self._index == "flat" else 4 * k + 64
        return [
            store_ranking.best(q, k, functools.partial(self._propose, q, condition, widest), json.loads, widest)
            for q in query_QD
        ]

    def _propose(self, query_D: np.ndarray, condition: Any, widest: int | None, width: int) -> store_ranking.Proposals:
        found = self._query(query_D, condition, width, exact=widest is None)
        if widest is not None and found.num_rows < width:
            # a filter that admits little beside what the index looked at: those few are scanned
            found = self._query(query_D, condition, width, exact=True)
        vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
        return found["id"].to_pylist(), vectors, found["meta"].to_pylist()

    def _query(self, query_D: np.ndarray, condition: Any, width: int, exact: bool) -> Any:
        query = self._table.search(query_D, vector_column_name="vector").distance_type("dot").limit(width)
        query = query.select(["id", "vector", "meta", "_distance"])
        if condition is not None:
            query = query.where(condition, prefilter=True)
        if exact:
            query = query.bypass_vector_index()
        elif self._index == "hnsw":
            query = query.ef(max(200, 4 * width))
        else:
            query = query.nprobes(max(20, round(len(self) ** 0.5 / 8))).refine_factor(10)
        return query.to_arrow()

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        ids, parts = list(ids), [np.empty((0, self.dim), np.float32)]
        at: dict[str, int] = {}
        for start in range(0, len(ids), DELETED_AT_ONCE):
            some = _lancedb().expr.col("id").isin(ids[start : start + DELETED_AT_ONCE])
            found = self._table.search().where(some).select(["id", "vector"]).to_arrow()
            for id in found["id"].to_pylist():
                at.setdefault(id, len(at))
            parts.append(found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim))
        missing = [i for i in ids if i not in at]
        if missing:
            raise DataError(f"{self._label}: no id {missing[0]!r} ({len(missing)} of {len(ids)} missing)")
        return np.concatenate(parts)[[at[i] for i in ids]] if ids else parts[0]

    def ids(self) -> list[str]:
        return self._table.search().select(["id"]).to_arrow()["id"].to_pylist()

    def __len__(self) -> int:
        return self._table.count_rows()

    def size(self) -> int:
        root = Path(self._place.url or self._place.directory) / f"{self._place.name}.lance"
        if root.is_dir():
            return sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
        indexes = sum(i.size_bytes or 0 for i in self._table.list_indices())
        return int(self._table.stats()["total_bytes"]) + indexes

    def drop(self) -> None:
        self._db.drop_table(self._place.name, ignore_missing=True)

    def close(self) -> None:
        self._table = self._db = None


class _Condition:
    """A filter as LanceDB's expression over the columns that the table has.

    SQL knows three truth values and `filters` two: `not` is pushed down to the comparisons, where a missing value is told
    by `present`; a null that is left counts as false under `and`, `or` and at the top.
    """

    def __init__(self, columns: set[str]):
        self.columns, self.x = columns, _lancedb().expr

    def of(self, f: Filter, positive: bool) -> Any:
        """The expression for `f`, or for its opposite."""
        match f:
            case Not(term):
                return self.of(term, not positive)
            case All(terms) | AnyOf(terms):
                joint = isinstance(f, All) == positive
                return self._join([self.of(t, positive) for t in terms], joint)
            case IsNull(path):
                some = self._join([self._has(store_rows.column(k, path)) for k in TYPES], False)
                return ~some if positive else some
            case Order(path, op, value):
                return self._leaf(
                    store_rows.column(kind(value) or "", path), positive, lambda c: _compare(c, op, self.x.lit(value))
                )
            case In(path, values):
                tests = []
                for of in TYPES:
                    some = [v for v in values if kind(v) == of]
                    if some:
                        tests.append(
                            self._leaf(store_rows.column(of, path), positive, functools.partial(_among, some, self.x.lit))
                        )
                return self._join(tests, not positive)
        raise TypeError(type(f))

    def _leaf(self, column: str, positive: bool, test: Any) -> Any:
        if column not in self.columns:
            return self._constant(not positive)
        holds = test(self.x.col(column))
        return holds if positive else ~self._has(column) | ~holds

    def _has(self, column: str) -> Any:
        return self.x.col("present").contains(self.x.lit(f" {column} "))

    def _constant(self, value: bool) -> Any:
        return self.x.lit(1) == self.x.lit(1 if value else 0)

    def _join(self, terms: list[Any], joint: bool) -> Any:
        """Halves of halves: a chain of thousands would be as deep as it is long."""
        if len(terms) == 1:
            return terms[0]
        left, right = self._join(terms[: len(terms) // 2], joint), self._join(terms[len(terms) // 2 :], joint)
        return left & right if joint else left | right


def _compare(column: Any, op: str, value: Any) -> Any:
    return {"<": column.lt, "<=": column.lte, ">": column.gt, ">=": column.gte}[op](value)


def _among(values: list[Any], lit: Any, column: Any) -> Any:
    return column == lit(values[0]) if len(values) == 1 else column.isin(values)
