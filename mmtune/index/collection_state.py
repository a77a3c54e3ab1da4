"""What a collection holds open and keeps up to date: the corpus, every version's stores, the models."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.contracts import Row
from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log, integrity
from mmtune.index.catalog import Catalog
from mmtune.index.item_vectors import embed_missing, fill
from mmtune.index.layout import Layout
from mmtune.index.open_version import OpenVersion, QueryCache, load_version
from mmtune.index.protocols import Store
from mmtune.index.stores import open_store
from mmtune.index.vector_cache import VectorCache
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

KEPT_OPEN = 4


class Keeping:
    """The collection's state without its verbs."""

    def __init__(self, path: str | Path, *, create: bool = False):
        self.layout = Layout(path, create)
        self.path = self.layout.path
        self.catalog = Catalog(self.path / "corpus")
        self.models: dict[str, Model] = {}
        self.cache = QueryCache()
        self._opened: dict[str, OpenVersion] = {}
        self._guard = threading.RLock()

    @property
    def live(self) -> str | None:
        """The version that answers."""
        return self.layout.live()["version"]

    def open(self, version: str | None = None) -> OpenVersion:
        """A version's handles (default: live), checked when it is opened first: fingerprints, canaries, a sample of the stored
        vectors. ModelError or DataError say what is wrong; nothing is answered then."""
        if version is None:
            version = self.live
            if version is None:
                known = ", ".join(self.layout.versions())
                raise DataError(
                    f"{self.path}: no version is live; "
                    + (f"promote one of {known}" if known else "build one with `mmtune index build`")
                )
        found = self._opened.get(version)
        if found is None:
            with self._guard:
                found = self._opened.get(version)
                if found is None:
                    found = self.check(load_version(self.layout, version, self.models, self.cache))
                    self._keep(found)
        return found

    def reopen(self, version: str) -> OpenVersion:
        """As `open`, with the artifact read and verified again, and the canaries asked again."""
        with self._guard:
            known = self._opened.get(version)
            found = load_version(self.layout, version, {}, self.cache, known.stores if known else None)
            self.models[found.fingerprint] = found.model
            self._keep(self.check(found))
        return found

    def _keep(self, opened: OpenVersion) -> None:
        while len(self._opened) >= KEPT_OPEN and opened.version not in self._opened:
            oldest = next(v for v in self._opened if v != self.live)
            self._opened.pop(oldest)  # not closed: a search may still hold it
        self._opened[opened.version] = opened

    def check(self, opened: OpenVersion, every: bool = False) -> OpenVersion:
        """The same version when its stores hold what they should (a sample, or `every` vector); else ModelError."""
        held = self.vector_cache(opened.fingerprint, opened.dim)
        if every or integrity.faults(opened, self.catalog, held, self.layout.applied(opened.version)):
            with self.layout.lock():  # a writer may have been in the middle of it
                found = integrity.faults(opened, self.catalog, held, self.layout.applied(opened.version), every)
            if found:
                raise ModelError("; ".join(found))
        return opened

    def take(self, data: "Data | str | Iterable[Row]", prune: bool, quiet: bool) -> dict[str, Any]:
        """The corpus takes rows, then every version does."""
        from mmtune.data.shards.dataset import Data, open_data

        rejected: list[dict[str, str]] = []
        opened = open_data(data) if isinstance(data, str) else data
        with self.layout.lock():
            self.in_step()
            if isinstance(opened, Data):
                counts = self.catalog.load(opened, prune)
            else:
                counts, rejected = self.catalog.put(opened)
            audit_log.append(self.layout, audit_log.event("upsert", items=counts["new"] + counts["changed"]))
        return {**counts, "rejected": rejected, "behind": self.update_all_versions(quiet)}

    def in_step(self) -> None:
        """DataError when the corpus is older than a version: before it changes."""
        for version in self.layout.versions():
            for reason in integrity.behind(version, self.catalog, self.layout.applied(version)):
                raise DataError(reason)

    def update_all_versions(self, quiet: bool = True) -> dict[str, str]:
        """Bring every version up to date; {version: why not}. A broken one does not hold up the others."""
        behind = {}
        for version in self.layout.versions():
            try:
                if self.layout.applied(version) < self.catalog.seq:
                    record, model = self.layout.record(version), self.open(version).model
                    held = self.vector_cache(record["fingerprint"], record["dim"])
                    since = self.layout.applied(version)
                    for m in record["modalities"]:  # the long part, without the lock
                        with Progress(f"embed {m} for {version}", self.catalog.counts().get(m, 0), "items", quiet) as progress:
                            embed_missing(model, self.catalog, held, self.catalog.changed(since), m, progress.advance)
                    with self.layout.lock():
                        self.bring(version, record, model)
            except (ModelError, DataError) as e:
                behind[version] = str(e)
        return behind

    def bring(self, version: str, record: Mapping[str, Any], model: "Model", built_until: int | None = None) -> int:
        """Under the write lock: apply what the corpus has and the version lacks; returns the sequence number it is at."""
        since = self.layout.applied(version) if built_until is None else built_until
        until = self.catalog.seq
        if since < until:
            held = self.vector_cache(record["fingerprint"], record["dim"])
            for m in record["modalities"]:
                embed_missing(model, self.catalog, held, self.catalog.changed(since, until), m, lambda n: None)
                with self.store(record, m) as store:
                    fill(store, held, self.catalog.changed(since, until), m)
        self.layout.set_applied(version, until)
        return until

    @contextlib.contextmanager
    def store(self, record: Mapping[str, Any], modality: str) -> Iterator[Store]:
        """A version's store: the one that is open, or one opened for this moment."""
        with self._guard:
            opened = self._opened.get(record["version"])
        if opened is not None:
            yield opened.stores[modality]
            return
        kind, url = record["store"]["kind"], record["store"].get("url")
        store = open_store(self.layout.place(record["version"], modality, kind, url))
        try:
            yield store
        finally:
            store.close()

    def count(self, record: Mapping[str, Any], modality: str) -> int:
        """Items in a version's store."""
        with self.store(record, modality) as store:
            return len(store)

    def vector_cache(self, fingerprint: str, dim: int) -> VectorCache:
        """The vectors by content of one fingerprint."""
        return VectorCache(self.path / "vectors" / fingerprint, fingerprint, dim)

    def store_of(self, kind: str | None, url: str | None) -> dict[str, Any]:
        """{"kind", "url"} of a new version: what is asked for, else as the newest version, else faiss."""
        versions = self.layout.versions()
        newest = self.layout.record(versions[-1])["store"] if versions else {"kind": "faiss", "url": None}
        kind = kind or newest["kind"]
        return {"kind": kind, "url": url or (newest["url"] if kind == newest["kind"] else None)}

    def drop(self, version: str, why: str | None = None) -> dict[str, Any]:
        """Remove a version's vectors for good. DataError for the live one. Its pinned model stays."""
        with self.layout.lock():
            live = self.layout.live()
            if live["version"] == version:
                raise DataError(f"{version} is live; promote another one first")
            record = self.layout.record(version)
            audit_log.append(self.layout, audit_log.event("drop", version, why))
            history = [v for v in live["history"] if v != version]
            if history != live["history"]:
                self.layout.point({**live, "history": history, "previous": history[-1] if history else None})
            (self.layout.directory(version) / "version.json").unlink()
            for m in record["modalities"]:
                with self.store(record, m) as store:
                    store.drop()
            with self._guard:
                self._opened.pop(version, None)
        return {"dropped": version}
