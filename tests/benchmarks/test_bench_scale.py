"""How time grows with rows and dimensions, as fitted exponents; and an index built in less memory than its vectors.

python -m pytest tests/benchmarks/test_bench_scale.py -m bench -s     prints JSON lines; SCALE_PLOT=FILE.png draws them.
Every size is measured three times, sizes in turn; an exponent is the slope of log(median seconds) over log(size).
SCALE_ROWS="10000 40000 160000", SCALE_DIMS="64 128 256 512" and SCALE_BIG=1000000 change the sizes,
SCALE_WORK="mining,build ivfpq" what is measured.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmtune.contracts import Embeddings
from mmtune.index.stores.faiss_index import make_index, plan_index
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import Positives
from mmtune.search.blocked import ExactSearch
from mmtune.search.exact import topk
from tests.support.store_helpers import clustered

ROWS = [int(x) for x in os.environ.get("SCALE_ROWS", "10000 20000 40000 80000 160000").split()]
DIMS = [int(x) for x in os.environ.get("SCALE_DIMS", "64 128 256 512").split()]
BIG = int(os.environ.get("SCALE_BIG", "1000000"))
QUERIES, MINED, REPEATS = 200, 2048, 3


def exact(x: np.ndarray, queries: np.ndarray, root: Path):
    return lambda: topk(queries, x, 10)


def mining(x: np.ndarray, queries: np.ndarray, root: Path):
    """As many queries as fit any size: the cost of one, by the number of candidates."""
    n = len(x)
    labels = {"id": np.arange(1, n + 1), "group": np.arange(n) // 5 + 1}
    embedded = Embeddings([f"{i:07d}" for i in range(n)], [None] * n, labels, x, "f")
    items = unique_items("a", embedded)
    positives, asked = Positives(items, items), np.arange(MINED)

    def run():
        search = ExactSearch(items.vectors, 1024, "cpu", 30)
        for at in range(0, len(asked), search.block):
            q = asked[at : at + search.block]
            search.top(items.vectors[q], positives.of(q))

    return run


def building(kind: str):
    def prepare(x: np.ndarray, queries: np.ndarray, root: Path):
        def run():
            (root / "i.index").unlink(missing_ok=True)
            make_index(x, plan_index(kind, *x.shape), root / "i")

        return run

    return prepare


WORK = {"exact search": exact, "mining": mining, "build hnsw": building("hnsw"), "build ivfpq": building("ivfpq")}


def slope(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(work, sizes: list[tuple[int, int]], root: Path) -> list[float]:
    prepared = []
    for n, dim in sizes:
        every = clustered(np.random.default_rng(0), n + QUERIES, dim)
        (place := root / f"{n}-{dim}").mkdir(parents=True, exist_ok=True)
        prepared.append(work(np.ascontiguousarray(every[:n]), np.ascontiguousarray(every[n:]), place))
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(REPEATS):
        for run, taken in zip(prepared, times, strict=True):
            begin = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(t) for t in times]


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_how_time_grows(tmp_path):
    found = []
    for what in os.environ.get("SCALE_WORK", ",".join(WORK)).split(","):
        work = WORK[what]
        for axis, sizes in (("rows", [(n, 128) for n in ROWS]), ("dims", [(ROWS[len(ROWS) // 2], d) for d in DIMS])):
            values = [s[axis == "dims"] for s in sizes]
            seconds = measure(work, sizes, tmp_path / what.replace(" ", "-") / axis)
            found.append({"bench": f"scale: {what}", "axis": axis, "sizes": values, "seconds": [round(s, 4) for s in seconds]})
            found[-1]["exponent"] = round(slope(values, seconds), 3)
            print(json.dumps(found[-1]), flush=True)
    if path := os.environ.get("SCALE_PLOT"):
        draw(found, path)
    assert all(0 < f["exponent"] < 2 for f in found), "something grows with the square of its size, or not at all"


def draw(found: list[dict], path: str) -> None:
    """Seconds over sizes, both logarithmic, rows left and dimensions right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, place, title in (("rows", axes[0], "rows (128 dimensions)"), ("dims", axes[1], "dimensions")):
        for f in (f for f in found if f["axis"] == axis):
            name = f["bench"].removeprefix("scale: ")
            place.loglog(f["sizes"], f["seconds"], "o-", label=f"{name}: {f['exponent']:.2f}")
        place.set(xlabel=title, ylabel="seconds")
        place.legend(title="exponent", fontsize=8)
    figure.savefig(path, dpi=110)


HELD = """
import json, os, sys, threading, time
import numpy as np
from pathlib import Path
from mmtune.index.stores import create_store, open_store
from tests.support.store_helpers import place
root, file, n, dim, memory, index = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
x = np.memmap(file, np.float32, "r", shape=(n, dim))
at = place("faiss", root, None)
store = create_store(at, dim, "f")
for i in range(0, n, 32768):
    part = x[i : i + 32768]
    store.upsert([f"sku-{i + j:09d}" for j in range(len(part))], part, [{}] * len(part))
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
import faiss
faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
base, top, on = anonymous(), [0], [True]
def look():
    while on[0]:
        top[0] = max(top[0], anonymous()); time.sleep(0.005)
watch = threading.Thread(target=look); watch.start()
begin = time.perf_counter()
built = store.build(index, memory_mb=memory)
seconds = time.perf_counter() - begin
on[0] = False; watch.join()
print(json.dumps({"extra_mb": (top[0] - base) / 2**20, "build_s": seconds, "built": built}))
"""


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_a_large_index_is_built_in_less_memory_than_its_vectors(tmp_path):
    """BIG x 128: memory beside the mapped files while it is built, and the answers re-ranked from these files."""
    from mmtune.index.stores import open_store
    from tests.support.store_helpers import place

    dim, memory = 128, int(os.environ.get("SCALE_MEMORY_MB", "256"))
    every = clustered(np.random.default_rng(0), BIG + QUERIES, dim)
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(BIG, dim))
    x[:], queries = every[:BIG], np.ascontiguousarray(every[BIG:])
    x.flush()
    del every
    argv = [sys.executable, "-c", HELD, str(tmp_path), str(tmp_path / "x"), *map(str, (BIG, dim, memory)), "ivfpq"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    held = json.loads(done.stdout.strip().splitlines()[-1])
    store = open_store(place("faiss", tmp_path, None))
    times, answers = [], []
    for q in queries:
        begin = time.perf_counter()
        answers += store.search(q[None], 10)
        times.append(1000 * (time.perf_counter() - begin))
    _, right = topk(queries, np.asarray(x), 10)
    ids = [{f"sku-{j:09d}" for j in row} for row in right.tolist()]
    recall = statistics.mean(len({h.id for h in a} & want) / 10 for a, want in zip(answers, ids, strict=True))
    out = {"bench": "index past memory", "rows": BIG, "dim": dim, "vectors_mb": BIG * dim * 4 / 2**20, "memory_mb": memory}
    out |= {**held, "recall@10": recall, "median_ms": statistics.median(times), "store_mb": store.size() / 2**20}
    print(json.dumps(out), flush=True)
    beside = BIG * 2 * (4 + 9 + 16) / 2**20  # two copies of the ids, and places
    assert held["extra_mb"] < memory + beside, out
    assert recall >= 0.95, out
