"""Store vectors in Qdrant: one Qdrant collection per (collection, version, modality), on a server or in local mode.

The url is http(s)://host:port of a server, whose API key is read from QDRANT_API_KEY. Or it is a directory for the client's
local mode; without a url, the location's directory. Local mode allows one process at a time, searches exactly and holds all
vectors in memory, so it is meant for notebooks and tests.

The payload of a point is {"id", "meta": the whole metadata as JSON, "f": {column: value}}. The columns are typed
(`store_rows.typed_column`), so that a filter has the same meaning as in other stores. Each point is written atomically, but an
upsert of many points is not: if it is killed, some points are old and some new. Repeating the upsert completes it.
"""

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError, MissingExtra, StoreUnavailable
from mmtune.index.query.filters import Filter
from mmtune.index.stores import qdrant_points, store_ranking, store_rows
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter as QdrantFilter

MAX_FLAT = 20_000
"""Up to this many vectors, "auto" means exact search."""

GRAPH = {"m": 16, "ef_construct": 128}
"""Settings of the HNSW graph."""
BATCH = 512
"""Points per upsert or delete request."""
PAGE = 10_000
"""Points per read request."""


def _qdrant() -> ModuleType:
    try:
        import qdrant_client
        import qdrant_client.http.exceptions
    except ImportError:
        raise MissingExtra('store qdrant needs qdrant-client: pip install "mmtune[qdrant]"') from None
    return qdrant_client


class _SharedClient:
    """One client per server or directory, shared by all stores of this process, because local mode locks its directory."""

    _open: dict[str, "_SharedClient"] = {}
    _guard = threading.Lock()

    def __init__(self, where: str):
        self.where, self.users, self.local = where, 0, not where.startswith(("http://", "https://"))
        self._lock: contextlib.AbstractContextManager[object] = threading.RLock() if self.local else contextlib.nullcontext()
        try:
            if self.local:
                _remove_empty_contents(Path(where))
                self._client = _qdrant().QdrantClient(path=where, force_disable_check_same_thread=True)
            else:
                key = os.environ.get("QDRANT_API_KEY")
                self._client = _qdrant().QdrantClient(url=where, api_key=key, timeout=60, check_compatibility=False)
        except RuntimeError as e:
            if "already accessed" not in str(e):
                raise
            raise DataError(
                f"{where}: open in another process, and Qdrant's local mode allows only one; run a Qdrant server and build with "
                "--url http://..."
            ) from None

    @classmethod
    def acquire(cls, where: str) -> "_SharedClient":
        """Return the shared client of a server or directory; create it when this process has none."""
        with cls._guard:
            if where not in cls._open:
                cls._open[where] = cls(where)
            cls._open[where].users += 1
            return cls._open[where]

    def release(self) -> None:
        """Close the client when its last user releases it."""
        with self._guard:
            self.users -= 1
            if self.users == 0:
                self._client.close()
                del self._open[self.where]

    @contextlib.contextmanager
    def use(self, label: str) -> "Iterator[QdrantClient]":
        """Yields the client for one call. Raises DataError, in one line, for an error of the connection or the server."""
        exceptions = _qdrant().http.exceptions
        with self._lock, warnings.catch_warnings():
            if self.local:
                warnings.simplefilter("ignore", UserWarning)  # about many points, and about payload indexes it cannot create
            try:
                yield self._client
            except (exceptions.ResponseHandlingException, exceptions.UnexpectedResponse) as e:
                status = getattr(e, "status_code", None)
                kind = DataError if status is not None and status < 500 else StoreUnavailable
                raise kind(f"{label}: {(str(e).strip().splitlines() or ['no answer from the server'])[0]}") from None

    @contextlib.contextmanager
    def batch(self, name: str, vacuum: bool = False) -> Iterator[None]:
        """Context manager for a write of many points: in local mode, the file is synced once at the end, not per point.

        vacuum: rewrite the file without free pages at the end.
        """
        collections = getattr(getattr(self._client, "_client", None), "collections", {})
        file = getattr(getattr(collections.get(name), "storage", None), "storage", None) if self.local else None
        if file is not None:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=NORMAL")
        yield
        if file is not None:
            if vacuum:
                file.commit()
                file.execute("VACUUM")
            file.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if vacuum else 'FULL'})")


