"""Estimate the cost of embedding all items with a model, from a sample embedded on this machine: hours, bytes and price."""

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
"""Items per modality to measure on."""
BYTES_BESIDE_VECTOR = 120
"""Approximate bytes of an item's id, metadata and content hash."""
INDEX_FACTOR = {"flat": 1.0, "hnsw": 2.0, "ivfpq": 1.2}
"""Size of a store with its index, relative to the size of the store without an index."""
WARM_UP = 2
"""Items that are embedded before the measurement, because the first call is slower."""


@dataclass(frozen=True, eq=False)
class ModalityCost(CollectionResult):
    """The estimated cost of embedding one modality.

    items: items to embed.
    known: items whose content is already embedded.
    per_second: measured throughput, in items per second.
    bytes: size on disk.
    index: index type that "auto" would choose.
    measured_on: number of items in the sample.
    """

    items: int
    known: int
    per_second: float
    hours: float
    bytes: int
    index: str
    measured_on: int


@dataclass(frozen=True, eq=False)
class CostEstimate(CollectionResult):
    """The estimated cost of embedding all items on this machine.

    bytes: size on disk.
    price: hours * price_per_hour; None when no price per hour is given.
    fingerprint, dim: fingerprint and embedding dimension of the model.
    """

    items: int
    hours: float
    bytes: int
    price: float | None
    price_per_hour: float | None
    fingerprint: str
    dim: int
    by_modality: Mapping[str, ModalityCost]


class CostSource(Protocol):
    """The items whose embedding cost is estimated: packed data, or a collection."""

    def __len__(self) -> int: ...

    def counts(self) -> dict[str, int]:
        """Return {modality: number of items that have it}."""
        ...

    def known(self, modality: str) -> int:
        """Return the number of items whose content in the modality is already embedded."""
        ...

    def embed(self, modality: str, count: int) -> int:
        """Embed a sample of up to `count` items, for the measurement; returns their number."""
        ...


class DataSource:
    """The rows of packed data, as a `CostSource`."""

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
    """The items of a collection, as a `CostSource`."""

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
    """Load `model` if it is not in memory. dim: truncate its embeddings to this many dimensions; None means all."""
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
    """Estimate the cost of embedding items like the rows of `data`, without a collection.

    items: number of items to estimate for; default: the number of rows.
    price_per_hour, wanted, sample: see `estimate_cost`.
    dim: truncate the embeddings to this many dimensions (Matryoshka).
    """
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
    """Estimate the cost of embedding the items of `source`. Contents that are already embedded cost no time.

    items: estimate for this many new items like those of `source`; default: for the items of `source` themselves.
    price_per_hour: price of this machine per hour.
    wanted: modalities to embed; default: all that are not text, or text if the items have nothing else.
    sample: items per modality to measure on.

    Raises DataError when the items or the model do not have a wanted modality, or when there is nothing to embed.
    """
    total, counts = len(source), source.counts()
    shared = [m for m in modalities.names() if m in counts and m in model.towers]
    for m in wanted or ():
        if m not in shared:
            raise DataError(f"{m}: the items have {', '.join(counts)}, and the model has {', '.join(model.towers)}")
    names = [m for m in shared if m in wanted] if wanted else modalities.non_language(shared)
    if not names:
        raise DataError(f"nothing to embed: the items have {', '.join(counts)}, and the model has {', '.join(model.towers)}")
    planned = total if items is None else items
    if planned < 1:
        raise DataError(f"items {planned}: must be at least 1")
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
