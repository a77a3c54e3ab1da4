"""The pool of versions that this process has open. Versions are opened and verified on first use; the last few stay open."""

import contextlib
import threading
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from mmtune.errors import DataError, ModelError
from mmtune.index.collection_layout import CollectionLayout, VersionRecord
from mmtune.index.integrity import find_faults
from mmtune.index.item_catalog import Catalog
from mmtune.index.open_version import OpenVersion, load_version
from mmtune.index.pinned_model import load_pinned, pin_model
from mmtune.index.query_content import QueryVectorCache
from mmtune.index.stores import Store, open_store
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

MAX_OPEN = 4
"""Most versions that stay open."""


class VersionPool:
    """The open versions of one collection, their models, and a cache of query embeddings. Thread-safe."""

    def __init__(self, layout: CollectionLayout, catalog: Catalog):
        self.layout, self.catalog = layout, catalog
        self.query_cache = QueryVectorCache()
        self._models: dict[str, Model] = {}
        self._open: dict[str, OpenVersion] = {}
        self._guard = threading.RLock()

    @property
    def live(self) -> str | None:
        """The name of the live version, or None."""
        return self.layout.live()["version"]

    @property
    def names(self) -> set[str]:
        """The names of the versions that are open."""
        return set(self._open)

    def open(self, version: str | None = None) -> OpenVersion:
        """Return a version (default: the live one); open and verify it first if it is not open yet.

        The fingerprints, the canaries and a sample of the stored vectors are verified. Raises ModelError or DataError when the
        verification fails; the version is then not opened.
        """
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
        opened.used = time.monotonic()
        return opened

    def reopen(self, version: str) -> OpenVersion:
        """Open a version again even if it is open: read its model from disk, and repeat the verification of `open`."""
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
        self._release_models()

    def release_idle(self, keep: Collection[str], seconds: float) -> None:
        """Release the open versions that are not in `keep` and were not opened or searched for `seconds`, and their models."""
        with self._guard:
            now = time.monotonic()
            for name in [v for v, o in self._open.items() if v not in keep and now - o.used >= seconds]:
                self._open.pop(name)  # not closed: a search may still use it
            self._release_models()

    def _release_models(self) -> None:
        """Forget the models of versions that are not open; else models pile up over many promotions."""
        used = {o.fingerprint for o in self._open.values()}
        for fingerprint in [f for f in self._models if f not in used]:
            del self._models[fingerprint]

    def verify(self, opened: OpenVersion, all_vectors: bool = False) -> None:
        """Compare a sample of the stored vectors (or all) with the expected ones. Raises ModelError when they differ."""
        cache = self.vector_cache(opened.fingerprint, opened.dim)
        if all_vectors or find_faults(opened, self.catalog, cache, self.layout.applied_seq(opened.version)):
            with self.layout.lock():  # check again under the lock: a concurrent write may have caused the fault
                faults = find_faults(opened, self.catalog, cache, self.layout.applied_seq(opened.version), all_vectors)
            if faults:
                raise ModelError("; ".join(faults))

    def pinned(self, model: "Model") -> "Model":
        """Save a model in the collection under its fingerprint, and return the copy that is loaded from there."""
        fingerprint = model.fingerprint
        if fingerprint not in self._models:
            self._models[fingerprint] = pin_model(self.layout.path, model)
        return self._models[fingerprint]

    def saved_model(self, record: VersionRecord) -> "Model":
        """Load the saved model of a version, without its stores."""
        path = self.layout.path / "models" / record["fingerprint"]
        return load_pinned(path, record["fingerprint"], record["identity"], record["version"])

    def vector_cache(self, fingerprint: str, dim: int) -> VectorCache:
        """Return the cache of the embeddings of one model, keyed by content hash."""
        return VectorCache(self.layout.path / "vectors" / fingerprint, fingerprint, dim)

    @contextlib.contextmanager
    def store(self, record: VersionRecord, modality: str) -> Iterator[Store]:
        """Yields the store of a version for one modality. A store that was not open already is closed afterwards."""
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
        """Remove a version from the pool. It is not closed, because a search may still be using it."""
        with self._guard:
            self._open.pop(version, None)

    def close(self) -> None:
        """Close all open versions."""
        with self._guard:
            for opened in self._open.values():
                opened.close()
            self._open.clear()
