"""The default store: memory-mapped files in a directory, with exact search or an approximate faiss index.

`build` merges all rows into one base segment and builds the index over it. Later upserts and deletes add small segments, which
are searched exactly until the next `build` merges them into the base segment. Readers in other processes see a write at their
next search, because they notice that the manifest was replaced.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.index.stores import faiss_files as files
from mmtune.index.stores import store_rows
from mmtune.index.stores.faiss_index import FaissIndexSettings, ScoredPositions, exact_search, make_index, plan_index
from mmtune.index.stores.faiss_merge import current_rows
from mmtune.index.stores.faiss_snapshot import Snapshot
from mmtune.index.stores.store_protocol import Hit, StoreLocation
from mmtune.runtime.files import write_json
from mmtune.runtime.work_lock import run_jobs_once
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import to_scores

if TYPE_CHECKING:
    from mmtune.index.query.filters import Filter

MAX_SEGMENTS = 32
"""When there are more segments than this, they are merged into one."""
MIN_COMPACT = 4096
"""With fewer changed rows than this after the last `build`, the index is not built again."""
COMPACT_SHARE = {"flat": 8}
"""{index: n}: a write that makes the changed rows more than 1/n of the base segment builds the index again. Default: 4."""
MAX_EXACT = 20_000
"""Up to this many rows that match the filter are searched exactly."""
ATTEMPTS = 20
"""Attempts to read a consistent set of files while a writer replaces them."""

FileVersion = tuple[int, int, int]
"""(inode, modification time, size) of the manifest; it changes whenever the manifest is replaced."""


class FaissStore:
    """Implements `mmtune.index.stores.Store` with faiss and files."""

    kind = "faiss"

    def __init__(self, directory: Path, manifest: files.StoreManifest):
        self.directory, self.fingerprint, self.dim = directory, manifest["fingerprint"], manifest["dim"]
        self._current: tuple[FileVersion, Snapshot] | None = None
        self._guard = threading.Lock()

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "FaissStore":
        """Create an empty store. Any existing content of the directory is removed."""
        shutil.rmtree(location.directory, ignore_errors=True)
        location.directory.mkdir(parents=True)
        manifest: files.StoreManifest = {
            "format": files.FORMAT,
            "fingerprint": fingerprint,
            "dim": dim,
            "base": None,
            "segments": [],
            "index": {},
        }
        write_json(location.directory / files.MANIFEST, manifest)
        return cls(location.directory, manifest)

    @classmethod
    def open(cls, location: StoreLocation) -> "FaissStore":
        """Open the store in the location's directory. The fingerprint of every file is compared with the manifest's."""
        store = cls(location.directory, files.read_manifest(location.directory))
        store._snapshot()
        return store

    def _snapshot(self) -> Snapshot:
        """Return a snapshot of the current files; it is read again after the manifest was replaced."""
        path = self.directory / files.MANIFEST
        for attempt in range(ATTEMPTS):
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                raise DataError(f"{self.directory}: the store was deleted; open the collection again") from None
            version, current = (stat.st_ino, stat.st_mtime_ns, stat.st_size), self._current
            if current is not None and current[0] == version:
                return current[1]
            with self._guard:
                current = self._current
                if current is not None and current[0] == version:
                    return current[1]
                try:
                    manifest = files.read_manifest(self.directory)
                    snapshot = Snapshot(self.directory, manifest, current[1] if current else None)
                except FileNotFoundError:
                    if attempt == ATTEMPTS - 1:
                        raise DataError(
                            f"{self.directory}: a file that {files.MANIFEST} lists is missing; build the version again"
                        ) from None
                    continue  # a writer replaced it after the manifest was read
                self._current = (version, snapshot)
                return snapshot
        raise DataError(f"{self.directory}: writers changed the store {ATTEMPTS} times while it was read; try again")

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]]) -> None:
        rows, vectors_ND, plain = store_rows.check_rows(ids, vectors_ND, meta, self.dim, str(self.directory))
        if rows:
            self._add_segment(rows, [store_rows.document(m) for m in plain], vectors_ND, ())

    def delete(self, ids: Sequence[str]) -> None:
        if len(ids):
            self._add_segment((), (), np.zeros((0, self.dim), np.float32), list(ids))

    def _add_segment(self, ids: Sequence[str], meta: Sequence[str], vectors_ND: np.ndarray, deleted: Sequence[str]) -> None:
        manifest = files.read_manifest(self.directory)
        blocks = [(ids, meta, vectors_ND)] if len(ids) else []
        name = files.write_segment(self.directory, self.fingerprint, self.dim, len(ids), blocks, deleted)
        manifest["segments"].append(name)
        manifest["changed"] = manifest.get("changed", 0) + len(ids) + len(deleted)
        files.publish(self.directory, manifest)
        if manifest["base"]:
            self._bound_tail(manifest)

    def _bound_tail(self, manifest: files.StoreManifest) -> None:
        """Build the index again when too many rows came after it, and merge segments when there are too many of them."""
        base = files.map_segment(self.directory / f"{manifest['base']}.vectors.safetensors", self.fingerprint)
        limit = max(MIN_COMPACT, len(base.arrays["vectors"]) // COMPACT_SHARE.get(manifest["index"]["index"], 4))
        many = len(manifest["segments"]) > MAX_SEGMENTS
        if manifest.get("changed", 0) <= limit and not many:
            return
        snapshot = self._snapshot()  # counts a row once that was changed many times
        changed = len(snapshot.delta_ids) + len(snapshot.dead_positions())
        if changed > limit:
            self.compact()
        elif many:
            self._merge_segments({**manifest, "changed": changed})

    def reclaim(self) -> str:
        """Like `compact`; says why nothing is to be done if no row came after the index."""
        if not files.read_manifest(self.directory)["segments"]:
            return "nothing to do: no row was added, replaced or deleted since the index was built"
        self.compact()
        return "written again without deleted and replaced rows, and the index built again"

    def compact(self) -> None:
        """Write all current rows to one segment and build its index again, with the arguments of the last `build`.

        No file contains a deleted or replaced row afterwards.
        """
        manifest = files.read_manifest(self.directory)
        if manifest["segments"]:
            index, *sizes = manifest.get("requested") or ["auto", None, None]
            search_dim, memory_mb = (n if isinstance(n, int) else None for n in sizes)
            self.build(str(index), search_dim=search_dim, memory_mb=memory_mb)

    def _merge_segments(self, manifest: files.StoreManifest) -> None:
        """Merge all segments after the base segment into one."""
        snapshot = self._snapshot()
        rows = (snapshot.delta_ids, snapshot.delta_meta, snapshot.delta)
        count, dead = len(snapshot.delta_ids), snapshot.dead_ids()
        name = files.write_segment(self.directory, self.fingerprint, self.dim, count, [rows], dead)
        files.publish(self.directory, {**manifest, "segments": [name]})

    def build(self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None) -> FaissIndexSettings:
        """Build the index; see `Store.build`.

        search_dim: useful only for models that were trained with Matryoshka loss.
        memory_mb: memory limit for building an ivfpq index; the ids are not counted (see `faiss_ivf`).

        Resumable: after an interruption, call it again. Processes that call it at the same time share the work.
        """
        if search_dim is not None and not 1 <= search_dim < self.dim:
            raise DataError(f"search_dim {search_dim}: these vectors have {self.dim} dimensions; choose 1 to {self.dim - 1}")
        manifest = files.read_manifest(self.directory)
        names = [name for name in (manifest["base"], *manifest["segments"]) if name]
        requested: list[str | int | None] = [index, search_dim, memory_mb]
        if manifest["base"] and not manifest["segments"] and manifest.get("requested") == requested:
            return manifest["index"]
        stem = self.directory / hashlib.sha256(json.dumps([names, requested]).encode()).hexdigest()[:16]
        path = stem.with_name(f"{stem.name}.vectors.safetensors")
        run_jobs_once([path], lambda p: p, Path.exists, lambda p: self._write_base(names, stem.name))
        vectors = files.map_segment(path, self.fingerprint).arrays["vectors"]
        settings = plan_index(index, len(vectors), search_dim or self.dim, memory_mb)
        if search_dim:
            settings["search_dim"] = search_dim
        if settings["index"] != "flat" or search_dim:
            make_index(vectors, settings, stem)
        new: files.StoreManifest = {
            **manifest,
            "base": stem.name,
            "segments": [],
            "index": settings,
            "requested": requested,
            "changed": 0,
        }
        run_jobs_once(
            [stem],
            lambda p: p,
            lambda p: files.read_manifest(self.directory) != manifest,
            lambda p: files.publish(self.directory, new),
        )
        return settings

    def _write_base(self, names: Sequence[str], base: str) -> None:
        rows = current_rows([files.read_segment(self.directory, n, self.fingerprint) for n in names])
        files.write_segment(self.directory, self.fingerprint, self.dim, len(rows), rows.blocks(), name=base)

    def search(self, query_QD: np.ndarray, k: int, where: "Filter | None" = None) -> list[list[Hit]]:
        query_QD = store_rows.check_queries(query_QD, self.dim, k, str(self.directory))
        snapshot = self._snapshot()
        base_mask, delta_mask = snapshot.mask(where)
        base = self._search_base(snapshot, query_QD, k, base_mask)
        delta = exact_search(query_QD, snapshot.delta, k, delta_mask)
        out = []
        for base_best, delta_best in zip(base, delta, strict=True):
            best = [(s, snapshot.base.ids[i].as_py(), snapshot.base.meta[i].as_py()) for s, i in base_best]
            best += [(s, snapshot.delta_ids[i], snapshot.delta_meta[i]) for s, i in delta_best]
            best.sort(key=lambda h: h[:2], reverse=True)
            out.append([Hit(id, float(score), json.loads(meta)) for score, id, meta in best[:k]])
        return out

    def _search_base(self, snapshot: Snapshot, query_QD: np.ndarray, k: int, mask: np.ndarray | None) -> list[ScoredPositions]:
        vectors, index = snapshot.base.vectors, snapshot.index
        admitted = len(snapshot.base.ids) if mask is None else int(mask.sum())
        if index is None or admitted <= max(MAX_EXACT, k):
            return exact_search(query_QD, vectors, k, mask)
        out: list[ScoredPositions] = []
        for i, row in enumerate(index.candidates(query_QD, min(admitted, index.width(k)), mask)):
            positions = np.unique(row[row >= 0])
            if len(positions) < min(k, admitted):  # an HNSW search finds too few when the filter excludes most neighbours
                out += exact_search(query_QD[i : i + 1], vectors, k, mask)
                continue
            scores = to_scores(pair_keys(query_QD, vectors, np.full(len(positions), i), positions))
            best = np.lexsort((positions, -scores))[:k]
            out.append(list(zip(scores[best].tolist(), positions[best].tolist(), strict=True)))
        return out

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        snapshot = self._snapshot()
        out = np.empty((len(ids), self.dim), np.float32)
        for n, id in enumerate(ids):
            vector = snapshot.vector(id)
            if vector is None:
                raise DataError(f"{self.directory}: no vector is stored for item {id!r}")
            out[n] = vector
        return out

    def ids(self) -> list[str]:
        return self._snapshot().ids()

    def __len__(self) -> int:
        return self._snapshot().count

    def size(self) -> int:
        return store_rows.directory_size(self.directory)

    def drop(self) -> None:
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def damaged_files(self) -> list[str]:
        """Read every byte of the store's files; return one line per file that is not what was written."""
        return files.damaged_files(self.directory)

    def close(self) -> None:
        self._current = None
