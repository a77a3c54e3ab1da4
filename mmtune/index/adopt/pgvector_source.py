"""Read ids, vectors and payloads of a PostgreSQL table with pgvector that other software wrote."""

import json
from collections.abc import Iterator

from mmtune.errors import DataError, MissingExtra, StoreUnavailable, first_line
from mmtune.index.adopt.vector_sources import BATCH, VectorRows, usable_rows
from mmtune.index.stores.pgvector_connections import parse_options

TYPES = ("vector", "halfvec")
COLUMNS = (
    "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
    "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)


class PgvectorSource:
    """Implements `VectorSource`.

    url: connection string of PostgreSQL
    table: name of the table or view, also "schema.table"
    vector: column of type vector or halfvec; default: the only one
    id: column with the ids; default: the primary key, or "id"
    """

    kind = "pgvector"

    def __init__(self, url: str, table: str, vector: str | None, id: str | None):
        try:
            import psycopg
        except ImportError:
            raise MissingExtra('adopting from pgvector needs psycopg and pgvector: pip install "mmtune[pgvector]"') from None
        self._psycopg, self._table, self._vector, self._id = psycopg, table, vector, id
        self._url = parse_options(url).url
        self.label, self.skipped = f"table {table}", dict[str, int]()

    def rows(self) -> Iterator[VectorRows]:
        psycopg, sql = self._psycopg, self._psycopg.sql
        self.skipped.clear()
        try:
            with psycopg.connect(self._url, connect_timeout=10) as connection:
                connection.read_only = True
                vector, id = self._columns(connection)
                query = sql.SQL("SELECT t.{id}::text, t.{vector}::text, to_jsonb(t) - {name}::text FROM {table} t").format(
                    id=sql.Identifier(id),
                    vector=sql.Identifier(vector),
                    name=sql.Literal(vector),
                    table=sql.Identifier(*self._table.split(".")),
                )
                dim: int | None = None
                with connection.cursor(name="mmtune_adopt") as cursor:  # on the server, so that memory is bounded
                    cursor.itersize = BATCH
                    cursor.execute(query)
                    while batch := cursor.fetchmany(BATCH):
                        vectors = [None if v is None else json.loads(v) for _, v, _ in batch]
                        rows = usable_rows([i for i, _, _ in batch], vectors, [p for _, _, p in batch], dim, self.skipped)
                        dim = rows.vectors.shape[1] or dim
                        yield rows
        except psycopg.OperationalError as e:
            raise StoreUnavailable(f"{self.label}: {first_line(e)}") from None
        except psycopg.Error as e:
            raise DataError(f"{self.label}: {first_line(e)}") from None

    def _columns(self, connection: "object") -> tuple[str, str]:
        """Return the names of the columns of vectors and ids."""
        execute = connection.execute  # type: ignore[attr-defined]
        quoted = self._psycopg.sql.Identifier(*self._table.split(".")).as_string(None)
        columns = dict(execute(COLUMNS, (quoted,)).fetchall())
        if not columns:
            raise DataError(f"{self.label}: no such table in this database; write SCHEMA.TABLE for another schema than public")
        vectors = [c for c, kind in columns.items() if kind in TYPES]
        vector = self._vector or (vectors[0] if len(vectors) == 1 else None)
        if vector not in vectors:
            found = ", ".join(vectors) or "none"
            raise DataError(
                f"{self.label}: name its column of vectors with --vector; columns of type vector or halfvec: {found}"
            )
        key = "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
        keys = [k for (k,) in execute(f"{key} WHERE i.indrelid = to_regclass(%s) AND i.indisprimary", (quoted,)).fetchall()]
        id = self._id or (keys[0] if len(keys) == 1 else "id")
        if id not in columns:
            raise DataError(f"{self.label}: name its column of ids with --id; its columns: {', '.join(columns)}")
        return str(vector), str(id)
