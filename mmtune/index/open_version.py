"""A version that is open for searches: its saved model and its stores, verified to belong together when it is opened."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.errors import DataError, ModelError, StoreUnavailable
from mmtune.index.collection_layout import CollectionLayout, VersionRecord
from mmtune.index.collection_results import SearchResult
from mmtune.index.item_catalog import split_payload
from mmtune.index.pinned_model import identity_differences, load_pinned
from mmtune.index.query_content import QueryContent, QueryVectorCache, decode_query
from mmtune.index.release.canaries import CanaryVectors, verify_canaries
from mmtune.index.stores import Store, open_store
from mmtune.model.encode import decoded, encode_batches
from mmtune.model.prompts import QUERY

if TYPE_CHECKING:
    from mmtune.index.query.filters import Filter
    from mmtune.model.dual_encoder import Model

BATCH = 64
"""Queries per forward pass."""


class OpenVersion:
    """An open version, created by `load_version`. Thread-safe.

    used: when it was last taken from the pool (`time.monotonic()`)
    """

    def __init__(
        self,
        record: VersionRecord,
        model: "Model",
        stores: Mapping[str, Store],
        query_cache: QueryVectorCache,
        canaries: CanaryVectors,
    ):
        self.record, self.model, self.stores, self.canaries = record, model, stores, canaries
        self.version, self.fingerprint, self.dim = record["version"], record["fingerprint"], record["dim"]
        self._query_cache = query_cache
        self.used = time.monotonic()

    def require_tower(self, modality: str) -> None:
        """Raises ModelError when the model has no tower (encoder) for the modality."""
        modalities.get(modality)
        if modality not in self.model.towers:
            raise ModelError(
                f"version {self.version}: its model has no {modality} tower; it has {', '.join(self.model.towers)}"
            )

    def encode(self, modality: str, values: Sequence[Signal]) -> np.ndarray:
        """Embed query values of one modality with the version's model; returns vectors [N, D]."""
        self.require_tower(modality)
        return self.encode_contents(modality, [decode_query(modality, v) for v in values])

    def encode_contents(self, modality: str, contents: Sequence[QueryContent]) -> np.ndarray:
        """Embed decoded query values; returns vectors [N, D]. Embeddings of repeated queries come from a cache."""
        out = np.empty((len(contents), self.dim), np.float32)
        keys = [None if c.data is None else (self.fingerprint, modality, c.label) for c in contents]
        cached = [self._query_cache.get(key) if key else None for key in keys]
        absent = [n for n, vector_D in enumerate(cached) if vector_D is None]
        for n, vector_D in zip(absent, self.encode_signals(modality, [contents[n].signal for n in absent]), strict=True):
            out[n] = vector_D
            if key := keys[n]:
                self._query_cache.put(key, out[n].copy())
        for n, known_D in enumerate(cached):
            if known_D is not None:
                out[n] = known_D
        return out

    def cached_query(self, modality: str, content: QueryContent) -> np.ndarray | None:
        """Return the embedding [D] of a query that was encoded a short time ago, or None."""
        return None if content.data is None else self._query_cache.get((self.fingerprint, modality, content.label))

    def encode_signals(self, modality: str, signals: Sequence[Signal]) -> Iterator[np.ndarray]:
        """Yield the embedding [D] of each decoded query, without the cache.

        Raises ModelError when the model was changed in memory since the version was opened.
        """
        if self.model.fingerprint != self.fingerprint:
            raise ModelError(
                f"version {self.version}: its model was changed in memory: its fingerprint was {self.fingerprint} and is now "
                f"{self.model.fingerprint}; open the collection again"
            )
        for part_ND in encode_batches(self.model, modality, decoded(signals), BATCH, lambda n: None, QUERY):
            yield from part_ND

    def item_vector(self, item: str) -> np.ndarray:
        """Return the stored vector [D] of an item, from the first modality in which it has one.

        Raises DataError when no store contains the item.
        """
        for store in self.stores.values():
            try:
                return store.fetch([item])[0]
            except StoreUnavailable:
                raise
            except DataError:
                continue
        raise DataError(f"version {self.version} has no item {item!r}")

    def search(
        self,
        query_QD: np.ndarray,
        k: int,
        where: "Filter | None" = None,
        target: Sequence[str] | None = None,
    ) -> list[list[SearchResult]]:
        """Search the stores of the `target` modalities (default: all) and merge the results: the k best items per query.

        An item that several stores return is ranked by its best score.
        """
        names = list(target or self.stores)
        for name in names:
            if name not in self.stores:
                raise DataError(f"version {self.version} has no index of {name}; it has {', '.join(self.stores)}")
        merged: list[dict[str, SearchResult]] = [{} for _ in query_QD]
        for name in names:
            for best, hits in zip(merged, self.stores[name].search(query_QD, k, where), strict=True):
                for hit in hits:
                    if hit.id not in best or hit.score > best[hit.id].score:
                        best[hit.id] = _result(hit.id, hit.score, name, hit.meta)
        return [sorted(best.values(), key=lambda r: (r.score, r.id), reverse=True)[:k] for best in merged]

    def probe(self) -> None:
        """Ask the databases of the stores for a sign of life. Raises StoreUnavailable if one does not answer."""
        for store in self.stores.values():
            if probe := getattr(store, "probe", None):
                probe()

    def close(self) -> None:
        """Close the stores."""
        for store in self.stores.values():
            store.close()


