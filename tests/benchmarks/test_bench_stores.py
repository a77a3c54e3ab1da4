"""Every store and index on 200k vectors x 128: time to load and to build, size, latency, recall@10 against the full search.

python -m pytest tests/benchmarks/test_bench_stores.py -m bench -s   (BENCH_ROWS, BENCH_DIM, BENCH_QUERIES change the size)
One JSON line a store and index; the table stands on standard error. Vectors are families of alike things (`clustered`), queries
come from the same families and are not in the store. Latency: one query at a time, k 10, in milliseconds; `filtered`: with
a filter that admits one row of a hundred. Qdrant runs in the client's local mode, exact and in one process: a server was
not there to measure, so its graph is not in the table.
"""

import json
import os
import statistics
import sys
import time

import numpy as np
import pytest

from mmtune.index.query.filters import parse
from mmtune.index.stores import create_store, open_store
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order
from tests.support.store_helpers import clustered, place, postgres

ROWS = int(os.environ.get("BENCH_ROWS", "200000"))
DIM = int(os.environ.get("BENCH_DIM", "128"))
QUERIES = int(os.environ.get("BENCH_QUERIES", "200"))
LEAST_RECALL = 0.95
INDEXES = {
    "faiss": ["flat", "hnsw", "ivfpq"],
    "lancedb": ["flat", "hnsw", "ivfpq"],
    "pgvector": ["flat", "hnsw"],
    "qdrant": ["flat"],
    "qdrant-edge": ["flat", "hnsw"],
}


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    every = clustered(rng, ROWS + QUERIES, DIM)
    ids = [f"sku-{i:07d}" for i in range(ROWS)]
    meta = [{"shelf": int(s), "price": float(p)} for s, p in zip(rng.integers(100, size=ROWS), rng.random(ROWS), strict=True)]
    vectors, queries = every[:ROWS], every[ROWS:]
    _, found = topk(queries, vectors, 10, order=tie_order(ids))
    return ids, vectors, meta, queries, [[ids[j] for j in row] for row in found]


def ask(store, queries, where=None):
    """(answers, milliseconds of each)."""
    answers, times = [], []
    for q in queries:
        begin = time.perf_counter()
        answers += store.search(q[None], 10, where)
        times.append(1000 * (time.perf_counter() - begin))
    return answers, times


@pytest.mark.bench
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", INDEXES)
def test_build_size_latency_and_recall(kind, corpus, tmp_path):
    ids, vectors, meta, queries, right = corpus
    with postgres() if kind == "pgvector" else open(os.devnull) as url:
        at = place(kind, tmp_path, url if isinstance(url, str) else None)
        store, begin = create_store(at, DIM, "bench"), time.perf_counter()
        for start in range(0, ROWS, 10_000):
            some = slice(start, start + 10_000)
            store.upsert(ids[some], vectors[some], meta[some])
        load = time.perf_counter() - begin
        for index in INDEXES[kind]:
            begin = time.perf_counter()
            built = store.build(index)
            seconds = time.perf_counter() - begin
            store.close()
            store = open_store(at)
            ask(store, queries[:5])
            answers, times = ask(store, queries)
            _, filtered = ask(store, queries[:50], parse("shelf = 7"))
            hits = [len({h.id for h in a} & set(r)) / 10 for a, r in zip(answers, right, strict=True)]
            out = {"store": kind, "asked": index, "built": built, "rows": ROWS, "dim": DIM, "recall@10": statistics.mean(hits)}
            out |= {"load_s": load, "build_s": seconds, "MB": store.size() / 1e6, "median_ms": statistics.median(times)}
            out |= {"p95_ms": float(np.percentile(times, 95)), "filtered_ms": statistics.median(filtered)}
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in out.items()}), flush=True)
            numbers = " ".join(f"{k} {out[k]:9.3f}" for k in ("load_s", "build_s", "MB", "median_ms", "p95_ms", "filtered_ms"))
            print(f"{kind:9}{built['index']:6} recall@10 {out['recall@10']:.4f} {numbers}", file=sys.stderr)
            exact = built["index"] == "flat"
            assert out["recall@10"] == 1 if exact else out["recall@10"] >= LEAST_RECALL, out
        store.drop()
        store.close()
