"""The files of a qdrant-edge store: a shard of Qdrant's engine, and what makes its writes survive a kill.

    store.json     format, fingerprint, dim, index, and the name of the current shard; replaced atomically
    NAME/          a shard: the files of the engine
    journal.npz    a write that is not finished; it is repeated when the store is opened
    .lock          locked by the process that has the store open

The engine changes its files in place, and what it has not flushed is lost with the process. Therefore each write is first put
into the journal as a whole, and the journal is removed after the flush. To rewrite all points, a second shard is written beside
the first one, and store.json then names the second one.
"""

import contextlib
import json
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from mmtune.errors import DataError, MissingExtra, first_line
from mmtune.index.stores import qdrant_points, store_rows
from mmtune.runtime.files import atomic_open, read_json, write_json
from mmtune.runtime.work_lock import FileLock, Timeout, file_lock

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard, Record

STORE, JOURNAL, LOCK = "store.json", "journal.npz", ".lock"
GRAPH = {"m": 16, "ef_construct": 128}
"""Settings of the HNSW graph."""
BATCH = 2048
"""Points per operation."""
WAIT_SECONDS = 2.0
"""How long to wait for another process to close the store."""


class Document(TypedDict):
    """The content of store.json. shard: name of the directory of the current shard."""

    format: int
    fingerprint: str
    dim: int
    index: str
    shard: str


class Write(TypedDict):
    """An upsert or a delete, as the journal holds it: ids, and for an upsert the metadata, as JSON strings."""

    ids: list[str]
    meta: list[str] | None


def engine() -> ModuleType:
    """Import qdrant-edge. Raises MissingExtra."""
    try:
        import qdrant_edge
    except ImportError:
        raise MissingExtra('store qdrant-edge needs qdrant-edge-py: pip install "mmtune[qdrant-edge]"') from None
    return qdrant_edge


