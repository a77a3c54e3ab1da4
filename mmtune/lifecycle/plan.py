"""Before a re-embedding: hours, bytes and price for so many items, measured on a sample of them on this machine."""

import time
from typing import Any

import numpy as np

from mmtune.errors import DataError

SAMPLE = 64
BESIDE = 120  # bytes of id, metadata and label an item, about
FACTOR = {"flat": 1.0, "hnsw": 2.0, "ivfpq": 1.2}


def plan(
    model: Any,
    data: Any,
    items: int | None = None,
    price_per_hour: float | None = None,
    *,
    modalities: Any = None,
    dim: int | None = None,
    sample: int = SAMPLE,
    batch_size: int = 64,
) -> dict[str, Any]:
    """{"items", "per_second", "hours", "bytes", "price", "by_modality"}; items: default those of `data`."""
    from mmtune import modalities as kinds
    from mmtune.artifact import load
    from mmtune.data.shards import open_data
    from mmtune.embed import embed_data, shared_modalities
    from mmtune.lifecycle.stores.faiss_index import plan_index

    found = load(model) if isinstance(model, str) else model
    found = found if dim is None else found.prefix(dim)
    rows = open_data(data) if isinstance(data, str) else data
    both = shared_modalities(found, rows, modalities)
    names = both if modalities else kinds.in_files(both)
    wanted = items or len(rows)
    if wanted < 1:
        raise DataError(f"items {wanted}: how many items are to be embedded?")
    by, seconds, size = {}, 0.0, 0
    for m in names:
        having = np.flatnonzero(rows.present[m])
        chosen = np.sort(np.random.default_rng(0).choice(having, min(sample, len(having)), replace=False))
        part = rows.subset(chosen)
        embed_data(found, part.subset(range(min(2, len(part)))), [m], batch_size)  # the first call is not like the others
        begin = time.perf_counter()
        embed_data(found, part, [m], batch_size)
        rate = len(part) / (time.perf_counter() - begin)
        count = round(wanted * len(having) / len(rows))
        index = plan_index("auto", count, found.dim)["index"]
        held = count * (found.dim * 4 + BESIDE)
        total = round(held * FACTOR[index] + count * (found.dim * 4 + 8))
        by[m] = {"items": count, "per_second": round(rate, 1), "hours": count / rate / 3600, "bytes": total, "index": index}
        by[m]["measured_on"] = len(part)
        seconds, size = seconds + count / rate, size + total
    hours = seconds / 3600
    price = None if price_per_hour is None else round(hours * price_per_hour, 2)
    document = {"items": wanted, "hours": hours, "bytes": size, "price": price, "price_per_hour": price_per_hour}
    return {**document, "fingerprint": found.fingerprint, "dim": found.dim, "by_modality": by}
