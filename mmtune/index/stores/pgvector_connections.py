"""Connections of the pgvector store: a bounded pool for the primary server, one for a read replica, and the options in the URL.

Options stand in the connection string beside those of libpq, e.g. `postgresql://user@host/db?mmtune_schema=shop&mmtune_pool=32`
or `host=... dbname=... mmtune_schema=shop`; see `PgOptions`.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from mmtune.errors import DataError, MissingExtra, StoreUnavailable, first_line
from mmtune.index.collection_layout import resolve_url
from mmtune.index.stores.url_options import split_options

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")
MAX_IDLE = 8
"""Most idle connections that are kept open."""
WAIT_SECONDS = 10.0
"""How long to wait for a connection when all of the pool are in use, and for the server when connecting."""
RETRY_SECONDS = 5.0
"""A replica that was down is tried again after this time."""
CHECK_SECONDS = 1.0
"""How long a replica counts as up to date after it was asked."""


def psycopg_modules() -> ModuleType:
    """Import psycopg with pgvector's types. Raises MissingExtra."""
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg
        import psycopg.sql
        import psycopg.types.json
    except ImportError:
        raise MissingExtra('store pgvector needs psycopg and pgvector: pip install "mmtune[pgvector]"') from None
    return psycopg


@dataclass(frozen=True, slots=True)
class PgOptions:
    """The options of mmtune in a connection string.

    url: the connection string without them, for libpq.
    schema: schema of the tables; created if it is missing. None means the first one of the connection's search_path.
    replica: connection string of a read replica, or `env:NAME`. Searches use it, unless it is down or behind.
    max_lag: seconds that the replica may be behind the primary server.
    halfvec: whether an HNSW index holds 16-bit floats: half the memory and disk. The vectors themselves stay 32-bit floats.
    pool: most connections of one store.
    """

    url: str
    schema: str | None = None
    replica: str | None = None
    max_lag: float = 10.0
    halfvec: bool = False
    pool: int = 16


def parse_options(url: str) -> PgOptions:
    """Split a connection string into mmtune's options and libpq's part. Raises DataError for an unknown or invalid option."""
    known = ("schema", "replica", "max_lag", "halfvec", "pool")
    rest, found = split_options(url, known, "pgvector", query="://" in url)
    schema = found.get("schema")
    if schema is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", schema):
        raise DataError(
            f"store pgvector: mmtune_schema={schema[:80]!r}: must be letters, digits and _, and not begin with a digit"
        )
    try:
        max_lag, pool = float(found.get("max_lag", 10)), int(found.get("pool", 16))
    except ValueError:
        raise DataError("store pgvector: mmtune_max_lag (seconds) and mmtune_pool (connections) must be numbers") from None
    if pool < 1 or not max_lag > 0:
        raise DataError("store pgvector: mmtune_pool must be at least 1, and mmtune_max_lag more than 0")
    halfvec = found.get("halfvec", "0").lower()
    if halfvec not in ("0", "1", "false", "true"):
        raise DataError(f"store pgvector: mmtune_halfvec={halfvec!r}: must be 0 or 1")
    return PgOptions(rest, schema, found.get("replica"), max_lag, halfvec in ("1", "true"), pool)


class ConnectionPool:
    """A bounded pool of connections to one server. Each running search has its own connection; broken ones are discarded.

    label: name of the server and table in error messages.
    size: most connections. A thread that needs one more waits for WAIT_SECONDS, then gets StoreUnavailable.
    writes: whether the server is the primary one.
    """

    def __init__(self, url: str, label: str, size: int, writes: bool = True):
        self._url, self._label, self._lock, self._writes = url, label, threading.Lock(), writes
        self._size, self._places = size, threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []

    @contextlib.contextmanager
    def one(self) -> "Iterator[Connection]":
        """Yields a connection in autocommit mode, with pgvector's type registered."""
        if not self._places.acquire(timeout=WAIT_SECONDS):
            raise StoreUnavailable(
                f"{self._label}: all {self._size} connections are in use for {WAIT_SECONDS:g} s; allow more with mmtune_pool=N in "
                "the url"
            )
        try:
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
        finally:
            self._places.release()

    def run(self, work: "Callable[[Connection], T]") -> T:
        """Return `work(connection)`. Retry once on a new connection when the server had closed the idle connection.

        Raises DataError, with the first line of the server's message, for its errors; StoreUnavailable if it cannot be reached.
        """
        psycopg = psycopg_modules()
        for last in (False, True):
            try:
                with self.one() as connection:
                    return work(connection)
            except psycopg.OperationalError as e:
                if last or not connection.closed:
                    raise StoreUnavailable(f"{self._label}: {first_line(e)}") from None
                self.close()
            except psycopg.Error as e:
                raise DataError(f"{self._label}: {first_line(e)}") from None
        raise AssertionError

    def _connect(self) -> "Connection":
        psycopg = psycopg_modules()
        from pgvector.psycopg import register_vector

        try:
            connection = psycopg.connect(self._url, autocommit=True, connect_timeout=int(WAIT_SECONDS))
        except psycopg.Error as e:
            raise StoreUnavailable(f"{self._label}: {first_line(e)}") from None
        try:
            if self._writes and not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.Error as e:
            connection.close()
            raise DataError(
                f"{self._label}: the pgvector extension is not installed in the database, and CREATE EXTENSION vector failed: "
                f"{first_line(e)}"
            ) from None
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Replica:
    """Reads from a replica while it is up and not behind; otherwise from the primary server.

    A write of this store is seen by its next search: until the replica has replayed it, the primary server answers. Writes of
    other processes are seen after at most `max_lag` seconds.
    """

    def __init__(self, options: PgOptions, primary: ConnectionPool, label: str):
        self._primary, self._max_lag = primary, options.max_lag
        self._pool = ConnectionPool(resolve_url(options.replica or ""), f"{label} (replica)", options.pool, writes=False)
        self._written: str | None = None
        self._good_until = self._bad_until = 0.0

    def wrote(self) -> None:
        """Note the end of a write of this store."""
        self._written, self._good_until = self._lsn(), 0.0

    def run(self, work: "Callable[[Connection], T]") -> T:
        """Return `work(connection)` of the replica, or of the primary server if the replica is down or behind."""
        if time.monotonic() < self._bad_until:
            return self._primary.run(work)
        try:
            if self._pool.run(self._current):
                return self._pool.run(work)
        except (StoreUnavailable, DataError):  # down, or without the table yet; a wrong query fails on the primary server too
            self._bad_until = time.monotonic() + RETRY_SECONDS
        return self._primary.run(work)

    def _current(self, c: "Connection") -> bool:
        """Whether the replica has replayed the writes of this store, and is at most `max_lag` behind the primary server."""
        if time.monotonic() < self._good_until:
            return True
        try:
            now = self._lsn()
        except StoreUnavailable:
            now = None  # reads go on while the primary server is away
        row = c.execute(
            "SELECT (%s::text IS NULL OR pg_last_wal_replay_lsn() >= %s::text::pg_lsn) AND (%s::text IS NULL OR "
            "pg_last_wal_replay_lsn() >= %s::text::pg_lsn OR now() - pg_last_xact_replay_timestamp() <= make_interval(secs => %s))",
            (self._written, self._written, now, now, self._max_lag),
        ).fetchone()
        if row is None or not row[0]:
            return False
        self._written, self._good_until = None, time.monotonic() + CHECK_SECONDS
        return True

    def _lsn(self) -> str | None:
        row = self._primary.run(lambda c: c.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone())
        return row[0] if row else None

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()
