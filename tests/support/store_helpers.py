"""Locations for the five kinds of store, a PostgreSQL server of our own, and vectors distributed like real embeddings."""

import contextlib
import importlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmtune.index.stores import StoreLocation

KINDS = ("faiss", "lancedb", "pgvector", "qdrant", "qdrant-edge")


class PostgresServer:
    """A real server that a test may stop and start again."""

    def __init__(self, server) -> None:
        self.server, self.url = server, server.get_uri()

    def stop(self) -> None:
        """Stop the server at once, as a power failure would; connections break."""
        from pgserver.postgres_server import pg_ctl

        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self.server.pgdata, user=self.server.system_user)

    def start(self) -> None:
        """Start it again; it recovers what was committed. pgserver waits 10 s, which a busy machine may exceed."""
        for attempt in range(6):
            try:
                return self.server.ensure_postgres_running()
            except subprocess.TimeoutExpired:
                if attempt == 5:
                    raise


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A libpq url of a real server with pgvector, on a socket in a directory of its own."""
    with postgres_server() as server:
        yield server.url


@contextlib.contextmanager
def postgres_server(package: str = "pgserver") -> Iterator[PostgresServer]:
    """A real server with pgvector, on a socket in a directory of its own. package: pgserver, or a fork of it with newer servers."""
    pgserver = importlib.import_module(package)
    root = Path(tempfile.mkdtemp(prefix="mmtune-pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pgserver.get_server(root / "data", cleanup_mode="delete")
    try:
        yield PostgresServer(server)
    finally:
        server.cleanup()
        shutil.rmtree(root, ignore_errors=True)


def place(kind: str, directory: Path, url: str | None, name: str = "shop_v1_a") -> StoreLocation:
    """`directory` of its own for embedded kinds, `url` of the server for pgvector."""
    return StoreLocation(kind, directory / kind / name, url if kind == "pgvector" else None, name)


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, n: int, dim: int, inner: int = 16, spread: float = 0.35) -> np.ndarray:
    """Products in families: sqrt(n) centres, and around each what varies in `inner` directions, as embeddings do."""
    centres, basis = unit_rows(rng, max(1, round(n**0.5)), dim), unit_rows(rng, inner, dim)
    x = centres[rng.integers(len(centres), size=n)] + spread * (rng.normal(size=(n, inner)) @ basis) / inner**0.5
    x += 0.02 * rng.normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
