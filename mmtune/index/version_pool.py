"""The versions that this process has open: opened on demand, verified once, the most recent few kept."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmtune.errors import DataError, ModelError
from mmtune.index.collection_layout import CollectionLayout, VersionRecord
from mmtune.index.integrity import find_faults
from mmtune.index.item_catalog import Catalog
from mmtune.index.open_version import OpenVersion, load_version
from mmtune.index.pinned_model import pin_model
from mmtune.index.query_content import QueryVectorCache
from mmtune.index.stores import Store, open_store
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

MAX_OPEN = 4


class VersionPool:
    """Open versions of one collection, with their models and the cache of query vectors. Threads share it."""

    def __init__(self, layout: CollectionLayout, catalog: Catalog):
        self.layout, self.catalog = layout, catalog
        self.query_cache = QueryVectorCache()
        self._models: dict[str, Model] = {}
        self._open: dict[str, OpenVersion] = {}
        self._guard = threading.RLock()

    @property
    def live(self) -> str | None:
        """The name of the live version."""
        return self.layout.live()["version"]

    @property
    def names(self) -> set[str]:
        """The versions that are open, which therefore answer at once."""
        return set(self._open)

    def open(self, version: str | None = None) -> OpenVersion:
        """A version (default: the live one), verified when it is opened first: fingerprints, canaries, a sample of the stored
        vectors. ModelError or DataError say what is wrong; such a version is not searched."""
        if version is None:
            version = self.live
            if version is None:
                known = ", ".join(self.layout.versions())
                raise DataError(
                    f"{self.layout.path}: no version is live; "
                    + (f"promote one of {known}" if known else "build one with `mmtune index build`")
                )
        opened = self._open.get(version)
        if opened is None:
            with self._guard:
                opened = self._open.get(version)
                if opened is None:
                    opened = load_version(self.layout, version, self._models, self.query_cache)
                    self.verify(opened)
                    self._keep(opened)
        return opened

    def reopen(self, version: str) -> OpenVersion:
        """As `open`, with the artifact read and verified again, and the canaries embedded again."""
        with self._guard:
            known = self._open.get(version)
            opened = load_version(self.layout, version, {}, self.query_cache, known.stores if known else None)
            self._models[opened.fingerprint] = opened.model
            self.verify(opened)
            self._keep(opened)
        return opened

    def _keep(self, opened: OpenVersion) -> None:
        while len(self._open) >= MAX_OPEN and opened.version not in self._open:
            oldest = next(v for v in self._open if v != self.live)
            self._open.pop(oldest)  # not closed: a search may still use it
        self._open[opened.version] = opened
        used = {o.fingerprint for o in self._open.values()}
        for fingerprint in [f for f in self._models if f not in used]:  # a process that follows many promotions
            del self._models[fingerprint]

    def verify(self, opened: OpenVersion, all_vectors: bool = False) -> None:
        """ModelError unless the stores hold what they should: a sample of the vectors, or all of them."""
        cache = self.vector_cache(opened.fingerprint, opened.dim)
        if all_vectors or find_faults(opened, self.catalog, cache, self.layout.applied_seq(opened.version)):
            with self.layout.lock():  # a writer may have been in the middle of a change
                faults = find_faults(opened, self.catalog, cache, self.layout.applied_seq(opened.version), all_vectors)
            if faults:
                raise ModelError("; ".join(faults))

    def pinned(self, model: "Model") -> "Model":
        """The model as the collection keeps it: saved under its fingerprint, loaded from there."""
        fingerprint = model.fingerprint
        if fingerprint not in self._models:
            self._models[fingerprint] = pin_model(self.layout.path, model)
        return self._models[fingerprint]

    def vector_cache(self, fingerprint: str, dim: int) -> VectorCache:
        """The vectors by content of one fingerprint."""
        return VectorCache(self.layout.path / "vectors" / fingerprint, fingerprint, dim)

    @contextlib.contextmanager
    def store(self, record: VersionRecord, modality: str) -> Iterator[Store]:
        """A version's store: the one that is open, or one that is opened for the duration of the block."""
        with self._guard:
            opened = self._open.get(record["version"])
        if opened is not None:
            yield opened.stores[modality]
            return
        store = open_store(self.layout.store_location(record["version"], modality, record["store"]))
        try:
            yield store
        finally:
            store.close()

    def forget(self, version: str) -> None:
        """Drop the handle of a version; it is not closed, since a search may still use it."""
        with self._guard:
            self._open.pop(version, None)

    def close(self) -> None:
        """Close all open versions."""
        with self._guard:
            for opened in self._open.values():
                opened.close()
            self._open.clear()
