"""Evaluation beside a raw faiss search of the same vectors: time and memory. Each prints one JSON line.

pytest tests/benchmarks/test_bench_evaluate.py -m bench -s
MMTUNE_BENCH=20000x1000000x256 ...   (the size; this is the default)
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
SIZE = os.environ.get("MMTUNE_BENCH", "20000x1000000x256")

WORK = """
import json, sys, time
import numpy as np
from mmtune.contracts import Embeddings
kind, (q, n, dim), path = sys.argv[1], map(int, sys.argv[2].split("x")), sys.argv[3]

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024

def reset():
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far was the generator's
    return peak()

# candidates in groups of 1 to 5; a query is its group's centre with noise, so answers lie from the top down to the middle
rng = np.random.default_rng(0)
group = np.sort(rng.integers(1, n // 3, n)).astype(np.int64)
d = rng.standard_normal((n, dim), dtype=np.float32)
centre = rng.standard_normal((n // 3 + 1, dim), dtype=np.float32)
for a in range(0, n, 50_000):
    part = d[a:a + 50_000]
    part += 0.7 * centre[group[a:a + 50_000]]
    part /= np.linalg.norm(part, axis=1, keepdims=True)
asked = rng.choice(group, q).astype(np.int64)
x = centre[asked] + np.exp(rng.uniform(-1, 2, (q, 1))).astype(np.float32) * rng.standard_normal((q, dim), dtype=np.float32)
x /= np.linalg.norm(x, axis=1, keepdims=True)
del centre
if kind == "ours":
    ids = [f"d{i:07d}" for i in range(n)]
    left = Embeddings([f"q{i:05d}" for i in range(q)], [None] * q, {"id": np.arange(n + 1, n + q + 1), "group": asked}, x)
    right = Embeddings(ids, [None] * n, {"id": np.arange(1, n + 1), "group": group}, d)
    from mmtune.evaluation import evaluate_vectors
    before = reset()
    begin, cpu = time.perf_counter(), time.process_time()
    found = evaluate_vectors({"a": left, "b": right}, pairs=[("a", "b")], ks=(1, 5, 10, 100))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    metrics = found.directions["a->b"].metrics
elif kind == "faiss":
    import faiss
    index = faiss.IndexFlatIP(dim)
    index.add(d)
    del d
    before = reset()
    begin, cpu = time.perf_counter(), time.process_time()
    scores, at = index.search(x, 100)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    hit = group[at] == asked[:, None]
    metrics = {f"hit@{k}": float(hit[:, :k].any(1).mean()) for k in (1, 5, 10, 100)}
elif kind == "ranx":
    import faiss
    from ranx import Qrels, Run, evaluate
    before, begin, cpu = reset(), time.perf_counter(), time.process_time()
    scores, at = faiss.knn(x, d, 100, metric=faiss.METRIC_INNER_PRODUCT)
    known = {}
    for i, g in enumerate(group.tolist()):
        known.setdefault(g, []).append(i)
    truth = Qrels({f"q{i}": {f"d{j}": 1 for j in known[g]} for i, g in enumerate(asked.tolist())})
    pairs = enumerate(zip(at.tolist(), scores.tolist()))
    run = Run({f"q{i}": {f"d{j}": float(s) for j, s in zip(a, b)} for i, (a, b) in pairs})
    names = [f"{m}@{k}" for m in ("hit_rate", "recall", "precision", "ndcg") for k in (1, 5, 10, 100)] + ["mrr", "map"]
    metrics = {k.replace("hit_rate", "hit"): float(v) for k, v in evaluate(truth, run, names).items()}
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
elif kind == "ir_measures":
    import faiss, ir_measures
    from ir_measures import AP, P, R, RR, Success, nDCG
    before, begin, cpu = reset(), time.perf_counter(), time.process_time()
    scores, at = faiss.knn(x, d, 100, metric=faiss.METRIC_INNER_PRODUCT)
    known = {}
    for i, g in enumerate(group.tolist()):
        known.setdefault(g, []).append(i)
    truth = {f"q{i}": {f"d{j}": 1 for j in known[g]} for i, g in enumerate(asked.tolist())}
    found = {f"q{i}": {f"d{j}": s for j, s in zip(a, b)} for i, (a, b) in enumerate(zip(at.tolist(), scores.tolist()))}
    names = {f"{n}@{k}": m @ k for n, m in (("hit", Success), ("recall", R), ("precision", P), ("ndcg", nDCG))
             for k in (1, 5, 10, 100)} | {"mrr": RR, "map": AP}
    scored = ir_measures.calc_aggregate(list(names.values()), truth, found)
    metrics = {n: float(scored[m]) for n, m in names.items()}  # mrr and map of the first 100 only
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
else:
    import torch
    from torchmetrics.functional.retrieval import retrieval_average_precision as ap
    from torchmetrics.functional.retrieval import retrieval_hit_rate as hit
    from torchmetrics.functional.retrieval import retrieval_normalized_dcg as ndcg
    before, begin, cpu = reset(), time.perf_counter(), time.process_time()
    D, values = torch.from_numpy(d), []
    for i in range(q):
        s, t = D @ torch.from_numpy(x[i]), torch.from_numpy(group == asked[i])
        values.append([*(hit(s, t, top_k=k) for k in (1, 5, 10, 100)), ndcg(s, t, top_k=10), ap(s, t)])
    names = ["hit@1", "hit@5", "hit@10", "hit@100", "ndcg@10", "map"]
    metrics = dict(zip(names, np.array(values, dtype=float).mean(0).tolist()))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
json.dump({"seconds": seconds, "cpu_seconds": cpu, "above_mib": peak() - before, "metrics": metrics}, open(path, "w"))
"""


def run(kind, size, tmp_path):
    """One measurement in a process of its own, so that peak memory is its own."""
    out = tmp_path / f"{kind}.json"
    subprocess.run([sys.executable, "-c", WORK, kind, size, str(out)], check=True)
    return json.loads(out.read_text())


def test_all_metrics_beside_a_raw_faiss_search(tmp_path):
    pytest.importorskip("faiss")
    faiss, ours = run("faiss", SIZE, tmp_path), run("ours", SIZE, tmp_path)
    ratio = ours["seconds"] / faiss["seconds"]
    print(json.dumps({"size": SIZE, "ours": ours, "faiss": faiss, "ratio": ratio, "cores": os.cpu_count()}))
    for k in (1, 5, 10, 100):
        assert ours["metrics"][f"hit@{k}"] == pytest.approx(faiss["metrics"][f"hit@{k}"], abs=2e-4)
    assert ours["above_mib"] <= 1024
    assert ratio <= 1.2


@pytest.mark.parametrize(
    ("kind", "size"), [("ir_measures", "5000x100000x256"), ("ranx", "5000x100000x256"), ("torchmetrics", "500x100000x256")]
)
def test_beside_other_libraries_at_a_size_they_manage(kind, size, tmp_path):
    pytest.importorskip(kind, reason=f"{kind} is not installed")
    other, ours = run(kind, size, tmp_path), run("ours", size, tmp_path)
    print(json.dumps({"size": size, "ours": ours, kind: other, "ratio": ours["seconds"] / other["seconds"]}))
    for name in ("hit@1", "hit@10", "ndcg@10"):
        assert ours["metrics"][name] == pytest.approx(other["metrics"][name], abs=2e-4)