def _result(id: str, score: float, modality: str, payload: Mapping[str, object]) -> SearchResult:
    """Make a search result from a store's payload, which holds the metadata and the group."""
    group, meta = split_payload(payload)
    return SearchResult(id, score, modality, group, meta)


def load_version(
    layout: CollectionLayout,
    version: str,
    models: "dict[str, Model]",
    query_cache: QueryVectorCache,
    stores: Mapping[str, Store] | None = None,
) -> OpenVersion:
    """Open a version after verifying its model, canaries and stores.

    models: {fingerprint: model} of models that are loaded already; the version's model is added to it.
    query_cache: cache for the embeddings of queries.
    stores: the stores of the version, if they are open already.

    Raises ModelError, naming the difference, when the saved model was changed, when it no longer reproduces the canaries, or
    when a store records another fingerprint.
    """
    record = layout.record(version)
    if record["version"] != version:
        raise DataError(f"version {version}: {layout.directory(version)} is a copy of {record['version']}; remove it")
    fingerprint = record["fingerprint"]
    model = models.get(fingerprint)
    if model is None:
        model = load_pinned(layout.path / "models" / fingerprint, fingerprint, record["identity"], version)
    canaries = verify_canaries(model, layout.directory(version) / "canaries.safetensors")
    opened: dict[str, Store] = {}
    for name in record["modalities"]:
        store = stores[name] if stores else open_store(layout.store_location(version, name, record["store"]))
        if store.fingerprint != fingerprint or store.dim != record["dim"]:
            raise ModelError(
                f"version {version}: its {name} store holds vectors of {store.dim} dimensions by {store.fingerprint}, and the "
                f"version needs {record['dim']} by {fingerprint}{_version_of(layout, store.fingerprint, record)}; build a new "
                "version"
            )
        opened[name] = store
    models[fingerprint] = model
    return OpenVersion(record, model, opened, query_cache, canaries)


def _version_of(layout: CollectionLayout, fingerprint: str, record: VersionRecord) -> str:
    """Return a text for an error message: which other version has that fingerprint, and how its model differs."""
    for other in map(layout.record, layout.versions()):
        if other["fingerprint"] == fingerprint and fingerprint != record["fingerprint"]:
            differences = "; ".join(identity_differences(record["identity"], other["identity"]))
            return f" (the model of {other['version']}; {differences})"
    return ""