def _remove_empty_contents(directory: Path) -> None:
    """Remove an empty meta.json: a process killed while it created the directory leaves one, and the client cannot read it."""
    contents = directory / "meta.json"
    if contents.is_file() and not contents.stat().st_size and not (directory / "collection").exists():
        contents.unlink()


class QdrantStore:
    """Implements `mmtune.index.stores.Store` with Qdrant."""

    kind = "qdrant"

    def __init__(self, location: StoreLocation, client: _SharedClient, label: str):
        self._name, self._client, self._label = location.name, client, label
        with client.use(label) as c:
            if not c.collection_exists(location.name):
                raise DataError(f"{label}: no such Qdrant collection")
            config = c.get_collection(location.name).config
        stamp = store_rows.read_stamp(
            (config.metadata or {}).get("mmtune"), getattr(config.params.vectors, "size", None), label
        )
        self.fingerprint, self.dim, self._index = stamp["fingerprint"], stamp["dim"], stamp["index"]
        self._columns: set[str] = set()
        self._closed = False

    @staticmethod
    def _connect(location: StoreLocation) -> tuple[_SharedClient, str]:
        where = location.url or str(location.directory)
        if not where.startswith(("http://", "https://")):
            where = os.path.abspath(where.removeprefix("file://"))
        return _SharedClient.acquire(where), f"qdrant {where} collection {store_rows.check_name(location.name)}"

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "QdrantStore":
        """Create an empty Qdrant collection that records the fingerprint; an existing one of that name is replaced."""
        client, label = cls._connect(location)
        models = _qdrant().models
        try:
            with client.use(label) as c:
                c.delete_collection(location.name)
                c.create_collection(
                    location.name,
                    # DOT, because COSINE would normalise the vectors again and change their last bits.
                    # m=0: no HNSW graph while the points are loaded; `build` creates it.
                    vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT),
                    hnsw_config=models.HnswConfigDiff(m=0),
                    metadata={"mmtune": store_rows.stamp(fingerprint, dim, index="flat")},
                )
            return cls(location, client, label)
        except BaseException:
            client.release()
            raise

    @classmethod
    def open(cls, location: StoreLocation) -> "QdrantStore":
        """Open the Qdrant collection at `location`.

        Raises DataError when there is no such collection, or it records no fingerprint (servers before 1.16 cannot store it).
        """
        client, label = cls._connect(location)
        try:
            return cls(location, client, label)
        except BaseException:
            client.release()
            raise

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        ids, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, self._label)
        models = _qdrant().models
        for start in range(0, len(ids), BATCH):
            points = []
            for i in range(start, min(start + BATCH, len(ids))):
                values = dict(store_rows.typed_columns(plain[i]))
                self._index_columns(values)
                payload = qdrant_points.payload(ids[i], plain[i], values)
                points.append(
                    models.PointStruct(id=qdrant_points.point_id(ids[i]), vector=vectors_ND[i].tolist(), payload=payload)
                )
            with self._client.use(self._label) as c, self._client.batch(self._name):
                c.upsert(self._name, points, wait=True)

    def _index_columns(self, values: Mapping[str, object]) -> None:
        """Create a payload index for each new column with short values: the server needs it for fast filters."""
        if self._client.local:
            return
        for name, kind in qdrant_points.indexed_columns(values, self._columns).items():
            schema = _qdrant().models.PayloadSchemaType(kind)
            with self._client.use(self._label) as c:
                c.create_payload_index(self._name, f"f.{name}", schema, wait=False)
        self._columns.update(values)

    def delete(self, ids: Sequence[str]) -> None:
        numbers = [qdrant_points.point_id(i) for i in ids]
        for start in range(0, len(numbers), BATCH):
            with self._client.use(self._label) as c, self._client.batch(self._name):
                some = _qdrant().models.PointIdsList(points=numbers[start : start + BATCH])
                c.delete(self._name, points_selector=some, wait=True)

    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> dict[str, object]:
        store_rows.check_index(index, self._label, search_dim, memory_mb)
        if index == "ivfpq":
            raise DataError(f"{self._label}: Qdrant does not support ivfpq; choose index flat or hnsw")
        if index == "auto":
            index = "flat" if len(self) <= MAX_FLAT else "hnsw"
        built: dict[str, object] = {"index": index, **(GRAPH if index == "hnsw" else {})}
        if self._client.local and index == "hnsw":
            index, built = "flat", {"index": "flat", "note": "Qdrant's local mode always searches exactly"}
        models = _qdrant().models
        with self._client.use(self._label) as c:
            if not self._client.local:
                graph = models.HnswConfigDiff(**(GRAPH if index == "hnsw" else {"m": 0}))
                c.update_collection(self._name, hnsw_config=graph)
                while c.get_collection(self._name).status != models.CollectionStatus.GREEN:
                    time.sleep(0.5)
            c.update_collection(self._name, metadata={"mmtune": store_rows.stamp(self.fingerprint, self.dim, index=index)})
        self._index = index
        return built

    def probe(self) -> None:
        """Ask for the collection. Raises StoreUnavailable when the server cannot be reached."""
        with self._client.use(self._label) as c:
            c.get_collection(self._name)

    def reclaim(self) -> str:
        """Like `compact`; says that a server needs no call."""
        if not self._client.local:
            with self._client.use(self._label) as c:
                state = c.get_collection(self._name)
            return (
                f"nothing to do: the server's optimizers remove deleted points by themselves (status {state.status.value}, "
                f"{state.indexed_vectors_count or 0:,} vectors in the graph)"
            )
        self.compact()
        return "the file of local mode was written again without deleted points"

    def compact(self) -> None:
        """Remove the bytes of deleted points from the files of local mode. A server does so by itself, some time later."""
        if self._client.local:
            with self._client.use(self._label), self._client.batch(self._name, vacuum=True):
                pass

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        condition = None if where is None else _condition(where)
        query_QD = store_rows.check_queries(query_QD, self.dim, k, self._label)
        widest = None if self._index == "flat" else 4 * k + 64
        return store_ranking.rank(query_QD, k, lambda q, width: self._propose(q, condition, width), widest)

    def _propose(self, query_D: np.ndarray, condition: "QdrantFilter | None", width: int) -> store_ranking.Candidates:
        models = _qdrant().models
        how = models.SearchParams(exact=True) if self._index == "flat" else models.SearchParams(hnsw_ef=max(200, 2 * width))
        with self._client.use(self._label) as c:
            points = c.query_points(
                self._name,
                query=query_D.tolist(),
                query_filter=condition,
                limit=width,
                search_params=how,
                with_payload=["id", "meta"],
                with_vectors=True,
            ).points
        vectors = np.array([p.vector for p in points], np.float32).reshape(-1, self.dim)
        payloads = [p.payload or {} for p in points]
        return store_ranking.Candidates([p["id"] for p in payloads], vectors, [p["meta"] for p in payloads])

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        ids = list(ids)
        vectors: dict[str, object] = {}
        for start in range(0, len(ids), PAGE):
            with self._client.use(self._label) as c:
                numbers = [qdrant_points.point_id(i) for i in ids[start : start + PAGE]]
                points = c.retrieve(self._name, numbers, with_payload=["id"], with_vectors=True)
            vectors |= {(p.payload or {})["id"]: p.vector for p in points}
        return store_rows.stack_in_order(ids, vectors, self.dim, self._label)

    def ids(self) -> list[str]:
        out: list[str] = []
        at = None
        while True:
            with self._client.use(self._label) as c:
                points, at = c.scroll(self._name, limit=PAGE, offset=at, with_payload=["id"], with_vectors=False)
            out.extend((p.payload or {})["id"] for p in points)
            if at is None:
                return out

    def __len__(self) -> int:
        with self._client.use(self._label) as c:
            return c.count(self._name, exact=True).count

    def size(self) -> int:
        """Return the bytes on disk in local mode, and the bytes of the vectors alone for a server, which does not report its files."""
        if not self._client.local:
            return len(self) * self.dim * 4
        root = Path(self._client.where) / "collection" / self._name
        return store_rows.directory_size(root)

    def drop(self) -> None:
        with self._client.use(self._label) as c:
            c.delete_collection(self._name)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._client.release()


def _condition(f: Filter) -> "QdrantFilter":
    m = _qdrant().models
    made: QdrantFilter = qdrant_points.condition(
        f,
        qdrant_points.FilterModels(
            m.Filter,
            m.FieldCondition,
            m.Range,
            lambda value: m.MatchValue(value=value),
            lambda values: m.MatchAny(any=values),
            lambda key: m.IsEmptyCondition(is_empty=m.PayloadField(key=key)),
        ),
    )
    return made
