"""Vectors in a directory: mapped files, exact or approximate search, upserts and deletes as small segments beside the base.

`build` compacts everything into one base; what comes after lies in segments that are searched exactly and merged into it.
Readers in other processes see a write at their next search: they look whether the manifest was replaced.
"""

import bisect
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from mmtune.errors import DataError
from mmtune.index.protocols import Hit, StoreLocation
from mmtune.index.stores import faiss_files as files
from mmtune.index.stores.faiss_index import Proposer, exact, make_index, plan_index
from mmtune.index.stores.faiss_updates import living
from mmtune.runtime.files import write_json
from mmtune.runtime.work_lock import run_jobs_once
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import to_scores
from mmtune.search.vectors import unit

if TYPE_CHECKING:
    from mmtune.index.query.filters import Filter

MANY_SEGMENTS = 32
MASKS = 32  # filters whose answer is remembered
FEW = 20_000  # so few admitted candidates are searched exactly


class _State:
    """One consistent view of the files: the base with what is dead in it, and the rows of the segments after it."""

    def __init__(self, directory: Path, manifest: dict[str, Any], known: "_State | None" = None):
        mark, self.manifest = manifest["fingerprint"], manifest
        none = pa.chunked_array([], pa.large_string())
        empty = files.Segment(np.zeros((0, manifest["dim"]), np.float32), none, none, [])
        if known is not None and known.manifest["base"] != manifest["base"]:
            known = None  # else its mapped base and index serve on
        made = files.read_segment(directory, manifest["base"], mark) if manifest["base"] and known is None else empty
        self.base: files.Segment = made if known is None else known.base
        place: dict[str, tuple[int, int]] = {}
        dead: set[int] = set()
        segments = [files.read_segment(directory, name, mark) for name in manifest["segments"]]
        for number, segment in enumerate(segments):
            ids = segment.ids.to_pylist()
            for name in segment.deleted:
                place.pop(name, None)
            if manifest["base"]:
                dead.update(at for name in (*segment.deleted, *ids) if (at := self.find(name)) is not None)
            place.update({name: (number, row) for row, name in enumerate(ids)})
        self.segments, self._delta = segments, cast("np.ndarray | None", None)
        self.delta_ids = sorted(place, reverse=True)
        self.delta_at = {name: i for i, name in enumerate(self.delta_ids)}
        self.rows = np.array([place[name] for name in self.delta_ids], np.int64).reshape(-1, 2)
        self.delta_meta: list[str] = [segments[n].meta[row].as_py() for n, row in self.rows.tolist()]
        self.alive: np.ndarray | None = None
        if dead:
            self.alive = np.ones(len(self.base.ids), bool)
            self.alive[list(dead)] = False
        self.count = len(self.base.ids) - len(dead) + len(place)
        path = directory / f"{manifest['base']}.index"
        self.propose: Proposer | None = (
            known.propose if known else Proposer(path, manifest["index"]) if manifest["base"] and path.exists() else None
        )
        self.masks: dict[str, tuple[np.ndarray | None, np.ndarray]] = {}

    def gather(self, at: np.ndarray) -> np.ndarray:
        """Vectors of the rows after the base, by position."""
        out = np.empty((len(at), self.manifest["dim"]), np.float32)
        for number in np.unique(self.rows[at, 0]).tolist():
            here = self.rows[at, 0] == number
            out[here] = self.segments[number].vectors[self.rows[at[here], 1]]
        return out

    @property
    def delta(self) -> np.ndarray:
        """All of them, in memory: few once there is a base."""
        if self._delta is None:
            self._delta = self.gather(np.arange(len(self.rows)))
        return self._delta

    def find(self, name: str) -> int | None:
        """Position in the base (descending ids), dead or not."""
        ids, reverse = self.base.ids, _Reversed(self.base.ids)
        at = bisect.bisect_left(reverse, name)
        return len(ids) - 1 - at if at < len(ids) and reverse[at] == name else None

    def where(self, name: str) -> tuple[int, int] | None:
        """(0 base or 1 delta, position) of a living id."""
        if name in self.delta_at:
            return 1, self.delta_at[name]
        at = self.find(name)
        return None if at is None or self.alive is not None and not self.alive[at] else (0, at)

    def mask(self, where: "Filter | None") -> tuple[np.ndarray | None, np.ndarray | None]:
        """Who is admitted, of the base and of the delta; None: everyone."""
        if where is None:
            return self.alive, None
        key = repr(where)
        if key not in self.masks:
            every = (m for chunk in self.base.meta.chunks for m in chunk.to_pylist())
            base = np.fromiter((where.matches(json.loads(m)) for m in every), bool, len(self.base.ids))
            delta = np.fromiter((where.matches(json.loads(m)) for m in self.delta_meta), bool, len(self.delta_ids))
            while len(self.masks) >= MASKS:
                self.masks.pop(next(iter(self.masks)), None)
            self.masks[key] = (base if self.alive is None else base & self.alive, delta)
        return self.masks[key]


