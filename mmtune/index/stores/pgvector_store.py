"""PostgreSQL with pgvector: one table a (collection, version, modality): id, embedding, meta (jsonb); the stamp is its comment.

`url` is a libpq connection string (`postgresql://user@host/db` or `host=... dbname=...`); passwords belong into PGPASSWORD,
~/.pgpass or a service file. Every write is one transaction. With a filter the admitted rows are scanned exactly
(pgvector's graph filters after it searched, and would lose rows); without one the graph answers where it was built.
"""

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmtune.errors import DataError, MissingExtra
from mmtune.index.protocols import INDEXES, Hit, StoreLocation
from mmtune.index.query.filters import All, AnyOf, Filter, In, IsNull, Not, Order, Path, kind
from mmtune.index.stores import store_ranking, store_rows

FLAT_UP_TO = 20_000
"""Vectors that "auto" leaves to exact search."""

WIDEST = 2000
"""pgvector's graph takes vectors of at most this many dims."""

GRAPH = {"m": 16, "ef_construction": 100}
EF, MOST_EF = 200, 1000
IDLE = 8


def _psycopg() -> Any:
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg
        import psycopg.sql
        import psycopg.types.json
    except ImportError:
        raise MissingExtra('store pgvector needs psycopg and pgvector: pip install "mmtune[pgvector]"') from None
    return psycopg


