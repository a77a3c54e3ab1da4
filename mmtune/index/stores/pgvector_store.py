"""Store vectors in PostgreSQL with pgvector: one table (id, embedding, meta jsonb) per (collection, version, modality).

The fingerprint is recorded in the table's comment. The url is a libpq connection string (`postgresql://user@host/db` or
`host=... dbname=...`), to which options of mmtune may be added (see `pgvector_connections.PgOptions`: schema, read replica, pool,
halfvec); put passwords into PGPASSWORD, ~/.pgpass or a service file. Every write is one transaction. Each version has a table and
so an index of its own, which a partial index over a shared table would imitate.

A search without a filter uses the HNSW index if there is one. A search with a filter scans all matching rows exactly, because
pgvector applies the filter after the HNSW search and would return too few rows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, first_line
from mmtune.index.query.filters import Filter
from mmtune.index.stores import store_ranking, store_rows
from mmtune.index.stores.pgvector_connections import (
    ConnectionPool,
    PgOptions,
    Replica,
    parse_options,
    psycopg_modules,
)
from mmtune.index.stores.pgvector_filters import condition
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    from pgvector import Vector
    from psycopg import Connection
    from psycopg.sql import Identifier

T = TypeVar("T")
MAX_FLAT = 20_000
"""Up to this many vectors, "auto" means exact search."""
MAX_GRAPH_DIM, MAX_HALFVEC_DIM = 2000, 4000
"""Most dimensions that pgvector's HNSW index supports, with 32-bit and with 16-bit floats."""
GRAPH = {"m": 16, "ef_construction": 100}
"""Settings of the HNSW index."""
EF_SEARCH, MAX_EF_SEARCH = 200, 1000
"""Smallest hnsw.ef_search that is used, and the largest that pgvector accepts."""


