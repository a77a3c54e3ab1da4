"""Adopt the vectors of a database as the first version of a collection.

The database is only read: its vectors are copied into the collection's cache of embeddings, and a version is built from them.
So everything that holds for a built version holds for an adopted one. The vectors are trusted only after a sample of them was
computed again from the items' contents: vectors of two models are never mixed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import JsonObject, Row
from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.adopt.vector_sources import VectorSource, find_source
from mmtune.index.collection_layout import resolve_url
from mmtune.index.collection_results import BuildResult
from mmtune.index.item_catalog import Catalog, Item, labels_of
from mmtune.index.item_vectors import embed_items
from mmtune.index.pinned_model import load_for_embedding
from mmtune.index.release.build import IndexOptions
from mmtune.index.release.canaries import differing_rows
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.progress import Progress
from mmtune.runtime.results import ResultFields
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.collection import Collection
    from mmtune.index.pinned_model import ModelSpec
    from mmtune.model.dual_encoder import Model

CHECKED = 64
"""Vectors that are computed again to check that they are the model's."""
BLOCK = 8192
"""Vectors of one block of the cache."""


@dataclass
class AdoptResult(ResultFields):
    """The result of an adoption.

    version: the version that was built
    adopted: number of items whose vector is that of the database
    embedded: number of items that were embedded, because the database had no vector for them
    unknown: number of rows of the database whose id no item has
    skipped: {reason: number of rows of the database without a usable vector or content}
    checked: number of vectors that were computed again; all were the same
    build: the result of the build
    """

    version: str
    adopted: int
    embedded: int
    unknown: int
    skipped: dict[str, int]
    checked: int
    build: BuildResult

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune index adopt --json`."""
        return {**super().to_dict(), "build": self.build.to_dict()}


def payload_rows(source: VectorSource, modality: str, column: str, without_content: list[str]) -> Iterator[Row]:
    """Yield the rows of a database as items: the content is in one column of the payload, the other columns are metadata.

    column: payload column with the text itself, or with the path of a file for other modalities
    without_content: ids of the rows without a readable content are appended to it
    """
    inline = modalities.get(modality).inline
    for batch in source.rows():
        for id, payload in zip(batch.ids, batch.payloads, strict=True):
            value = payload.get(column)
            try:
                content = b"" if value in (None, "") else str(value).encode() if inline else Path(str(value)).read_bytes()
            except OSError:
                content = b""
            if not content:
                without_content.append(id)
                continue
            yield Row(id, None, {modality: content}, {k: v for k, v in payload.items() if k != column})


class Adoption:
    """Copies the vectors of a database into the cache of one model."""

    def __init__(self, catalog: Catalog, pool: VersionPool, source: VectorSource, modality: str):
        modalities.get(modality)
        self.catalog, self.pool, self.source, self.modality = catalog, pool, source, modality
        self.unknown = 0

    def run(self, model: "Model", batch_size: int, quiet: bool) -> int:
        """Check a sample of the vectors and copy all of them; returns the number of vectors that were copied.

        Raises ModelError if the vectors are not those of the model, and DataError if no item has a vector.
        """
        if self.modality not in model.towers:
            raise ModelError(f"the model has no {self.modality} tower; it has {', '.join(model.towers)}")
        with Progress("read vectors", len(self.catalog), "rows", quiet) as progress:
            items, vectors_ND = self._read(model.dim, progress.advance)
        if not items:
            raise DataError(
                f"{self.source.label}: none of its {self.unknown} ids is the id of an item with {self.modality}; give the items' "
                "contents with --data DATA, whose ids are those of the table, or with --content COLUMN"
            )
        self._check(model, items, vectors_ND, batch_size)
        cache = self.pool.vector_cache(model.fingerprint, model.dim)
        labels = labels_of(items, self.modality)
        for start in range(0, len(items), BLOCK):
            cache.write(self.modality, labels[start : start + BLOCK], vectors_ND[start : start + BLOCK], f"adopted-{start}")
        return len(items)

    def _read(self, dim: int, advance: Callable[[int], None]) -> tuple[list[Item], np.ndarray]:
        """Return the items that have a vector, and their normalised vectors [N, D]."""
        items: list[Item] = []
        parts: list[np.ndarray] = []
        for batch in self.source.rows():
            advance(len(batch.ids))
            if len(batch.ids) and batch.vectors.shape[1] != dim:
                raise ModelError(f"{self.source.label}: vectors of {batch.vectors.shape[1]} dimensions; the model makes {dim}")
            known = self.catalog.items(batch.ids)
            at = [n for n, i in enumerate(batch.ids) if i in known and self.modality in known[i].contents]
            self.unknown += len(batch.ids) - len(at)
            items += [known[batch.ids[n]] for n in at]
            parts.append(normalize_rows(batch.vectors[at], self.source.label) if at else np.zeros((0, dim), np.float32))
        return items, np.concatenate(parts) if parts else np.zeros((0, dim), np.float32)

    def _check(self, model: "Model", items: list[Item], vectors_ND: np.ndarray, batch_size: int) -> None:
        at = np.unique(np.linspace(0, len(items) - 1, min(CHECKED, len(items))).astype(int))
        fresh = embed_items(model, self.catalog, [items[i] for i in at.tolist()], self.modality, batch_size)
        bad = differing_rows(vectors_ND[at], fresh)
        if bad.any():
            cosines = (vectors_ND[at].astype(np.float64) * fresh).sum(1)
            worst = int(cosines.argmin())
            raise ModelError(
                f"{self.source.label}: {int(bad.sum())} of {len(at)} vectors are not what the model makes of their items (item "
                f"{items[at[worst]].id!r}: cosine {cosines[worst]:.4f}); name the model that made them (also its prompts and "
                "preprocessing), or build a version without adopting: mmtune index build"
            )


def adopt(
    collection: "Collection",
    model: "ModelSpec",
    *,
    source: str,
    url: str,
    table: str,
    modality: str,
    vector: str | None = None,
    id: str | None = None,
    data: "Data | str | None" = None,
    content: str | None = None,
    dim: int | None = None,
    options: IndexOptions = IndexOptions(),  # noqa: B008 (frozen)
    batch_size: int = 64,
    quiet: bool = True,
) -> AdoptResult:
    """Build the first version of a collection from the vectors of a database that other software wrote.

    The database is only read. The version is not live until it is promoted. After an interruption, call it again.

    model: the model that made the vectors; queries are embedded with it
    source: kind of database: "pgvector", "qdrant", a registered source, or "package.module:Class"
    url: connection string or URL of the database, or env:NAME to read it from environment variable NAME
    table: name of the table or collection
    modality: modality of the items whose vectors these are
    vector, id: column of the vectors and of the ids, see the sources
    data: packed rows with the items' contents and metadata; their ids are those of the table
    content: instead of `data`: column of the table with the items' contents (a text, or the path of a file); the other columns
        become metadata
    dim: the vectors are the model's truncated to this many dimensions (Matryoshka)
    options: store and index of the version; without a store it is in the same database, or in faiss for a database in a directory

    Raises DataError if the collection has a version already, or if no vector belongs to an item; ModelError if the vectors are not
    those of the model; StoreUnavailable if the database cannot be reached.
    """
    if collection.layout.versions():
        raise DataError(f"{collection.path}: it has versions already; adopt the vectors into a new collection")
    if (data is None) == (content is None):
        raise DataError("adopt: give the items' contents: either --data DATA or --content COLUMN")
    database = resolve_url(url)
    read = find_source(source)(database, table, vector, id)
    without_content: list[str] = []
    rows = payload_rows(read, modality, str(content), without_content) if data is None else data
    loaded = collection.upsert(rows, quiet=quiet)
    pinned = collection.pool.pinned(load_for_embedding(model, dim))
    adoption = Adoption(collection.catalog, collection.pool, read, modality)
    adopted = adoption.run(pinned, batch_size, quiet)
    if options.store is None and ("://" in database or "=" in database):
        options = replace(options, store=read.kind, url=url)
    built = collection.build(
        model,
        modalities=[modality],
        dim=dim,
        store=options.store,
        url=options.url,
        index=options.index,
        batch_size=batch_size,
        quiet=quiet,
    )
    with collection.layout.lock():
        audit_log.append(collection.layout, audit_log.event("adopt", built.version, source=read.label, items=adopted))
    checked = min(CHECKED, adopted)
    skipped = dict(read.skipped)
    if without_content or loaded.rejected:
        first = without_content[0] if without_content else loaded.rejected[0].id
        skipped[f"no readable content, e.g. {first!r}"] = len(without_content) + len(loaded.rejected)
    unknown = adoption.unknown if data is not None else 0
    return AdoptResult(built.version, adopted, built.embedded, unknown, skipped, checked, built)