class _Connections:
    """Connections of one database, one a search under way; a broken one is not used again."""

    def __init__(self, url: str, label: str):
        self._url, self._label, self._lock = url, label, threading.Lock()
        self._idle: list[Any] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[Any]:
        """A connection in autocommit mode with pgvector's type."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        finally:
            with self._lock:
                keep = not connection.closed and len(self._idle) < IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def run(self, work: Callable[[Any], Any]) -> Any:
        """`work(connection)`, once more on a new connection when the server has dropped the idle one meanwhile."""
        psycopg = _psycopg()
        for last in (False, True):
            try:
                with self.one() as connection:
                    return work(connection)
            except psycopg.OperationalError as e:
                if last or not connection.closed:
                    raise DataError(f"{self._label}: {_line(e)}") from None
                self.close()
            except psycopg.Error as e:
                raise DataError(f"{self._label}: {_line(e)}") from None
        raise AssertionError

    def _connect(self) -> Any:
        psycopg = _psycopg()
        from pgvector.psycopg import register_vector

        try:
            connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        except psycopg.Error as e:
            raise DataError(f"{self._label}: {_line(e)}") from None
        try:
            if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.Error as e:
            connection.close()
            raise DataError(f"{self._label}: the database lacks pgvector; CREATE EXTENSION vector failed: {_line(e)}") from None
        return connection

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class PgvectorStore:
    """See `contracts.Store`."""

    kind = "pgvector"

    def __init__(self, place: StoreLocation, connections: _Connections, label: str):
        self._place, self._connections, self._label = place, connections, label
        self._table = _psycopg().sql.Identifier(place.name)
        stamp = connections.run(self._stamp)
        self.fingerprint, self.dim = stamp["fingerprint"], stamp["dim"]
        self._index = connections.run(self._built)

    @staticmethod
    def _connect(place: StoreLocation) -> tuple[_Connections, str]:
        psycopg = _psycopg()
        if not place.url:
            raise DataError("store pgvector needs a url: postgresql://user@host/database")
        try:
            parts = psycopg.conninfo.conninfo_to_dict(place.url)
        except psycopg.Error as e:
            raise DataError(f"store pgvector: the url is no connection string: {_line(e)}") from None
        where = f"postgresql {parts.get('host', 'localhost')}/{parts.get('dbname', parts.get('user', ''))}"
        label = f"{where} table {store_rows.check_name(place.name)}"
        return _Connections(place.url, label), label

    @classmethod
    def create(cls, place: StoreLocation, dim: int, fingerprint: str) -> "PgvectorStore":
        """An empty table, stamped, in one transaction; what lay there before is replaced."""
        connections, label = cls._connect(place)
        sql = _psycopg().sql
        table = sql.Identifier(place.name)

        def work(c: Any) -> None:
            with c.transaction():
                c.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
                c.execute(
                    sql.SQL(
                        'CREATE TABLE {} (id varchar COLLATE "C" PRIMARY KEY, '
                        "embedding vector({}) NOT NULL, meta jsonb NOT NULL)"
                    ).format(table, sql.Literal(int(dim)))
                )
                if dim <= 1536:  # in the row itself, not beside it: a scan is then twice as fast
                    c.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(table))
                stamp = sql.Literal(json.dumps(store_rows.stamp(fingerprint, dim)))
                c.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, stamp))

        connections.run(work)
        return cls(place, connections, label)

    @classmethod
    def open(cls, place: StoreLocation) -> "PgvectorStore":
        """The table that lies there. DataError when there is none or it carries no stamp."""
        connections, label = cls._connect(place)
        return cls(place, connections, label)

    def _stamp(self, c: Any) -> dict[str, Any]:
        row = c.execute(
            "SELECT obj_description(t.oid, 'pg_class'), (SELECT atttypmod FROM pg_attribute a "
            "WHERE a.attrelid = t.oid AND a.attname = 'embedding') FROM (SELECT to_regclass(%s)::oid AS oid) t",
            (f'"{self._place.name}"',),
        ).fetchone()
        if row == (None, None):
            raise DataError(f"{self._label}: no such table")
        try:
            found = json.loads(row[0] or "null")
        except json.JSONDecodeError:
            found = None
        return store_rows.read_stamp(found, row[1], self._label)

    def _built(self, c: Any) -> str:
        return "hnsw" if any(method == "hnsw" for _, method in self._indexes(c)) else "flat"

    def _indexes(self, c: Any) -> list[tuple[str, str]]:
        """(name, method) of what `build` made."""
        return c.execute(
            "SELECT i.relname, m.amname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid "
            "JOIN pg_am m ON m.oid = i.relam WHERE x.indrelid = to_regclass(%s) AND m.amname IN ('hnsw', 'gin')",
            (f'"{self._place.name}"',),
        ).fetchall()

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, Any]]) -> None:
        ids, vectors_ND, meta = store_rows.checked(ids, vectors_ND, meta, self.dim, self._label)
        if not ids:
            return
        psycopg = _psycopg()
        sql, jsonb = psycopg.sql, psycopg.types.json.Jsonb

        def work(c: Any) -> None:
            with c.transaction():
                c.execute(sql.SQL("CREATE TEMP TABLE mmtune_new (LIKE {}) ON COMMIT DROP").format(self._table))
                with c.cursor().copy("COPY mmtune_new FROM STDIN WITH (FORMAT BINARY)") as copy:
                    copy.set_types(["varchar", "vector", "jsonb"])
                    for row in zip(ids, vectors_ND, meta, strict=True):
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

    def build(self, index: str = "auto") -> dict[str, Any]:
        if index not in INDEXES:
            raise DataError(f"{self._label}: no index {index!r}; there are {', '.join(INDEXES)}")
        if index == "ivfpq":
            raise DataError(f"{self._label}: pgvector has no product quantisation; index flat or hnsw")
        if index == "hnsw" and self.dim > WIDEST:
            raise DataError(f"{self._label}: pgvector's graph takes {WIDEST} dims at most, these are {self.dim}; index flat")
        if index == "auto":
            index = "flat" if len(self) <= FLAT_UP_TO or self.dim > WIDEST else "hnsw"
        sql, count = _psycopg().sql, len(self)
        # the graph in memory while it is made: vectors, links both ways, and some
        memory = min(2**31, max(2**26, int(1.3 * count * (4 * self.dim + 16 * GRAPH["m"] + 200))))

        def work(c: Any) -> None:
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
                for name, _ in old:  # last: it locks searches out, for as long as the transaction goes on
                    c.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
            c.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._table))

        self._connections.run(work)
        self._index = index
        return {"index": index} | (GRAPH if index == "hnsw" else {})

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        values: list[Any] = []
        condition = None if where is None else _condition(where, values)
        query_QD = store_rows.queries(query_QD, self.dim, k, self._label)
        graph = self._index == "hnsw" and where is None
        widest = MOST_EF if graph else None
        return [
            store_ranking.best(q, k, functools.partial(self._propose, q, condition, values, graph), dict, widest)
            for q in query_QD
        ]

    def _propose(
        self, query_D: np.ndarray, condition: str | None, values: list[Any], graph: bool, width: int
    ) -> store_ranking.Proposals:
        sql = _psycopg().sql

        def work(c: Any, graph: bool) -> list[tuple[str, Any, dict[str, Any]]]:
            order = "embedding <#> %s" if graph else "(embedding <#> %s) + 0"  # a sum is not what the graph is ordered by
            where = f"WHERE {condition} " if condition else ""
            query = sql.SQL(f"SELECT id, embedding, meta FROM {{}} {where}ORDER BY {order} LIMIT %s").format(self._table)
            return c.execute(query, (*values, query_D, width), binary=True).fetchall()

        def through_graph(c: Any) -> list[tuple[str, Any, dict[str, Any]]]:
            with c.transaction():
                c.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(min(MOST_EF, max(EF, 2 * width))),))
                return work(c, True)

        found = self._connections.run(through_graph) if graph and width <= MOST_EF else []
        if len(found) < width:
            found = self._connections.run(lambda c: work(c, False))
        vectors = np.array([v.to_numpy() for _, v, _ in found], np.float32).reshape(-1, self.dim)
        return [i for i, _, _ in found], vectors, [m for _, _, m in found]

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        query = _psycopg().sql.SQL("SELECT id, embedding FROM {} WHERE id = ANY(%s)").format(self._table)
        known = [i for i in ids if "\0" not in i]
        found = dict(self._connections.run(lambda c: c.execute(query, (known,), binary=True).fetchall()))
        missing = [i for i in ids if i not in found]
        if missing:
            raise DataError(f"{self._label}: no id {missing[0]!r} ({len(missing)} of {len(ids)} missing)")
        return np.array([found[i].to_numpy() for i in ids], np.float32).reshape(-1, self.dim)

    def ids(self) -> list[str]:
        query = _psycopg().sql.SQL("SELECT id FROM {}").format(self._table)
        return [i for (i,) in self._connections.run(lambda c: c.execute(query).fetchall())]

    def __len__(self) -> int:
        query = _psycopg().sql.SQL("SELECT count(*) FROM {}").format(self._table)
        return self._connections.run(lambda c: c.execute(query).fetchone()[0])

    def size(self) -> int:
        query = "SELECT pg_total_relation_size(to_regclass(%s))"
        return int(self._connections.run(lambda c: c.execute(query, (f'"{self._place.name}"',)).fetchone()[0]) or 0)

    def drop(self) -> None:
        query = _psycopg().sql.SQL("DROP TABLE IF EXISTS {}").format(self._table)
        self._connections.run(lambda c: c.execute(query))

    def close(self) -> None:
        self._connections.close()


def _condition(f: Filter, values: list[Any]) -> str:
    """A filter as SQL of two truth values; everything that came from a caller goes to `values`, in the order of the %s."""
    match f:
        case Not(term):
            return f"(NOT {_condition(term, values)})"
        case All(terms):
            return "(" + " AND ".join([_condition(t, values) for t in terms]) + ")"
        case AnyOf(terms):
            return "(" + " OR ".join([_condition(t, values) for t in terms]) + ")"
        case IsNull(path):
            return f"(coalesce(jsonb_typeof({_value(path, values)}), 'null') = 'null')"
        case Order(path, op, value) if isinstance(value, str):
            typed = f"jsonb_typeof({_value(path, values)}) = 'string'"
            test = f'({_value(path, values, "->>")}) COLLATE "C" {op} %s'
            values.append(value)
            return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
        case Order(path, op, value):
            return _number(path, op, [float(value)], values)
        case In(path, options):
            tests = []
            numbers = [v for v in options if kind(v) == "n" and abs(v) >= 2**53]  # type: ignore[arg-type]
            if numbers:  # where float64 and decimals part
                tests.append(_number(path, "= ANY", [float(v) for v in numbers], values))
            for v in options:
                if v not in numbers:  # containment: the index on meta answers it
                    values.append(store_rows.document(_nested(path, v)))
                    tests.append("meta @> %s::jsonb")
            return "(" + " OR ".join(tests) + ")"
    raise TypeError(type(f))


def _nested(path: Path, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for the path a.b."""
    for key in reversed(path):
        value = {key: value}
    return value


def _value(path: Path, values: list[Any], last: str = "->") -> str:
    """The jsonb at a path (its words with `->>`); null where a key is missing. Keys are words: none steps into a list."""
    values.extend(path)
    return "meta" + " -> %s::varchar" * (len(path) - 1) + f" {last} %s::varchar"


def _number(path: Path, op: str, numbers: list[float], values: list[Any]) -> str:
    typed = f"jsonb_typeof({_value(path, values)}) = 'number'"
    test = f"({_value(path, values, '->>')})::float8 {op} {'(%s::float8[])' if op == '= ANY' else '%s::float8'}"
    values.append(numbers if op == "= ANY" else numbers[0])
    return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
