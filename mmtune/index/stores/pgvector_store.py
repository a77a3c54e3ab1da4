"""Store vectors in PostgreSQL with pgvector: one table (id, embedding, meta jsonb) per (collection, version, modality).

The fingerprint is recorded in the table's comment. The url is a libpq connection string (`postgresql://user@host/db` or
`host=... dbname=...`); put passwords into PGPASSWORD, ~/.pgpass or a service file. Every write is one transaction.

A search without a filter uses the HNSW index if there is one. A search with a filter scans all matching rows exactly, because
pgvector applies the filter after the HNSW search and would return too few rows.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MissingExtra, StoreUnavailable
from mmtune.index.query.filters import And, ColumnPath, Compare, Filter, In, IsNull, Not, Or
from mmtune.index.stores import store_ranking, store_rows
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    from pgvector import Vector
    from psycopg import Connection

T = TypeVar("T")
MAX_FLAT = 20_000
"""Up to this many vectors, "auto" means exact search."""
MAX_GRAPH_DIM = 2000
"""Most dimensions that pgvector's HNSW index supports."""
GRAPH = {"m": 16, "ef_construction": 100}
"""Settings of the HNSW index."""
EF_SEARCH, MAX_EF_SEARCH = 200, 1000
"""Smallest hnsw.ef_search that is used, and the largest that pgvector accepts."""
MAX_IDLE = 8
"""Most idle connections that are kept open."""


def _psycopg() -> ModuleType:
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg
        import psycopg.sql
        import psycopg.types.json
    except ImportError:
        raise MissingExtra('store pgvector needs psycopg and pgvector: pip install "mmtune[pgvector]"') from None
    return psycopg