class EdgeFiles:
    """The open files of one store, shared by all objects of this process that have it open."""

    _open: dict[Path, "EdgeFiles"] = {}
    _guard = threading.Lock()

    def __init__(self, directory: Path):
        self.directory, self.users = directory, 0
        self.writing = threading.RLock()
        self.document: Document | None = None
        self.shard: EdgeShard | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._lock: FileLock = file_lock(directory / LOCK)
        try:
            self._lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise DataError(
                f"{directory}: open in another process, and Qdrant's engine allows only one; close it, write through its "
                "`mmtune serve`, or use a Qdrant server (--store qdrant --url http://...)"
            ) from None

    @classmethod
    def acquire(cls, directory: Path, *, replace: bool = False) -> "EdgeFiles":
        """Return the files of a store; open them if this process has not opened them yet.

        replace: the caller calls `create` next, so a store that cannot be opened is no error.
        """
        directory = directory.absolute()
        with cls._guard:
            files = cls._open.get(directory)
            if files is None:
                files = cls(directory)
                try:
                    files._load()
                except Exception:
                    if not replace:
                        files._close()
                        raise
                cls._open[directory] = files
            files.users += 1
            return files

    def release(self) -> None:
        """Close the files when their last user releases them."""
        with self._guard:
            self.users -= 1
            if self.users == 0:
                self._open.pop(self.directory, None)
                self._close()

    def _close(self) -> None:
        shard, self.shard = self.shard, None
        if shard is not None:
            shard.close()
        if self.document is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.release(force=True)

    def _load(self) -> None:
        """Open the current shard, if there is one, and finish a write that was killed."""
        if not (self.directory / STORE).exists():
            return
        document: Document = read_json(self.directory / STORE)
        store_rows.read_stamp(document, document.get("dim"), str(self.directory))
        path = self.directory / document["shard"]
        if not path.is_dir():
            raise DataError(f"{path}: is missing; build the version again")
        with errors(str(self.directory)):
            self.shard = engine().EdgeShard.load(str(path))
        self.document = document
        self._remove_others()
        if (self.directory / JOURNAL).exists():
            self._apply(*self._read_journal())

    def _remove_others(self) -> None:
        """Remove the shards that store.json does not name."""
        assert self.document is not None
        for path in self.directory.iterdir():
            if path.is_dir() and path.name != self.document["shard"]:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def current(self) -> "EdgeShard":
        """The current shard. A search keeps this object, so that a rewrite does not disturb it."""
        shard = self.shard
        if shard is None:
            raise DataError(f"{self.directory}: the store was deleted; open the collection again")
        return shard

    # --- writing -------------------------------------------------------------------------------------------------

    def create(self, dim: int, fingerprint: str) -> None:
        """Replace the store with an empty one."""
        with self.writing:
            (self.directory / JOURNAL).unlink(missing_ok=True)
            self._publish(self._new_shard(dim, "flat"), dim, fingerprint, "flat")

    def _new_shard(self, dim: int, index: str) -> "tuple[str, EdgeShard]":
        q, name = engine(), uuid.uuid4().hex[:16]
        (self.directory / name).mkdir(parents=True)
        # The distance is Dot, because Cosine would normalise the vectors again and change their last bits.
        config = q.EdgeConfig(
            vectors=q.EdgeVectorParams(size=dim, distance=q.Distance.Dot),
            hnsw_config=q.HnswIndexConfig(full_scan_threshold=1, **GRAPH) if index == "hnsw" else None,
            optimizers=q.EdgeOptimizersConfig(indexing_threshold=1 if index == "hnsw" else 0, default_segment_number=1),
            wal_enabled=False,  # the engine does not repeat its log when it is opened; the journal is repeated
        )
        with errors(str(self.directory)):
            return name, q.EdgeShard.create(str(self.directory / name), config)

    def _publish(self, new: "tuple[str, EdgeShard]", dim: int, fingerprint: str, index: str) -> None:
        name, shard = new
        with errors(str(self.directory)):
            shard.flush()
        document: Document = {"format": 1, "fingerprint": fingerprint, "dim": dim, "index": index, "shard": name}
        write_json(self.directory / STORE, document)
        self.document, self.shard = document, shard  # the old shard closes itself when the last search has ended
        self._remove_others()

    def drop(self) -> None:
        """Delete all files; the directory goes when the last user releases it."""
        with self.writing:
            self.document = self.shard = None
            for path in self.directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != LOCK:
                    path.unlink(missing_ok=True)

    def set_index(self, index: str) -> None:
        """Record another index over the same points."""
        assert self.document is not None
        self.document = {**self.document, "index": index}
        write_json(self.directory / STORE, self.document)

    def rewrite(self, index: str) -> None:
        """Write all points to a new shard, without deleted and replaced ones, and build the index there."""
        with self.writing:
            assert self.document is not None
            old, dim, q = self.current, self.document["dim"], engine()
            name, shard = self._new_shard(dim, index)
            try:
                with errors(str(self.directory)):
                    for records in scroll(old, payload=True, vectors=True):
                        points = [q.Point(r.id, r.vector, r.payload) for r in records]
                        shard.update(q.UpdateOperation.upsert_points(points))
                    index_columns(shard)
                    if index == "hnsw":
                        shard.flush()
                        shard.optimize()
                self._publish((name, shard), dim, self.document["fingerprint"], index)
            except BaseException:
                shutil.rmtree(self.directory / name, ignore_errors=True)
                raise

    def write(self, ids: Sequence[str], vectors_ND: np.ndarray | None, meta: Sequence[Mapping[str, object]] | None) -> None:
        """Upsert rows, or delete ids if `vectors_ND` is None. All or nothing, also when the process is killed."""
        with self.writing:
            self.current  # noqa: B018  (raises for a deleted store)
            change: Write = {"ids": list(ids), "meta": None if meta is None else [store_rows.document(m) for m in meta]}
            document = np.frombuffer(json.dumps(change).encode(), np.uint8)
            with atomic_open(self.directory / JOURNAL) as f:
                np.savez(f, document=document, vectors=np.zeros((0, 0), np.float32) if vectors_ND is None else vectors_ND)
            self._apply(change, vectors_ND)

    def _read_journal(self) -> tuple[Write, np.ndarray]:
        with np.load(self.directory / JOURNAL) as journal:
            return json.loads(journal["document"].tobytes()), journal["vectors"]

    def _apply(self, change: Write, vectors_ND: np.ndarray | None) -> None:
        operations, shard, ids, meta = engine().UpdateOperation, self.current, change["ids"], change["meta"]
        numbers = [qdrant_points.point_id(i) for i in ids]
        with errors(str(self.directory)):
            for start in range(0, len(ids), BATCH):
                some = slice(start, start + BATCH)
                if meta is None or vectors_ND is None:
                    shard.update(operations.delete_points(numbers[some]))
                    continue
                rows = zip(ids[some], numbers[some], vectors_ND[some].tolist(), meta[some], strict=True)
                shard.update(operations.upsert_points([_point(*row) for row in rows]))
            shard.flush()
        (self.directory / JOURNAL).unlink()


def _point(id: str, number: str, vector: list[float], meta: str) -> object:
    document = json.loads(meta)
    # The bindings of the engine take True in a condition for the number 1, so booleans are stored as strings.
    values = {c: str(v).lower() if isinstance(v, bool) else v for c, v in store_rows.typed_columns(document)}
    return engine().Point(number, vector, qdrant_points.payload(id, document, values))


@contextlib.contextmanager
def errors(label: str) -> Iterator[None]:
    """Turn the errors of the engine into a DataError of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, DataError):
        raise
    except BaseException as e:  # a panic of the engine is not an Exception
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise DataError(
            f"{label}: {first_line(e)[:300]}; if it repeats, `mmtune index repair` writes the store again"
        ) from None


def scroll(shard: "EdgeShard", payload: bool | list[str], vectors: bool) -> "Iterator[list[Record]]":
    """Yield all points in batches."""
    q, at = engine(), None
    while True:
        records, at = shard.scroll(q.ScrollRequest(offset=at, limit=BATCH, with_payload=payload, with_vector=vectors))
        if records:
            yield records
        if at is None:
            return


def index_columns(shard: "EdgeShard") -> None:
    """Create a payload index for each column with short values that has none."""
    q = engine()
    known = {name.removeprefix("f.") for name in shard.info().payload_schema}
    for records in scroll(shard, payload=["f"], vectors=False):
        for record in records:
            values = (record.payload or {}).get("f") or {}
            for name, kind in qdrant_points.indexed_columns(values, known).items():
                schema = q.PayloadSchemaType.Float if kind == "float" else q.PayloadSchemaType.Keyword
                shard.update(q.UpdateOperation.create_field_index(f"f.{name}", schema))
            known.update(values)