class PgvectorStore:
    """Implements `mmtune.index.stores.Store` with PostgreSQL and pgvector."""

    kind = "pgvector"

    def __init__(self, location: StoreLocation, connections: ConnectionPool, options: PgOptions, label: str):
        self._location, self._connections, self._options, self._label = location, connections, options, label
        names = [options.schema, location.name] if options.schema else [location.name]
        self._table, self._regclass = psycopg_modules().sql.Identifier(*names), ".".join(f'"{n}"' for n in names)
        self._replica = Replica(options, connections, label) if options.replica else None
        stamp = connections.run(self._stamp)
        self.fingerprint, self.dim = stamp["fingerprint"], stamp["dim"]
        self._index, self._halfvec = connections.run(self._built)

    @staticmethod
    def _connect(location: StoreLocation) -> tuple[ConnectionPool, PgOptions, str]:
        psycopg = psycopg_modules()
        if not location.url:
            raise DataError("store pgvector needs a url: postgresql://user@host/database")
        options = parse_options(location.url)
        try:
            parts = psycopg.conninfo.conninfo_to_dict(options.url)
        except psycopg.Error as e:
            raise DataError(f"store pgvector: the url is not a PostgreSQL connection string: {first_line(e)}") from None
        where = f"postgresql {parts.get('host', 'localhost')}/{parts.get('dbname', parts.get('user', ''))}"
        label = f"{where} table {store_rows.check_name(location.name)}"
        return ConnectionPool(options.url, label, options.pool), options, label

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "PgvectorStore":
        """Create an empty table that records the fingerprint, in one transaction; an existing table is replaced."""
        connections, options, label = cls._connect(location)
        sql = psycopg_modules().sql
        table = sql.Identifier(*([options.schema] if options.schema else []), location.name)

        def work(c: "Connection") -> None:
            with c.transaction():
                if options.schema:
                    c.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(options.schema)))
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
        return cls(location, connections, options, label)

    @classmethod
    def open(cls, location: StoreLocation) -> "PgvectorStore":
        """Open the table at `location`. Raises DataError when there is no such table, or it records no fingerprint."""
        connections, options, label = cls._connect(location)
        return cls(location, connections, options, label)

    def _stamp(self, c: "Connection") -> JsonObject:
        row = c.execute(
            "SELECT obj_description(t.oid, 'pg_class'), (SELECT atttypmod FROM pg_attribute a "
            "WHERE a.attrelid = t.oid AND a.attname = 'embedding') FROM (SELECT to_regclass(%s)::oid AS oid) t",
            (self._regclass,),
        ).fetchone()
        comment, dim = row or (None, None)
        if comment is None and dim is None:
            raise DataError(f"{self._label}: no such table")
        try:
            document = json.loads(comment or "null")
        except json.JSONDecodeError:
            document = None
        return store_rows.read_stamp(document, dim, self._label)

    def _built(self, c: "Connection") -> tuple[str, bool]:
        """Return (index type, whether it holds 16-bit floats) of the index that searches use."""
        graphs = [definition for _, method, definition, valid in self._indexes(c) if method == "hnsw" and valid]
        return ("hnsw", "halfvec" in graphs[0]) if graphs else ("flat", False)

    def _indexes(self, c: "Connection") -> list[tuple[str, str, str, bool]]:
        """Return (name, access method, definition, whether it is complete) of the indexes that `build` created."""
        return c.execute(
            "SELECT i.relname, m.amname, pg_get_indexdef(i.oid), x.indisvalid FROM pg_index x "
            "JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam "
            "WHERE x.indrelid = to_regclass(%s) AND m.amname IN ('hnsw', 'gin')",
            (self._regclass,),
        ).fetchall()

    def _write(self, work: "Callable[[Connection], T]") -> T:
        done = self._connections.run(work)
        if self._replica:
            self._replica.wrote()
        return done

    def _read(self, work: "Callable[[Connection], T]") -> T:
        return self._replica.run(work) if self._replica else self._connections.run(work)

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        ids, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, self._label)
        if not ids:
            return
        psycopg = psycopg_modules()
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

        self._write(work)

    def delete(self, ids: Sequence[str]) -> None:
        known = [i for i in ids if "\0" not in i]
        query = psycopg_modules().sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table)
        self._write(lambda c: c.execute(query, (known,)))

    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> dict[str, object]:
        store_rows.check_index(index, self._label, search_dim, memory_mb)
        if index == "ivfpq":
            raise DataError(f"{self._label}: pgvector does not support ivfpq; choose index flat or hnsw")
        half = self._options.halfvec
        most = MAX_HALFVEC_DIM if half else MAX_GRAPH_DIM
        if index == "hnsw" and self.dim > most:
            raise DataError(
                f"{self._label}: pgvector's hnsw index supports at most {most} dimensions, and these vectors have {self.dim}; choose "
                f"index flat{'' if half else f', or mmtune_halfvec=1 in the url for up to {MAX_HALFVEC_DIM}'}"
            )
        if half and not self._connections.run(lambda c: c.execute("SELECT to_regtype('halfvec') IS NOT NULL").fetchall())[0][0]:
            raise DataError(
                f"{self._label}: mmtune_halfvec=1 needs pgvector 0.7 on the server; update it, or leave the option out"
            )
        if index == "auto":
            index = "flat" if len(self) <= MAX_FLAT or self.dim > most else "hnsw"
        sql, count = psycopg_modules().sql, len(self)
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
                            f"CREATE INDEX ON {{}} USING hnsw ({self._indexed(half)}) WITH (m = {{}}, ef_construction = {{}})"
                        ).format(self._table, *(sql.Literal(v) for v in GRAPH.values()))
                    )
                for name, *_ in old:  # done last, because it blocks searches until the end of the transaction
                    c.execute(sql.SQL("DROP INDEX {}").format(self._in_schema(name)))
            c.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._table))

        self._write(work)
        self._index, self._halfvec = index, half
        return {"index": index, **(GRAPH if index == "hnsw" else {}), **({"halfvec": True} if half and index == "hnsw" else {})}

    def _indexed(self, half: bool) -> str:
        return f"(embedding::halfvec({int(self.dim)})) halfvec_ip_ops" if half else "embedding vector_ip_ops"

    def _in_schema(self, name: str) -> "Identifier":
        return psycopg_modules().sql.Identifier(*([self._options.schema] if self._options.schema else []), name)

    def probe(self) -> None:
        """Read one row. Raises StoreUnavailable when the database cannot be reached."""
        self._read(lambda c: c.execute(psycopg_modules().sql.SQL("SELECT 1 FROM {} LIMIT 1").format(self._table)))

    def compact(self) -> None:
        """Rewrite the table and its indexes without deleted rows. Searches wait until it has finished."""
        query = psycopg_modules().sql.SQL("VACUUM (FULL, ANALYZE) {}").format(self._table)
        self._write(lambda c: c.execute(query))

    def reclaim(self) -> str:
        """Make the space of deleted and replaced rows usable again and build the indexes again, while searches go on.

        An index that an interrupted call left incomplete is dropped first.
        """
        sql = psycopg_modules().sql

        def work(c: "Connection") -> int:
            for name, *_, valid in self._indexes(c):
                if not valid:
                    c.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(self._in_schema(name)))
            c.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._table))
            indexes = self._indexes(c)
            for name, *_ in indexes:
                c.execute(sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(self._in_schema(name)))
            return len(indexes)

        count = self._write(work)
        return f"VACUUM and REINDEX CONCURRENTLY of {count} indexes; freed pages are used again, --full gives them back to the disk"

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        values: list[object] = []
        test = None if where is None else condition(where, values)
        query_QD = store_rows.check_queries(query_QD, self.dim, k, self._label)
        graph = self._index == "hnsw" and where is None

        def propose(query_D: np.ndarray, width: int) -> store_ranking.Candidates:
            return self._propose(query_D, test, values, graph, width)

        return store_ranking.rank(query_QD, k, propose, MAX_EF_SEARCH if graph else None)

    def _propose(
        self, query_D: np.ndarray, test: str | None, values: list[object], graph: bool, width: int
    ) -> store_ranking.Candidates:
        sql = psycopg_modules().sql

        def work(c: "Connection", graph: bool) -> "list[tuple[str, Vector, JsonObject]]":
            # Adding 0 makes the expression differ from the indexed one, so PostgreSQL scans exactly without the HNSW index.
            half = f"::halfvec({int(self.dim)})" if self._halfvec else ""
            order = f"embedding{half} <#> %s{half}" if graph else "(embedding <#> %s) + 0"
            where = f"WHERE {test} " if test else ""
            query = sql.SQL(f"SELECT id, embedding, meta FROM {{}} {where}ORDER BY {order} LIMIT %s").format(self._table)
            return c.execute(query, (*values, query_D, width), binary=True).fetchall()

        def through_graph(c: "Connection") -> "list[tuple[str, Vector, JsonObject]]":
            with c.transaction():
                c.execute(
                    "SELECT set_config('hnsw.ef_search', %s, true)", (str(min(MAX_EF_SEARCH, max(EF_SEARCH, 2 * width))),)
                )
                return work(c, True)

        rows = self._read(through_graph) if graph and width <= MAX_EF_SEARCH else []
        if len(rows) < width:
            rows = self._read(lambda c: work(c, False))
        vectors = np.array([v.to_numpy() for _, v, _ in rows], np.float32).reshape(-1, self.dim)
        return store_ranking.Candidates([i for i, _, _ in rows], vectors, [m for _, _, m in rows])

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        query = psycopg_modules().sql.SQL("SELECT id, embedding FROM {} WHERE id = ANY(%s)").format(self._table)
        known = [i for i in ids if "\0" not in i]
        rows = self._connections.run(lambda c: c.execute(query, (known,), binary=True).fetchall())
        return store_rows.stack_in_order(ids, {id: v.to_numpy() for id, v in rows}, self.dim, self._label)

    def ids(self) -> list[str]:
        query = psycopg_modules().sql.SQL("SELECT id FROM {}").format(self._table)
        return [i for (i,) in self._connections.run(lambda c: c.execute(query).fetchall())]

    def __len__(self) -> int:
        query = psycopg_modules().sql.SQL("SELECT count(*) FROM {}").format(self._table)
        return self._connections.run(lambda c: c.execute(query).fetchall())[0][0]

    def size(self) -> int:
        query = "SELECT pg_total_relation_size(to_regclass(%s))"
        rows = self._connections.run(lambda c: c.execute(query, (self._regclass,)).fetchall())
        return int(rows[0][0] or 0)

    def drop(self) -> None:
        query = psycopg_modules().sql.SQL("DROP TABLE IF EXISTS {}").format(self._table)
        self._connections.run(lambda c: c.execute(query))

    def close(self) -> None:
        self._connections.close()
        if self._replica:
            self._replica.close()
