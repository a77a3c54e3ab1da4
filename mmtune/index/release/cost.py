"""The cost of a re-embedding, before it is started: hours, bytes and price, measured on a sample on this machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError
from mmtune.index.collection_results import CollectionResult
from mmtune.index.item_catalog import Catalog, labels_of
from mmtune.index.item_vectors import embed_items
from mmtune.index.stores.faiss_index import plan_index
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

SAMPLE = 64
BYTES_BESIDE_VECTOR = 120
"""Bytes of id, metadata and label per item, about."""
INDEX_FACTOR = {"flat": 1.0, "hnsw": 2.0, "ivfpq": 1.2}
"""Bytes of store and index, relative to the vectors'."""
WARM_UP = 2
"""Items embedded before the measurement: the first call is slower."""


@dataclass(frozen=True, eq=False)
class ModalityCost(CollectionResult):
    """Of embedding one modality; known: contents whose vectors exist; measured_on: items of the sample."""

    items: int
    known: int
    per_second: float
    hours: float
    bytes: int
    index: str
    measured_on: int


@dataclass(frozen=True, eq=False)
class CostEstimate(CollectionResult):
    """Of a re-embedding on this machine: hours, bytes on disk, and the price at `price_per_hour` where that is given."""

    items: int
    hours: float
    bytes: int
    price: float | None
    price_per_hour: float | None
    fingerprint: str
    dim: int
    by_modality: Mapping[str, ModalityCost]


class CostSource(Protocol):
    """What is to be embedded: items with their counts by modality, some of whose contents may have vectors already."""

    def __len__(self) -> int: ...

    def counts(self) -> dict[str, int]:
        """Items that have each modality."""
        ...

    def known(self, modality: str) -> int:
        """Items whose content has a vector already."""
        ...

    def embed(self, modality: str, count: int) -> int:
        """Embed up to so many items, to measure; returns how many."""
        ...


class DataSource:
    """Rows of DATA."""

    def __init__(self, data: "Data | str", model: "Model", batch_size: int):
        from mmtune.data.shards.dataset import open_data

        self.rows = open_data(data) if isinstance(data, str) else data
        self.model, self.batch_size = model, batch_size

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, int]:
        return {m: int(self.rows.present[m].sum()) for m in self.rows.modalities}

    def known(self, modality: str) -> int:
        return 0

    def embed(self, modality: str, count: int) -> int:
        from mmtune.embedding.embed_rows import embed_data

        having = np.flatnonzero(self.rows.present[modality])
        sample = np.sort(np.random.default_rng(0).choice(having, min(count, len(having)), replace=False))
        embed_data(self.model, self.rows.subset(sample), [modality], self.batch_size)
        return len(sample)


class CatalogSource:
    """The items of a collection."""

    def __init__(self, catalog: Catalog, cache: VectorCache, model: "Model", batch_size: int):
        self.catalog, self.cache, self.model, self.batch_size = catalog, cache, model, batch_size

    def __len__(self) -> int:
        return len(self.catalog)

    def counts(self) -> dict[str, int]:
        return self.catalog.counts()

    def known(self, modality: str) -> int:
        parts = ([i for i in items if modality in i.contents] for items in self.catalog.changed(0))
        return sum(len(p) - int(self.cache.missing(modality, labels_of(p, modality)).sum()) for p in parts)

    def embed(self, modality: str, count: int) -> int:
        items = self.catalog.sample(modality, count)
        embed_items(self.model, self.catalog, items, modality, self.batch_size)
        return len(items)


def load_for_cost(model: "Model | str | Path", dim: int | None) -> "Model":
    """The model, or its first `dim` dimensions."""
    from mmtune.model.artifact import load

    loaded = load(model) if isinstance(model, str | Path) else model
    return loaded if dim is None else loaded.truncated(dim)


def estimate_data_cost(
    model: "Model | str | Path",
    data: "Data | str",
    items: int | None = None,
    price_per_hour: float | None = None,
    *,
    wanted: Sequence[str] | None = None,
    dim: int | None = None,
    sample: int = SAMPLE,
    batch_size: int = 64,
) -> CostEstimate:
    """The cost of embedding `items` (default: as many as there are) items like the rows of `data`, without a collection."""
    loaded = load_for_cost(model, dim)
    return estimate_cost(loaded, DataSource(data, loaded, batch_size), items, price_per_hour, wanted, sample)


def estimate_cost(
    model: "Model",
    source: CostSource,
    items: int | None = None,
    price_per_hour: float | None = None,
    wanted: Sequence[str] | None = None,
    sample: int = SAMPLE,
) -> CostEstimate:
    """The cost of embedding the items of `source`, or `items` like them. Contents that have vectors cost no time.

    wanted: modalities, as in `Collection.build`; sample: items per modality to measure on.
    """
    total, counts = len(source), source.counts()
    both = [m for m in modalities.names() if m in counts and m in model.towers]
    for m in wanted or ():
        if m not in both:
            raise DataError(f"{m}: the items have {', '.join(counts)}, the model {', '.join(model.towers)}")
    names = [m for m in both if m in wanted] if wanted else modalities.non_language(both)
    if not names:
        raise DataError(f"nothing to index: the items have {', '.join(counts)}, the model {', '.join(model.towers)}")
    planned = total if items is None else items
    if planned < 1:
        raise DataError(f"items {planned}: how many items are to be embedded?")
    costs = {}
    for m in names:
        count = round(planned * counts[m] / total)
        costs[m] = _modality_cost(model, source, m, count, source.known(m) if items is None else 0, sample)
    hours = sum(c.hours for c in costs.values())
    price = None if price_per_hour is None else round(hours * price_per_hour, 2)
    size = sum(c.bytes for c in costs.values())
    return CostEstimate(planned, hours, size, price, price_per_hour, model.fingerprint, model.dim, costs)


def _modality_cost(model: "Model", source: CostSource, modality: str, count: int, known: int, sample: int) -> ModalityCost:
    source.embed(modality, WARM_UP)
    begin = time.perf_counter()
    measured = source.embed(modality, sample)
    rate = measured / (time.perf_counter() - begin)
    index = plan_index("auto", count, model.dim)["index"]
    store_bytes = count * (model.dim * 4 + BYTES_BESIDE_VECTOR)
    cache_bytes = count * (model.dim * 4 + 8)
    return ModalityCost(
        items=count,
        known=known,
        per_second=round(rate, 1),
        hours=(count - known) / rate / 3600,
        bytes=round(store_bytes * INDEX_FACTOR[index] + cache_bytes),
        index=index,
        measured_on=measured,
    )
