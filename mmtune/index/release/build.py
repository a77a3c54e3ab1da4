"""Build a version: embed all items that are not cached yet, fill new stores, store canaries, and write the version's record.

A build does not change which version is live. It is resumable: finished blocks of embeddings are cached on disk, and an
unfinished version does not count, because a version exists only once its version.json exists. Items may be added and deleted
during a build; its last step, under the write lock, brings the version up to date.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout, StoreConfig, VersionRecord, now
from mmtune.index.collection_results import BuildResult, UpsertResult
from mmtune.index.item_catalog import Catalog
from mmtune.index.item_vectors import embed_missing, fill_store
from mmtune.index.pinned_model import artifact_identity, load_for_embedding
from mmtune.index.release.canaries import CanaryVectors, differing_rows, store_canaries
from mmtune.index.stores import create_store, open_store
from mmtune.index.vector_cache import VectorCache
from mmtune.index.version_pool import VersionPool
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.pinned_model import ModelSpec
    from mmtune.model.dual_encoder import Model

DEFAULT_STORE = "faiss"


@dataclass(frozen=True)
class IndexOptions:
    """Where the vectors of a version are stored, and how they are indexed.

    store, url: kind of vector store, and URL of its database; None means those of the newest version.
    index: one of `stores.INDEXES`.
    search_dim, memory_mb: see `Store.build`.
    """

    store: str | None = None
    url: str | None = None
    index: str = "auto"
    search_dim: int | None = None
    memory_mb: int | None = None


def indexed_modalities(catalog: Catalog, model: "Model", wanted: Sequence[str] | None) -> list[str]:
    """Return the modalities to index: `wanted`, else all that are not text, or text if the items have nothing else.

    Raises DataError when the items or the model do not have a wanted modality, or when there is nothing to index.
    """
    counts = catalog.counts()
    shared = [m for m in modalities.names() if m in counts and m in model.towers]
    for m in wanted or ():
        if m not in shared:
            raise DataError(f"{m}: the items have {', '.join(counts)}, and the model has {', '.join(model.towers)}")
    names = [m for m in shared if m in wanted] if wanted else modalities.non_language(shared)
    if not names:
        raise DataError(f"nothing to index: the items have {', '.join(counts)}, and the model has {', '.join(model.towers)}")
    return names


def next_version(layout: CollectionLayout) -> str:
    """Return the next version name. Names of dropped versions are not used again."""
    logged = {line["version"] for line in audit_log.read(layout) if line["what"] in ("build", "drop")}
    return f"v{max([0, *(int(v[1:]) for v in {*logged, *layout.versions()} if v)]) + 1}"


class VersionBuilder:
    """Builds the versions of one collection."""

    def __init__(self, layout: CollectionLayout, catalog: Catalog, pool: VersionPool, updates: VersionUpdates):
        self.layout, self.catalog, self.pool, self.updates = layout, catalog, pool, updates

    def build(
        self,
        model: "ModelSpec",
        data: "Data | str | None",
        wanted: Sequence[str] | None,
        dim: int | None,
        options: IndexOptions,
        prune: bool,
        batch_size: int,
        quiet: bool,
    ) -> BuildResult:
        """Build a version; see `Collection.build`."""
        with self.layout.lock("build", wait=0.5):
            begin = time.monotonic()
            loaded = self.updates.upsert(data, prune, quiet) if data is not None else None
            if not len(self.catalog):
                raise DataError(f"{self.layout.path}: the collection has no items; add them with --data DATA")
            pinned = self.pool.pinned(load_for_embedding(model, dim))
            names = indexed_modalities(self.catalog, pinned, wanted)
            cache = self.pool.vector_cache(pinned.fingerprint, pinned.dim)
            until, counts = self.catalog.seq, self.catalog.counts()
            embedded = self._embed(pinned, cache, names, until, batch_size, quiet)
            store = self._store_config(options)
            version = next_version(self.layout)
            index = self._fill_stores(version, names, pinned, cache, store, options, until)
            canaries = store_canaries(pinned, self.catalog, self.layout.directory(version) / "canaries.safetensors")
            _compare_with_cache(cache, canaries)
            record: VersionRecord = {
                "version": version,
                "fingerprint": pinned.fingerprint,
                "dim": pinned.dim,
                "modalities": names,
                "store": store,
                "index": index,
                "seq": until,
                "created": now(),
                "model": _source_of(model, pinned),
                "prompts": pinned.prompts,
                "identity": artifact_identity(self.layout.path / "models" / pinned.fingerprint),
            }
            items, vectors = self._publish(record, pinned, until)
        reused = max(0, sum(counts[m] for m in names) - embedded)
        return self._result(record, items, vectors, embedded, reused, loaded, round(time.monotonic() - begin, 3))

    def _embed(self, model: "Model", cache: VectorCache, names: Sequence[str], until: int, batch_size: int, quiet: bool) -> int:
        """Embed all contents that are not in the cache, and return their number."""
        counts, embedded = self.catalog.counts(), 0
        with Progress("embed", sum(counts[m] for m in names), "items", quiet) as progress:
            for m in names:
                chunks = self.catalog.changed(0, until)
                embedded += embed_missing(model, self.catalog, cache, chunks, m, progress.advance, batch_size)
        for m in names:
            cache.merge(m)
        return embedded

    def _store_config(self, options: IndexOptions) -> StoreConfig:
        """Return the requested store, else that of the newest version, else faiss."""
        versions = self.layout.versions()
        newest: StoreConfig = self.layout.record(versions[-1])["store"] if versions else {"kind": DEFAULT_STORE, "url": None}
        kind = options.store or newest["kind"]
        return {"kind": kind, "url": options.url or (newest["url"] if kind == newest["kind"] else None)}

    def _fill_stores(
        self,
        version: str,
        names: Sequence[str],
        model: "Model",
        cache: VectorCache,
        config: StoreConfig,
        options: IndexOptions,
        until: int,
    ) -> dict[str, dict[str, object]]:
        """Create and fill the stores with the items as of sequence number `until`; returns {modality: index settings}.

        A store that an interrupted build has already filled with the same content is reused. All other files that such a
        build left in the version's directory are removed.
        """
        directory, markers = self.layout.directory(version), {m: f"{m}.filled.json" for m in names}
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.name not in {*markers, *markers.values()}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        built, aliases = dict[str, dict[str, object]](), set[str]()
        for m in names:
            location, marker = self.layout.store_location(version, m, config), directory / markers[m]
            content = {"fingerprint": model.fingerprint, "dim": model.dim, "seq": until, "store": dict(config)}
            filled = marker.exists() and read_json(marker) == content
            if not filled:
                marker.unlink(missing_ok=True)
            store = open_store(location) if filled else create_store(location, model.dim, model.fingerprint)
            try:
                alias = getattr(store, "alias", None)
                if alias is not None and alias in aliases:
                    raise DataError(
                        f"the alias {alias} in the store's url cannot name the indexes of {', '.join(names)}; write "
                        f"{alias}_{{modality}}, or index one modality"
                    )
                aliases.add(alias or "")
                if not filled:
                    fill_store(store, cache, self.catalog.changed(0, until), m)
                    write_json(marker, content)
                index = store.build(options.index, search_dim=options.search_dim, memory_mb=options.memory_mb)
                built[m] = dict(index)
            finally:
                store.close()
        return built

    def _publish(self, record: VersionRecord, model: "Model", until: int) -> tuple[int, dict[str, int]]:
        """Bring the version up to date and write its record; returns (number of items, {modality: number of vectors})."""
        version, names = record["version"], record["modalities"]
        with self.layout.lock():
            seq = self.updates.update(record, model, built_until=until)
            items, vectors = self.catalog.count(names), {m: self._store_size(record, m) for m in names}
            event = audit_log.event("build", version, fingerprint=record["fingerprint"], items=items)
            document = {**record, "items": items, "vectors": vectors, "seq": seq, "event": event}
            write_json(self.layout.directory(version) / "version.json", document)
            audit_log.append(self.layout)
        return items, vectors

    def _store_size(self, record: VersionRecord, modality: str) -> int:
        with self.pool.store(record, modality) as store:
            return len(store)

    def _result(
        self,
        record: VersionRecord,
        items: int,
        vectors: Mapping[str, int],
        embedded: int,
        reused: int,
        loaded: UpsertResult | None,
        seconds: float,
    ) -> BuildResult:
        live = self.pool.live
        needs_queries = live is not None and self.layout.record(live)["fingerprint"] != record["fingerprint"]
        return BuildResult(
            version=record["version"],
            fingerprint=record["fingerprint"],
            items=items,
            vectors=vectors,
            index=record["index"],
            store=record["store"]["kind"],
            embedded=embedded,
            reused=reused,
            loaded=loaded,
            live=live,
            next=f"mmtune index promote {self.layout.path} {record['version']}" + " --queries DATA" * needs_queries,
            seconds=seconds,
        )


def _source_of(model: "ModelSpec", loaded: "Model") -> str:
    """Return the MODEL string from which the model was loaded."""
    return str(model) if isinstance(model, str | Path) else str(loaded.info.get("source", "a model in memory"))


def _compare_with_cache(cache: VectorCache, canaries: CanaryVectors) -> None:
    """Compare cached embeddings with the canaries, which have just been embedded.

    Raises ModelError when they differ, because the cache then contains embeddings of another model.
    """
    for m, (labels, fresh) in canaries.items():
        known = cache.intact(m, labels)
        if not known.any():
            continue
        cached = cache.read(m, labels[known])
        bad = int(differing_rows(cached, fresh[known]).sum())
        if bad:
            cosines = (cached.astype(np.float64) * fresh[known]).sum(1)
            raise ModelError(
                f"{cache.directory / m}: {bad} of {len(cosines)} vectors on disk are not what {cache.fingerprint} makes of "
                f"their content (the lowest cosine similarity is {cosines.min():.4f}); remove that directory and build again"
            )
