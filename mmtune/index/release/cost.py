"""Before a re-embedding: hours, bytes and price for so many items, measured on a sample of them on this machine."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.index.collection import Collection
    from mmtune.model.dual_encoder import Model

SAMPLE = 64
BESIDE = 120  # bytes of id, metadata and label an item, about
FACTOR = {"flat": 1.0, "hnsw": 2.0, "ivfpq": 1.2}
WARM = 2  # the first call is not like the others


def plan(
    model: Any,
    data: Any = None,
    items: int | None = None,
    price_per_hour: float | None = None,
    *,
    coll: "Collection | None" = None,
    modalities: Any = None,
    dim: int | None = None,
    sample: int = SAMPLE,
    batch_size: int = 64,
) -> dict[str, Any]:
    """{"items", "per_second", "hours", "bytes", "price", "by_modality"}; items: default those of `data`, or, without data, of
    the collection, whose contents that this model has embedded before are "known" and cost no time."""
    from mmtune import modalities as kinds
    from mmtune.index.stores.faiss_index import plan_index
    from mmtune.model.artifact import load

    found = load(model) if isinstance(model, str) else model
    found = found if dim is None else found.truncated(dim)
    if data is None and coll is None:
        raise DataError("plan: what is to be embedded? name a COLLECTION or --data DATA")
    total, counts, known, embed = _items(coll, found, batch_size) if data is None else _rows(data, found, batch_size)  # type: ignore[arg-type]
    both = [m for m in kinds.names() if m in counts and m in found.towers]
    for m in modalities or ():
        if m not in both:
            raise DataError(f"{m}: the items have {', '.join(counts)}, the model {', '.join(found.towers)}")
    names = [m for m in both if m in modalities] if modalities else kinds.non_language(both)
    if not names:
        raise DataError(f"nothing to index: the items have {', '.join(counts)}, the model {', '.join(found.towers)}")
    wanted = total if items is None else items
    if wanted < 1:
        raise DataError(f"items {wanted}: how many items are to be embedded?")
    by, seconds, size = {}, 0.0, 0
    for m in names:
        embed(m, WARM)
        begin = time.perf_counter()
        measured = embed(m, sample)
        rate = measured / (time.perf_counter() - begin)
        count = round(wanted * counts[m] / total)
        there = known(m) if items is None else 0
        index = plan_index("auto", count, found.dim)["index"]
        held = count * (found.dim * 4 + BESIDE)
        whole = round(held * FACTOR[index] + count * (found.dim * 4 + 8))
        hours = (count - there) / rate / 3600
        by[m] = {"items": count, "known": there, "per_second": round(rate, 1), "hours": hours, "bytes": whole, "index": index}
        by[m]["measured_on"] = measured
        seconds, size = seconds + 3600 * hours, size + whole
    hours = seconds / 3600
    price = None if price_per_hour is None else round(hours * price_per_hour, 2)
    document = {"items": wanted, "hours": hours, "bytes": size, "price": price, "price_per_hour": price_per_hour}
    return {**document, "fingerprint": found.fingerprint, "dim": found.dim, "by_modality": by}


Source = tuple[int, dict[str, int], Callable[[str], int], Callable[[str, int], int]]
"""How many items, how many of each modality, how many of them are embedded already, and: embed so many, say how many."""


def _rows(data: Any, model: "Model", batch_size: int) -> Source:
    """Of DATA."""
    from mmtune.data.shards.dataset import open_data
    from mmtune.embedding.embed_rows import embed_data

    rows = open_data(data) if isinstance(data, str) else data

    def embed(m: str, count: int) -> int:
        having = np.flatnonzero(rows.present[m])
        chosen = np.sort(np.random.default_rng(0).choice(having, min(count, len(having)), replace=False))
        embed_data(model, rows.subset(chosen), [m], batch_size)
        return len(chosen)

    return len(rows), {m: int(rows.present[m].sum()) for m in rows.modalities}, lambda m: 0, embed


def _items(coll: "Collection", model: "Model", batch_size: int) -> Source:
    """Of a collection."""
    from mmtune.index.catalog import labels_of
    from mmtune.index.item_vectors import embed_items

    held = coll.vector_cache(model.fingerprint, model.dim)

    def embed(m: str, count: int) -> int:
        items = coll.catalog.sample(m, count)
        embed_items(model, coll.catalog, items, m, batch_size)
        return len(items)

    def known(m: str) -> int:
        parts = ([i for i in items if m in i.contents] for items in coll.catalog.changed(0))
        return sum(len(p) - int(held.missing(m, labels_of(p, m)).sum()) for p in parts)

    return len(coll.catalog), coll.catalog.counts(), known, embed