class _Reversed(Sequence[str]):
    """Descending strings seen as ascending ones."""

    def __init__(self, ids: pa.Array):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: Any) -> Any:
        return self.ids[len(self.ids) - 1 - i].as_py()


class FaissStore:
    """See `mmtune.index.protocols.Store`."""

    kind = "faiss"

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory, self.fingerprint, self.dim = directory, manifest["fingerprint"], manifest["dim"]
        self._view: tuple[Any, _State] | None = None
        self._guard = threading.Lock()

    @classmethod
    def create(cls, place: StoreLocation, dim: int, fingerprint: str) -> "FaissStore":
        """An empty store; what lay in that directory goes."""
        shutil.rmtree(place.directory, ignore_errors=True)
        place.directory.mkdir(parents=True)
        manifest = {"format": files.FORMAT, "fingerprint": fingerprint, "dim": dim, "base": None, "segments": [], "index": {}}
        write_json(place.directory / files.MANIFEST, manifest)
        return cls(place.directory, manifest)

    @classmethod
    def open(cls, place: StoreLocation) -> "FaissStore":
        """The store that lies there; every file's fingerprint is compared with the manifest's."""
        store = cls(place.directory, files.read_manifest(place.directory))
        store._state()
        return store

    def _state(self) -> _State:
        """The view of now; read again when the manifest was replaced."""
        path = self.directory / files.MANIFEST
        for attempt in range(20):
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                raise DataError(f"{self.directory}: the store is gone") from None
            sign, view = (stat.st_ino, stat.st_mtime_ns, stat.st_size), self._view
            if view is not None and view[0] == sign:
                return view[1]
            with self._guard:
                if self._view is not None and self._view[0] == sign:
                    return self._view[1]
                try:
                    known = self._view[1] if self._view else None
                    state = _State(self.directory, files.read_manifest(self.directory), known)
                except FileNotFoundError:
                    if attempt == 19:
                        raise DataError(f"{self.directory}: the manifest names a file that is not there") from None
                    continue  # a writer replaced it between two looks
                self._view = (sign, state)
                return state
        raise DataError(f"{self.directory}: the store changes faster than it can be read")

    def _check(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Any]) -> np.ndarray:
        vectors_ND = np.asarray(vectors_ND, np.float32)
        if vectors_ND.shape != (len(ids), self.dim) or len(meta) != len(ids):
            raise DataError(f"{len(ids)} ids, vectors {vectors_ND.shape}, {len(meta)} metadata; this store has {self.dim} dims")
        if len(set(ids)) < len(ids):
            raise DataError("an id comes twice in one upsert")
        return unit(vectors_ND)

    def upsert(self, ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, Any]]) -> None:
        vectors_ND = self._check(ids, vectors_ND, meta)
        if len(ids):
            self._add(ids, [json.dumps(dict(m), ensure_ascii=False) for m in meta], vectors_ND, ())

    def delete(self, ids: Sequence[str]) -> None:
        if len(ids):
            self._add((), (), np.zeros((0, self.dim), np.float32), list(ids))

    def _add(self, ids: Sequence[str], meta: Sequence[str], vectors_ND: np.ndarray, deleted: Sequence[str]) -> None:
        manifest = files.read_manifest(self.directory)
        blocks = [(ids, meta, vectors_ND)] if len(ids) else []
        made = files.write_segment(self.directory, self.fingerprint, self.dim, len(ids), blocks, deleted)
        manifest = {**manifest, "segments": [*manifest["segments"], made]}
        files.publish(self.directory, manifest)
        if manifest["base"] and len(manifest["segments"]) > MANY_SEGMENTS:
            self._merge(manifest)

    def _merge(self, manifest: dict[str, Any]) -> None:
        """All segments into one."""
        state = self._state()
        dead = [] if state.alive is None else [state.base.ids[i].as_py() for i in np.flatnonzero(~state.alive).tolist()]
        rows = (state.delta_ids, state.delta_meta, state.delta)
        made = files.write_segment(self.directory, self.fingerprint, self.dim, len(state.delta_ids), [rows], dead)
        files.publish(self.directory, {**manifest, "segments": [made]})

    def build(self, index: str = "auto", short: int | None = None, memory_mb: int | None = None) -> dict[str, Any]:
        """As the contract; short: search by the first so many dimensions, re-rank by all (a model trained for it).

        memory_mb: what building an ivfpq index may take beside the ids (see `faiss_ivf`). Killed and called again it goes on
        where it stopped; processes that call it at the same time share the work.
        """
        if short is not None and not 1 <= short < self.dim:
            raise DataError(f"short {short}: these vectors have {self.dim} dimensions; ask for 1 to {self.dim - 1}")
        manifest = files.read_manifest(self.directory)
        named = [name for name in (manifest["base"], *manifest["segments"]) if name]
        asked = [index, short, memory_mb]
        if manifest["base"] and not manifest["segments"] and manifest.get("asked") == asked:
            return manifest["index"]
        stem = self.directory / hashlib.sha256(json.dumps([named, asked]).encode()).hexdigest()[:16]
        path = stem.with_name(f"{stem.name}.vectors.safetensors")
        run_jobs_once([path], lambda p: p, Path.exists, lambda p: self._write_base(named, stem.name))
        vectors, _ = files.map_vectors(path, self.fingerprint)
        settings = plan_index(index, len(vectors), short or self.dim, memory_mb) | ({"short": short} if short else {})
        if settings["index"] != "flat" or short:
            make_index(vectors, settings, stem)
        new = manifest | {"base": stem.name, "segments": [], "index": settings, "asked": asked}
        run_jobs_once(
            [stem],
            lambda p: p,
            lambda p: files.read_manifest(self.directory) != manifest,
            lambda p: files.publish(self.directory, new),
        )
        return settings

    def _write_base(self, named: Sequence[str], name: str) -> None:
        segments = [files.read_segment(self.directory, n, self.fingerprint) for n in named]
        rows = living(segments)
        files.write_segment(self.directory, self.fingerprint, self.dim, len(rows), rows.blocks(), name=name)

    def search(self, query_QD: np.ndarray, k: int, where: "Filter | None" = None) -> list[list[Hit]]:
        query_QD = np.ascontiguousarray(query_QD, np.float32)
        if query_QD.ndim != 2 or query_QD.shape[1] != self.dim:
            raise DataError(f"queries {query_QD.shape}; this store has vectors of {self.dim} dimensions")
        if k < 1:
            raise DataError(f"k {k}: ask for one answer or more")
        state = self._state()
        base_mask, delta_mask = state.mask(where)
        base = self._search_base(state, query_QD, k, base_mask)
        delta = exact(query_QD, state.delta, k, delta_mask)
        out = []
        for first, second in zip(base, delta, strict=True):
            hits = [(s, state.base.ids[i].as_py(), state.base.meta[i].as_py()) for s, i in first]
            hits += [(s, state.delta_ids[i], state.delta_meta[i]) for s, i in second]
            hits.sort(key=lambda h: h[:2], reverse=True)
            out.append([Hit(name, float(s), json.loads(meta)) for s, name, meta in hits[:k]])
        return out

    def _search_base(
        self, state: _State, query_QD: np.ndarray, k: int, mask: np.ndarray | None
    ) -> list[list[tuple[float, int]]]:
        vectors, admitted = state.base.vectors, len(state.base.ids) if mask is None else int(mask.sum())
        if state.propose is None or admitted <= max(FEW, k):
            return exact(query_QD, vectors, k, mask)
        found = state.propose(query_QD, min(admitted, state.propose.width(k)), mask)
        out = []
        for i, row in enumerate(found):
            at = np.unique(row[row >= 0])
            if len(at) < min(k, admitted):  # a graph that lost its way among filtered neighbours
                out += exact(query_QD[i : i + 1], vectors, k, mask)
                continue
            scores = to_scores(pair_keys(query_QD, vectors, np.full(len(at), i), at))
            best = np.lexsort((at, -scores))[:k]
            out.append(list(zip(scores[best].tolist(), at[best].tolist(), strict=True)))
        return out

    def fetch(self, ids: Sequence[str]) -> np.ndarray:
        state = self._state()
        out = np.empty((len(ids), self.dim), np.float32)
        for n, name in enumerate(ids):
            at = state.where(name)
            if at is None:
                raise DataError(f"{self.directory}: no item {name!r}")
            out[n] = state.gather(np.array([at[1]]))[0] if at[0] else state.base.vectors[at[1]]
        return out

    def ids(self) -> list[str]:
        state = self._state()
        base = state.base.ids if state.alive is None else state.base.ids.filter(pa.array(state.alive))
        return [*base.to_pylist(), *state.delta_ids]

    def __len__(self) -> int:
        return self._state().count

    def size(self) -> int:
        return sum(p.stat().st_size for p in self.directory.iterdir() if p.is_file())

    def drop(self) -> None:
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        self._view = None
