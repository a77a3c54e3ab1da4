"""Store vectors in Qdrant: one Qdrant collection per (collection, version, modality), on a server or in local mode.

The url is http(s)://host:port of a server, whose API key is read from QDRANT_API_KEY. Or it is a directory for the client's
local mode; without a url, the location's directory. Local mode allows one process at a time, searches exactly and holds all
vectors in memory, so it is meant for notebooks and tests. Options of mmtune may follow the url, see `qdrant_connections.QdrantOptions`.

The payload of a point is {"id", "meta": the whole metadata as JSON, "f": {column: value}}. The columns are typed
(`store_rows.typed_column`), so that a filter has the same meaning as in other stores. Each point is written atomically, but an
upsert of many points is not: if it is killed, some points are old and some new. Repeating the upsert completes it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.index.query.filters import Filter
from mmtune.index.stores import qdrant_points, store_ranking, store_rows
from mmtune.index.stores.qdrant_connections import SharedClient, parse_options, qdrant_module
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter as QdrantFilter
    from qdrant_client.models import Record, ScoredPoint

MAX_FLAT = 20_000
"""Up to this many vectors, "auto" means exact search."""

GRAPH = {"m": 16, "ef_construct": 128}
"""Settings of the HNSW graph."""
BATCH = 512
"""Points per upsert or delete request."""
PAGE = 10_000
"""Points per read request."""


class QdrantStore:
    """Implements `mmtune.index.stores.Store` with Qdrant."""

    kind = "qdrant"

    def __init__(self, location: StoreLocation, client: SharedClient, label: str):
        self._name, self._client, self._label = location.name, client, label
        self.alias = parse_options(location.url or "").alias
        with client.use(label) as c:
            if not c.collection_exists(location.name):
                raise DataError(f"{label}: no such Qdrant collection")
            config = c.get_collection(location.name).config
        vectors = config.params.vectors
        self._vector = next(iter(vectors)) if isinstance(vectors, dict) else None
        size = getattr(vectors[self._vector] if isinstance(vectors, dict) and self._vector else vectors, "size", None)
        stamp = store_rows.read_stamp((config.metadata or {}).get("mmtune"), size, label)
        self.fingerprint, self.dim, self._index = stamp["fingerprint"], stamp["dim"], stamp["index"]
        self._columns: set[str] = set()
        self._closed = False

    @staticmethod
    def _connect(location: StoreLocation) -> tuple[SharedClient, str]:
        where = parse_options(location.url or str(location.directory)).url
        if not where.startswith(("http://", "https://")):
            where = os.path.abspath(where.removeprefix("file://"))
        return SharedClient.acquire(where), f"qdrant {where} collection {store_rows.check_name(location.name)}"

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "QdrantStore":
        """Create an empty Qdrant collection that records the fingerprint; an existing one of that name is replaced.

        Raises DataError if the alias of the url is the name of a Qdrant collection.
        """
        client, label = cls._connect(location)
        models = qdrant_module().models
        options = parse_options(location.url or "")
        # DOT, because COSINE would normalise the vectors again and change their last bits.
        # m=0: no HNSW graph while the points are loaded; `build` creates it.
        vectors = models.VectorParams(size=dim, distance=models.Distance.DOT)
        try:
            with client.use(label) as c:
                published = options.alias is not None and _target(c, options.alias, label) == location.name
                c.delete_collection(location.name)  # and the aliases that point at it
                c.create_collection(
                    location.name,
                    vectors_config=vectors if options.vector is None else {options.vector: vectors},
                    hnsw_config=models.HnswConfigDiff(m=0),
                    metadata={"mmtune": store_rows.stamp(fingerprint, dim, index="flat")},
                )
            store = cls(location, client, label)
            if published:
                store.publish()
            return store
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
        models = qdrant_module().models
        for start in range(0, len(ids), BATCH):
            points = []
            for i in range(start, min(start + BATCH, len(ids))):
                values = dict(store_rows.typed_columns(plain[i]))
                self._index_columns(values)
                payload = qdrant_points.payload(ids[i], plain[i], values)
                vector = vectors_ND[i].tolist() if self._vector is None else {self._vector: vectors_ND[i].tolist()}
                points.append(models.PointStruct(id=qdrant_points.point_id(ids[i]), vector=vector, payload=payload))
            with self._client.use(self._label) as c, self._client.batch(self._name):
                c.upsert(self._name, points, wait=True)

    def _index_columns(self, values: Mapping[str, object]) -> None:
        """Create a payload index for each new column with short values: the server needs it for fast filters."""
        if self._client.local:
            return
        for name, kind in qdrant_points.indexed_columns(values, self._columns).items():
            schema = qdrant_module().models.PayloadSchemaType(kind)
            with self._client.use(self._label) as c:
                c.create_payload_index(self._name, f"f.{name}", schema, wait=False)
        self._columns.update(values)

    def delete(self, ids: Sequence[str]) -> None:
        numbers = [qdrant_points.point_id(i) for i in ids]
        for start in range(0, len(numbers), BATCH):
            with self._client.use(self._label) as c, self._client.batch(self._name):
                some = qdrant_module().models.PointIdsList(points=numbers[start : start + BATCH])
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
        models = qdrant_module().models
        with self._client.use(self._label) as c:
            if not self._client.local:
                graph = models.HnswConfigDiff(**(GRAPH if index == "hnsw" else {"m": 0}))
                c.update_collection(self._name, hnsw_config=graph)
                while c.get_collection(self._name).status != models.CollectionStatus.GREEN:
                    time.sleep(0.5)
            c.update_collection(self._name, metadata={"mmtune": store_rows.stamp(self.fingerprint, self.dim, index=index)})
        self._index = index
        return built

    def publish(self) -> None:
        """Point the alias of the url at this Qdrant collection, in one step. Does nothing without an alias."""
        if self.alias is None:
            return
        m = qdrant_module().models
        with self._client.use(self._label) as c:
            before = _target(c, self.alias, self._label)
            if before == self._name:
                return
            moves = [m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=self.alias))] if before else []
            create = m.CreateAlias(collection_name=self._name, alias_name=self.alias)
            c.update_collection_aliases([*moves, m.CreateAliasOperation(create_alias=create)])

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
        models = qdrant_module().models
        how = models.SearchParams(exact=True) if self._index == "flat" else models.SearchParams(hnsw_ef=max(200, 2 * width))
        with self._client.use(self._label) as c:
            points = c.query_points(
                self._name,
                query=query_D.tolist(),
                using=self._vector,
                query_filter=condition,
                limit=width,
                search_params=how,
                with_payload=["id", "meta"],
                with_vectors=True,
            ).points
        vectors = np.array([self._vector_of(p) for p in points], np.float32).reshape(-1, self.dim)
        payloads = [p.payload or {} for p in points]
        return store_ranking.Candidates([p["id"] for p in payloads], vectors, [p["meta"] for p in payloads])

    def _vector_of(self, point: "Record | ScoredPoint") -> object:
        return point.vector if not isinstance(point.vector, dict) else point.vector[self._vector or ""]

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        ids = list(ids)
        vectors: dict[str, object] = {}
        for start in range(0, len(ids), PAGE):
            with self._client.use(self._label) as c:
                numbers = [qdrant_points.point_id(i) for i in ids[start : start + PAGE]]
                points = c.retrieve(self._name, numbers, with_payload=["id"], with_vectors=True)
            vectors |= {(p.payload or {})["id"]: self._vector_of(p) for p in points}
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


def _target(client: "QdrantClient", alias: str, label: str) -> str | None:
    """Return the name of the Qdrant collection at which an alias points, or None. Raises DataError if it is itself a collection."""
    if alias in {c.name for c in client.get_collections().collections}:
        raise DataError(
            f"{label}: mmtune_alias={alias}: a Qdrant collection has this name, so it cannot be an alias; choose another name"
        )
    return next((a.collection_name for a in client.get_aliases().aliases if a.alias_name == alias), None)


def _condition(f: Filter) -> "QdrantFilter":
    m = qdrant_module().models
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
