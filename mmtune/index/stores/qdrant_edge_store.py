"""Store vectors in Qdrant's own engine in this process (qdrant-edge), without a server: files in a directory, HNSW search.

One process at a time can have the store open; all threads of it may search and write. Other processes get one clear line. The
location's url is a directory that can hold many stores; without a url, the location's directory. An upsert or delete is applied
as a whole, also when the process is killed (see `qdrant_edge_shard`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from mmtune.errors import DataError
from mmtune.index.query.filters import Filter, encodable
from mmtune.index.stores import qdrant_points, store_ranking, store_rows
from mmtune.index.stores.qdrant_edge_shard import GRAPH, STORE, EdgeFiles, engine, errors, index_columns, scroll
from mmtune.index.stores.store_protocol import Hit, StoreLocation

if TYPE_CHECKING:
    import qdrant_edge

MAX_FLAT = 50_000
"""Up to this many vectors, "auto" means exact search."""
MIN_TAIL = 20_000
"""Up to this many points outside the HNSW graph are searched exactly; more than this and than a quarter of the points in the
graph make a write build the graph again."""
PAGE = 10_000
"""Points per read."""


class QdrantEdgeStore:
    """Implements `mmtune.index.stores.Store` with qdrant-edge."""

    kind = "qdrant-edge"

    def __init__(self, files: EdgeFiles):
        self._files, self._label, self._closed = files, f"qdrant-edge {files.directory}", False
        if files.document is None:
            raise DataError(f"{self._label}: no such store (no {STORE}); build the version again")
        self.fingerprint, self.dim = files.document["fingerprint"], files.document["dim"]

    @staticmethod
    def _directory(location: StoreLocation) -> Path:
        name = store_rows.check_name(location.name)
        engine()
        return Path(location.url.removeprefix("file://")) / name if location.url else location.directory

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "QdrantEdgeStore":
        """Create an empty store that records the fingerprint; an existing one in that directory is replaced."""
        files = EdgeFiles.acquire(cls._directory(location), replace=True)
        try:
            files.create(dim, fingerprint)
            return cls(files)
        except BaseException:
            files.release()
            raise

    @classmethod
    def open(cls, location: StoreLocation) -> "QdrantEdgeStore":
        """Open the store. Raises DataError when there is none, when it is damaged, or when another process has it open."""
        directory = cls._directory(location)
        if not (directory / STORE).exists():
            raise DataError(f"qdrant-edge {directory}: no such store (no {STORE}); build the version again")
        files = EdgeFiles.acquire(directory)
        try:
            return cls(files)
        except BaseException:
            files.release()
            raise

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        ids, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, self._label)
        if ids:
            self._files.write(ids, vectors_ND, plain)
            self._bound_tail()

    def delete(self, ids: Sequence[str]) -> None:
        known = [i for i in dict.fromkeys(ids) if encodable(i)]
        if known:
            self._files.write(known, None, None)

    def _bound_tail(self) -> None:
        """Build the graph again when too many points came after it, because those are searched one by one."""
        if self._index == "hnsw":
            info = self._files.current.info()
            tail = info.points_count - info.indexed_vectors_count
            if tail > max(MIN_TAIL, info.indexed_vectors_count // 4):
                self._files.rewrite("hnsw")

    @property
    def _index(self) -> str:
        return self._files.document["index"] if self._files.document else "flat"

    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> dict[str, object]:
        store_rows.check_index(index, self._label, search_dim, memory_mb)
        if index == "ivfpq":
            raise DataError(f"{self._label}: Qdrant does not support ivfpq; choose index flat or hnsw")
        if index == "auto":
            index = "flat" if len(self) <= MAX_FLAT else "hnsw"
        if index == "hnsw" and len(self):
            self._files.rewrite("hnsw")
            return {"index": "hnsw", **GRAPH}
        with self._files.writing, errors(self._label):
            index_columns(self._files.current)
            self._files.current.flush()
            self._files.set_index("flat")
        return {"index": "flat"}

    def compact(self) -> None:
        """Write the current points to new files, build the index again, and delete the old files. Searches go on meanwhile."""
        self._files.rewrite(self._index)

    def search(self, query_QD: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        condition = None if where is None else _condition(where)
        query_QD = store_rows.check_queries(query_QD, self.dim, k, self._label)
        shard, flat = self._files.current, self._index == "flat"

        def propose(query_D: np.ndarray, width: int) -> store_ranking.Candidates:
            found = _nearest(shard, self._label, query_D, condition, width, flat)
            if not flat and len(found) < width:  # the graph found fewer than match the filter
                found = _nearest(shard, self._label, query_D, condition, width, True)
            vectors = np.array([p.vector for p in found], np.float32).reshape(-1, self.dim)
            payloads = [p.payload or {} for p in found]
            return store_ranking.Candidates([p["id"] for p in payloads], vectors, [p["meta"] for p in payloads])

        return store_ranking.rank(query_QD, k, propose, None if flat else 4 * k + 64)

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        ids, vectors = list(ids), dict[str, object]()
        for start in range(0, len(ids), PAGE):
            numbers: list[int | UUID | str] = [qdrant_points.point_id(i) for i in ids[start : start + PAGE] if encodable(i)]
            with errors(self._label):
                records = self._files.current.retrieve(numbers, with_payload=["id"], with_vector=True)
            vectors |= {(r.payload or {})["id"]: r.vector for r in records}
        return store_rows.stack_in_order(ids, vectors, self.dim, self._label)

    def ids(self) -> list[str]:
        with errors(self._label):
            return [(r.payload or {})["id"] for page in scroll(self._files.current, ["id"], False) for r in page]

    def __len__(self) -> int:
        with errors(self._label):
            return self._files.current.count(engine().CountRequest(exact=True))

    def size(self) -> int:
        """Return the bytes on disk; the engine's files have holes, which are not counted."""
        return sum(f.stat().st_blocks * 512 for f in self._files.directory.rglob("*") if f.is_file())

    def drop(self) -> None:
        self._files.drop()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._files.release()


def _nearest(
    shard: "qdrant_edge.EdgeShard",
    label: str,
    query_D: np.ndarray,
    condition: "qdrant_edge.Filter | None",
    width: int,
    exact: bool,
) -> "list[qdrant_edge.ScoredPoint]":
    q = engine()
    request = q.QueryRequest(
        limit=width,
        query=q.Query.Nearest(query_D.tolist()),
        filter=condition,
        with_vector=True,
        with_payload=["id", "meta"],
        params=q.SearchParams(exact=exact, hnsw_ef=None if exact else max(200, 2 * width)),
    )
    with errors(label):
        found: list[qdrant_edge.ScoredPoint] = shard.query(request)
    return found


def _condition(f: Filter) -> "qdrant_edge.Filter":
    q = engine()
    made: qdrant_edge.Filter = qdrant_points.condition(
        f,
        qdrant_points.FilterModels(
            q.Filter,
            q.FieldCondition,
            q.RangeFloat,
            lambda value: q.MatchValue(str(value).lower()),
            q.MatchAny,
            q.IsEmptyCondition,
        ),
    )
    return made
