"""Mining among so many rows that IVF searches: vectors mapped from a file, a sample of the queries, memory and recall.

    MANY_ROWS=10000000 MANY_DIM=64 MANY_QUERIES=20000 python -m pytest tests/benchmarks/test_bench_many_rows.py -m bench -s

One JSON line: seconds and peak memory of each step. `anonymous` is the memory of the process without mapped files (peak of RssAnon),
`resident` all of it (peak of VmRSS); pages of the mapped file are given back when other programs need memory. 10 million rows of 64
dimensions need 2.6 GB of disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, DIM = int(os.environ.get("MANY_ROWS", "1000000")), int(os.environ.get("MANY_DIM", "64"))
QUERIES, MEMORY_MB = int(os.environ.get("MANY_QUERIES", "5000")), 256

SCRIPT = """
import json, os, sys, threading, time
import faiss
import numpy as np
from mmtune.contracts import Embeddings
from mmtune.mining.context import MiningContext
from mmtune.mining.nearest_candidates import NearestCandidates
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import Positives
n, dim, queries, memory = map(int, sys.argv[1:5])
faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
v = np.memmap(sys.argv[5] + "/vectors", np.float32, "w+", shape=(n, dim))
r = np.random.default_rng(0)
centres = r.standard_normal((n // 100, dim), dtype=np.float32)
for i in range(0, n, 65536):
    x = centres[r.integers(0, len(centres), min(65536, n - i))] + 0.5 * r.standard_normal((min(65536, n - i), dim), dtype=np.float32)
    v[i : i + 65536] = x / np.linalg.norm(x, axis=1, keepdims=True)
v.flush()
v = np.memmap(sys.argv[5] + "/vectors", np.float32, "r", shape=(n, dim))
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
peak, on = {"RssAnon": 0.0, "VmRSS": 0.0}, [True]
def look():
    while on[0]:
        for key in peak:
            peak[key] = max(peak[key], status(key))
        time.sleep(0.02)
watch = threading.Thread(target=look); watch.start()
out = {"before_mb": round(status("RssAnon"))}
def step(name, work):
    for key in peak:
        peak[key] = 0.0
    begin = time.perf_counter(); made = work()
    seconds = round(time.perf_counter() - begin, 2); time.sleep(0.05)
    out[name] = {"seconds": seconds, "anonymous_mb": round(peak["RssAnon"]), "resident_mb": round(peak["VmRSS"])}
    return made
labels = {"id": np.arange(1, n + 1), "group": np.arange(n) // 5 + 1}
options = MiningOptions(search={"method": "ivf", "memory_mb": memory})
embedded = Embeddings([f"{i:08d}" for i in range(n)], [None] * n, labels, v, "f")
items = step("items", lambda: unique_items("x", embedded))
positives = step("positives", lambda: Positives(items, items))
context = MiningContext("x->x", items, items, positives, options, None, {})
nearest = step("index", lambda: NearestCandidates(context))
asked = np.sort(r.choice(n, queries, replace=False))
def search():
    for at in range(0, queries, nearest.search.block):
        nearest.propose(asked[at : at + nearest.search.block])
step("search", search)
out["recall"] = round(step("recall against exact search", nearest.recall), 4)
on[0] = False; watch.join()
print(json.dumps(out))
"""


@pytest.mark.bench
@pytest.mark.timeout(6 * 3600)
def test_mining_among_many_rows(tmp_path):
    argv = [sys.executable, "-c", SCRIPT, *map(str, (ROWS, DIM, QUERIES, MEMORY_MB)), str(tmp_path)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    line = {"bench": "mining by IVF", "rows": ROWS, "dim": DIM, "queries": QUERIES, "vectors_mb": round(ROWS * DIM * 4 / 2**20)}
    print(json.dumps({**line, **found, "load": [round(x, 1) for x in os.getloadavg()]}))
    assert found["recall"] > 0.9