class _ConnectionPool:
    """A pool of connections to one database. Each running search has its own connection; broken ones are discarded."""

    def __init__(self, url: str, label: str):
        self._url, self._label, self._lock = url, label, threading.Lock()
        self._idle: list[Connection] = []

    @contextlib.contextmanager
    def one(self) -> "Iterator[Connection]":
        """Yields a connection in autocommit mode, with pgvector's type registered."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        finally:
            with self._lock:
                keep = not connection.closed and len(self._idle) < MAX_IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def run(self, work: "Callable[[Connection], T]") -> T:
        """Return `work(connection)`. Retry once on a new connection when the server had closed the idle connection.

        Raises DataError, with the first line of the server's message, for its errors; StoreUnavailable if it cannot be reached.
        """
        psycopg = _psycopg()
        for last in (False, True):
            try:
                with self.one() as connection:
                    return work(connection)
            except psycopg.OperationalError as e:
                if last or not connection.closed:
                    raise StoreUnavailable(f"{self._label}: {_first_line(e)}") from None
                self.close()
            except psycopg.Error as e:
                raise DataError(f"{self._label}: {_first_line(e)}") from None
        raise AssertionError

    def _connect(self) -> "Connection":
        psycopg = _psycopg()
        from pgvector.psycopg import register_vector

        try:
            connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        except psycopg.Error as e:
            raise StoreUnavailable(f"{self._label}: {_first_line(e)}") from None
        try:
            if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.Error as e:
            connection.close()
            raise DataError(
                f"{self._label}: the pgvector extension is not installed in the database, and CREATE EXTENSION vector failed: "
                f"{_first_line(e)}"
            ) from None
        return connection

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class PgvectorStore:
    """Implements `mmtune.index.stores.Store` with PostgreSQL and pgvector."""

    kind = "pgvector"

    def __init__(self, location: StoreLocation, connections: _ConnectionPool, label: str):
        self._location, self._connections, self._label = location, connections, label
        self._table = _psycopg().sql.Identifier(location.name)
        stamp = connections.run(self._stamp)
        self.fingerprint, self.dim = stamp["fingerprint"], stamp["dim"]
        self._index = connections.run(self._built)

    @staticmethod
    def _connect(location: StoreLocation) -> tuple[_ConnectionPool, str]:
        psycopg = _psycopg()
        if not location.url:
            raise DataError("store pgvector needs a url: postgresql://user@host/database")
        try:
            parts = psycopg.conninfo.conninfo_to_dict(location.url)
        except psycopg.Error as e:
            raise DataError(f"store pgvector: the url is not a PostgreSQL connection string: {_first_line(e)}") from None
        where = f"postgresql {parts.get('host', 'localhost')}/{parts.get('dbname', parts.get('user', ''))}"
        label = f"{where} table {store_rows.check_name(location.name)}"
        return _ConnectionPool(location.url, label), label

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "PgvectorStore":
        """Create an empty table that records the fingerprint, in one transaction; an existing table is replaced."""
        connections, label = cls._connect(location)
        sql = _psycopg().sql
        table = sql.Identifier(location.name)

        def work(c: "Connection") -> None:
            with c.transaction():
                c.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
                c.execute(
                    sql.SQL(
                        'CREATE TABLE {} (id varchar COLLATE "C" PRIMARY KEY, '
                        "embedding vector({}) NOT NULL, meta jsonb NOT NULL)"
                    ).format(table, sql.Literal(int(dim)))
                )
                # PLAIN keeps the vector in the row instead of a TOAST table, which makes scans twice as fast. A row must fit
                # into a page of 8 KB, which limits the dimensions.
                if dim <= 1536:
                    c.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(table))
                stamp = sql.Literal(json.dumps(store_rows.stamp(fingerprint, dim)))
                c.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, stamp))

        connections.run(work)
        return cls(location, connections, label)

    @classmethod
    def open(cls, location: StoreLocation) -> "PgvectorStore":
        """Open the table at `location`. Raises DataError when there is no such table, or it records no fingerprint."""
        connections, label = cls._connect(location)
        return cls(location, connections, label)

    def _stamp(self, c: "Connection") -> JsonObject:
        row = c.execute(
            "SELECT obj_description(t.oid, 'pg_class'), (SELECT atttypmod FROM pg_attribute a "
            "WHERE a.attrelid = t.oid AND a.attname = 'embedding') FROM (SELECT to_regclass(%s)::oid AS oid) t",
            (f'"{self._location.name}"',),
        ).fetchone()
        comment, dim = row or (None, None)
        if comment is None and dim is None:
            raise DataError(f"{self._label}: no such table")
        try:
            document = json.loads(comment or "null")
        except json.JSONDecodeError:
            document = None
        return store_rows.read_stamp(document, dim, self._label)

    def _built(self, c: "Connection") -> str:
        return "hnsw" if any(method == "hnsw" for _, method in self._indexes(c)) else "flat"

    def _indexes(self, c: "Connection") -> list[tuple[str, str]]:
        """Return (name, access method) of the indexes that `build` created."""
        return c.execute(
            "SELECT i.relname, m.amname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid "
            "JOIN pg_am m ON m.oid = i.relam WHERE x.indrelid = to_regclass(%s) AND m.amname IN ('hnsw', 'gin')",
            (f'"{self._location.name}"',),
        ).fetchall()

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        ids, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, self._label)
        if not ids:
            return
        psycopg = _psycopg()
        sql, jsonb = psycopg.sql, psycopg.types.json.Jsonb

        def work(c: "Connection") -> None:
            with c.transaction():
                c.execute(sql.SQL("CREATE TEMP TABLE mmtune_new (LIKE {}) ON COMMIT DROP").format(self._table))
                with c.cursor().copy("COPY mmtune_new FROM STDIN WITH (FORMAT BINARY)") as copy:
                    copy.set_types(["varchar", "vector", "jsonb"])
                    for row in zip(ids, vectors_ND, plain, strict=True):
                        copy.write_row((row[0], row[1], jsonb(row[2], dumps=store_rows.document)))
                c.execute(
                    sql.SQL(
                        "INSERT INTO {} SELECT * FROM mmtune_new ORDER BY id "
                        "ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding, meta = excluded.meta"
                    ).format(self._table)
                )

        self._connections.run(work)

    def delete(self, ids: Sequence[str]) -> None:
        known = [i for i in ids if "\0" not in i]
        query = _psycopg().sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table)
        self._connections.run(lambda c: c.execute(query, (known,)))

    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> dict[str, object]:
        store_rows.check_index(index, self._label, search_dim, memory_mb)
        if index == "ivfpq":
            raise DataError(f"{self._label}: pgvector does not support ivfpq; choose index flat or hnsw")
        if index == "hnsw" and self.dim > MAX_GRAPH_DIM:
            raise DataError(
                f"{self._label}: pgvector's hnsw index supports at most {MAX_GRAPH_DIM} dimensions, and these vectors have "
                f"{self.dim}; choose index flat"
            )
        if index == "auto":
            index = "flat" if len(self) <= MAX_FLAT or self.dim > MAX_GRAPH_DIM else "hnsw"
        sql, count = _psycopg().sql, len(self)
        # Memory in bytes for building the HNSW graph: the vectors, links in both directions, and a reserve of 30%.
        memory = min(2**31, max(2**26, int(1.3 * count * (4 * self.dim + 16 * GRAPH["m"] + 200))))

        def work(c: "Connection") -> None:
            with c.transaction():
                old = self._indexes(c)
                c.execute("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory // 1024}kB",))
                c.execute(sql.SQL("CREATE INDEX ON {} USING gin (meta jsonb_path_ops)").format(self._table))
                if index == "hnsw":
                    c.execute(
                        sql.SQL(
                            "CREATE INDEX ON {} USING hnsw (embedding vector_ip_ops) WITH (m = {}, ef_construction = {})"
                        ).format(self._table, *(sql.Literal(v) for v in GRAPH.values()))
                    )
                for name, _ in old:  # done last, because it blocks searches until the end of the transaction
                    c.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
            c.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._table))

        self._connections.run(work)
        self._index = index
        return {"index": index, **(GRAPH if index == "hnsw" else {})}

    def probe(self) -> None:
        """Read one row. Raises StoreUnavailable when the database cannot be reached."""
        self._connections.run(lambda c: c.execute(_psycopg().sql.SQL("SELECT 1 FROM {} LIMIT 1").format(self._table)))

    def compact(self) -> None:
        """Rewrite the table and its indexes without deleted rows. Searches wait until it has finished."""
        query = _psycopg().sql.SQL("VACUUM (FULL, ANALYZE) {}").format(self._table)
        self._connections.run(lambda c: c.execute(query))

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        values: list[object] = []
        condition = None if where is None else _condition(where, values)
        query_QD = store_rows.check_queries(query_QD, self.dim, k, self._label)
        graph = self._index == "hnsw" and where is None

        def propose(query_D: np.ndarray, width: int) -> store_ranking.Candidates:
            return self._propose(query_D, condition, values, graph, width)

        return store_ranking.rank(query_QD, k, propose, MAX_EF_SEARCH if graph else None)

    def _propose(
        self, query_D: np.ndarray, condition: str | None, values: list[object], graph: bool, width: int
    ) -> store_ranking.Candidates:
        sql = _psycopg().sql

        def work(c: "Connection", graph: bool) -> "list[tuple[str, Vector, JsonObject]]":
            # Adding 0 makes the expression differ from the indexed one, so PostgreSQL scans exactly without the HNSW index.
            order = "embedding <#> %s" if graph else "(embedding <#> %s) + 0"
            where = f"WHERE {condition} " if condition else ""
            query = sql.SQL(f"SELECT id, embedding, meta FROM {{}} {where}ORDER BY {order} LIMIT %s").format(self._table)
            return c.execute(query, (*values, query_D, width), binary=True).fetchall()

        def through_graph(c: "Connection") -> "list[tuple[str, Vector, JsonObject]]":
            with c.transaction():
                c.execute(
                    "SELECT set_config('hnsw.ef_search', %s, true)", (str(min(MAX_EF_SEARCH, max(EF_SEARCH, 2 * width))),)
                )
                return work(c, True)

        rows = self._connections.run(through_graph) if graph and width <= MAX_EF_SEARCH else []
        if len(rows) < width:
            rows = self._connections.run(lambda c: work(c, False))
        vectors = np.array([v.to_numpy() for _, v, _ in rows], np.float32).reshape(-1, self.dim)
        return store_ranking.Candidates([i for i, _, _ in rows], vectors, [m for _, _, m in rows])

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        query = _psycopg().sql.SQL("SELECT id, embedding FROM {} WHERE id = ANY(%s)").format(self._table)
        known = [i for i in ids if "\0" not in i]
        rows = self._connections.run(lambda c: c.execute(query, (known,), binary=True).fetchall())
        return store_rows.stack_in_order(ids, {id: v.to_numpy() for id, v in rows}, self.dim, self._label)

    def ids(self) -> list[str]:
        query = _psycopg().sql.SQL("SELECT id FROM {}").format(self._table)
        return [i for (i,) in self._connections.run(lambda c: c.execute(query).fetchall())]

    def __len__(self) -> int:
        query = _psycopg().sql.SQL("SELECT count(*) FROM {}").format(self._table)
        return self._connections.run(lambda c: c.execute(query).fetchall())[0][0]

    def size(self) -> int:
        query = "SELECT pg_total_relation_size(to_regclass(%s))"
        rows = self._connections.run(lambda c: c.execute(query, (f'"{self._location.name}"',)).fetchall())
        return int(rows[0][0] or 0)

    def drop(self) -> None:
        query = _psycopg().sql.SQL("DROP TABLE IF EXISTS {}").format(self._table)
        self._connections.run(lambda c: c.execute(query))

    def close(self) -> None:
        self._connections.close()


def _condition(f: Filter, values: list[object]) -> str:
    """Translate a filter to an SQL condition that is never null.

    Everything that comes from the caller is appended to `values`, in the order of the %s placeholders.
    """
    match f:
        case Not(term):
            return f"(NOT {_condition(term, values)})"
        case And(terms):
            return "(" + " AND ".join([_condition(t, values) for t in terms]) + ")"
        case Or(terms):
            return "(" + " OR ".join([_condition(t, values) for t in terms]) + ")"
        case IsNull(path):
            return f"(coalesce(jsonb_typeof({_value(path, values)}), 'null') = 'null')"
        case Compare(path, op, value) if isinstance(value, str):
            typed = f"jsonb_typeof({_value(path, values)}) = 'string'"
            test = f'({_value(path, values, "->>")}) COLLATE "C" {op} %s'
            values.append(value)
            return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
        case Compare(path, op, value):
            return _number(path, op, [float(value)], values)
        case In(path, options):
            tests = []
            numbers = [v for v in options if isinstance(v, float) and abs(v) >= 2**53]
            if numbers:  # from 2**53 on, float64 and jsonb's decimal numbers can differ, so compare as float64
                tests.append(_number(path, "= ANY", [float(v) for v in numbers], values))
            for v in options:
                if v not in numbers:  # containment (@>) uses the index on meta
                    values.append(store_rows.document(_nested(path, v)))
                    tests.append("meta @> %s::jsonb")
            return "(" + " OR ".join(tests) + ")"
    raise TypeError(type(f))


def _nested(path: ColumnPath, value: object) -> JsonObject:
    """Return nested dicts for a path: {"a": {"b": value}} for the path a.b."""
    *parents, last = path
    document: JsonObject = {last: value}
    for key in reversed(parents):  # a loop, not recursion: a path may have thousands of keys
        document = {key: document}
    return document


def _value(path: ColumnPath, values: list[object], last: str = "->") -> str:
    """Return the SQL expression for the value at a path; it is null where a key is missing.

    The keys are compared as strings, so that none of them indexes into a list.

    last: the operator of the last step: "->" for jsonb, "->>" for text.
    """
    values.extend(path)
    return "meta" + " -> %s::varchar" * (len(path) - 1) + f" {last} %s::varchar"


def _number(path: ColumnPath, op: str, numbers: list[float], values: list[object]) -> str:
    typed = f"jsonb_typeof({_value(path, values)}) = 'number'"
    test = f"({_value(path, values, '->>')})::float8 {op} {'(%s::float8[])' if op == '= ANY' else '%s::float8'}"
    values.append(numbers if op == "= ANY" else numbers[0])
    return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
