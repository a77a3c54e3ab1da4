"""Mining 100k x 100k x 256 against sentence-transformers' `mine_hard_negatives` with faiss, and against the search alone.

In turn, each in a process of its own, on the same vectors: python -m pytest tests/benchmarks/test_bench_mining.py -m bench -s
(BENCH_ROWS, BENCH_REPEATS in the environment change the size). One JSON line: seconds, processor seconds (which a busy machine
disturbs less) and the memory that each took on top of its process with libraries and vectors loaded; medians. Ours also has
groups to guard; the peer has only own pairs, which is less work. The peer's model is a stand-in that returns the vectors:
encoding costs nothing on either side.
"""

import json
import os
import statistics
import subprocess
import sys

import pytest

ROWS = int(os.environ.get("BENCH_ROWS", "100000"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
DIM, NEGATIVES = 256, 4

COMMON = """
import json, os, resource, sys, time, threading
import faiss
import numpy as np
n, dim, negatives = map(int, sys.argv[1:4])
rng = np.random.default_rng(0)
centre = rng.standard_normal((n // 20, dim), dtype=np.float32)
def vectors(seed):
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, dim), dtype=np.float32)
    x += centre[np.arange(n) % len(centre)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x
a, b = vectors(1), vectors(2)
def now():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
class Peak(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True); self.top = 0; self.on = True
    def run(self):
        while self.on:
            self.top = max(self.top, now()); time.sleep(0.01)
def measured(work):
    base, peak = now(), Peak()
    peak.start(); start, cpu = time.perf_counter(), time.process_time()
    count = work(); seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak.on = False; peak.join()
    out = {"seconds": seconds, "cpu": cpu, "base": base, "extra": peak.top - base, "peak": peak.top}
    print(json.dumps({**out, "negatives": count}))
"""

OURS = """
import torch
from mmtune.contracts import Embeddings
from mmtune.recipe.mining_block import MiningOptions
from mmtune.mining.mine_vectors import mine_vectors
ids = [f"{i:07d}" for i in range(n)]
labels = {"id": np.arange(1, n + 1), "group": np.arange(n) % (n // 4) + 1}
e = {m: Embeddings(ids, [None] * n, labels, v, "f") for m, v in (("x", a), ("y", b))}
o = MiningOptions(directions=["x->y"], negatives=negatives, window=10 * negatives, search={"memory_mb": 128},
                  guards={"relative_margin": 0.05, "trust_groups": False, "hub_cap": None}, record="mined")
measured(lambda: mine_vectors(e, sys.argv[4] + "/ours.parquet", o).mined)
"""

PEER = """
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives
class Card: base_model = None
class Model:
    device, model_card_data = torch.device("cpu"), Card()
    def encode_document(self, texts, **_): return b
    def encode_query(self, texts, **_): return a
    def get_embedding_dimension(self): return dim
    def similarity_pairwise(self, x, y): return (torch.as_tensor(x) * torch.as_tensor(y)).sum(1)
data = Dataset.from_dict({"anchor": [f"q{i}" for i in range(n)], "positive": [f"d{i}" for i in range(n)]})
measured(lambda: len(mine_hard_negatives(data, Model(), relative_margin=0.05, num_negatives=negatives, range_max=10 * negatives,
                                         use_faiss=True, output_format="triplet", verbose=False)))
"""

SEARCH = """
import faiss
def work():
    index = faiss.IndexFlatIP(dim); index.add(b)
    total = 0
    for i in range(0, n, 16384):
        total += index.search(a[i : i + 16384], 10 * negatives)[1].size
    return total
measured(work)
"""


def once(code, folder):
    """One run in a process of its own."""
    argv = [sys.executable, "-c", COMMON + code, str(ROWS), str(DIM), str(NEGATIVES), str(folder)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_against_sentence_transformers_and_the_search_alone(tmp_path):
    runs = {"ours": [], "sentence_transformers": [], "faiss_flat": []}
    for _ in range(REPEATS):
        for name, code in (("ours", OURS), ("sentence_transformers", PEER), ("faiss_flat", SEARCH)):
            runs[name].append(once(code, tmp_path))
    out = {"bench": "mining", "rows": ROWS, "dim": DIM, "repeats": REPEATS}
    for name, found in runs.items():
        out[name] = {k: statistics.median(r[k] for r in found) for k in found[0]}
    out["times_faster"] = out["sentence_transformers"]["seconds"] / out["ours"]["seconds"]
    out["of_search_alone"] = out["ours"]["seconds"] / out["faiss_flat"]["seconds"]
    out["of_peers_memory"] = out["ours"]["extra"] / out["sentence_transformers"]["extra"]
    out["of_peers_peak"] = out["ours"]["peak"] / out["sentence_transformers"]["peak"]
    print(json.dumps(out))
    assert out["ours"]["negatives"] >= 0.99 * out["sentence_transformers"]["negatives"]


SCALE = """
import json, os, sys, time, threading
import numpy as np
import torch
from mmtune.contracts import Embeddings
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import Positives
from mmtune.search.blocked import ExactSearch
n, dim, memory, queries = map(int, sys.argv[1:5])
path = sys.argv[5] + "/vectors"
v = np.memmap(path, np.float32, "w+", shape=(n, dim))
r = np.random.default_rng(0)
for i in range(0, n, 65536):
    x = r.standard_normal((min(65536, n - i), dim), dtype=np.float32)
    v[i : i + 65536] = x / np.linalg.norm(x, axis=1, keepdims=True)
v.flush()
v = np.memmap(path, np.float32, "r", shape=(n, dim))
e = Embeddings([f"{i:08d}" for i in range(n)], [None] * n, {"id": np.arange(1, n + 1), "group": np.arange(n) // 5 + 1}, v, "f")
items = unique_items("x", e)
positives = Positives(items, items)
torch._int_mm(torch.ones(64, dim, dtype=torch.int8), torch.ones(64, dim, dtype=torch.int8).t())
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
base, top, on = anonymous(), [0], [True]
def look():
    while on[0]:
        top[0] = max(top[0], anonymous()); time.sleep(0.01)
watch = threading.Thread(target=look); watch.start()
start = time.perf_counter()
search = ExactSearch(items.vectors, memory, k=30)
prepared = time.perf_counter()
for q in range(0, queries, search.block):
    at = np.arange(q, min(q + search.block, queries))
    search.top(items.vectors[at], positives.of(at))
end = time.perf_counter()
on[0] = False; watch.join()
out = {"extra": top[0] - base, "prepare": prepared - start, "seconds": end - prepared, "grid": type(search.grid).__name__}
print(json.dumps(out))
"""


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_a_million_candidates_stay_within_the_memory_configured(tmp_path):
    """Mining's memory beside the vectors (here: a file), however many queries: the scan holds nothing from block to block."""
    rows, dim = int(os.environ.get("BENCH_SCALE_ROWS", "1000000")), int(os.environ.get("BENCH_SCALE_DIM", "512"))
    memory, queries = 256, 2048
    argv = [sys.executable, "-c", SCALE, *map(str, (rows, dim, memory, queries)), str(tmp_path)]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])
    print(json.dumps({"bench": "mining_scale", "rows": rows, "dim": dim, "memory_mb": memory, "queries": queries, **found}))
    assert found["extra"] < memory * 2**20
