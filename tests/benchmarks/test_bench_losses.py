"""Large batches: gradient caching and the tiled loss, in time and in memory. Each prints one JSON line.

pytest tests/benchmarks/test_bench_losses.py -m bench -s
MMTUNE_BENCH_TILED=65536 MMTUNE_BENCH_DENSE=16384 (rows), MMTUNE_BENCH_ROUNDS=3 ...   (these are the defaults)
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from clip_init import clip_init

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
TILED = int(os.environ.get("MMTUNE_BENCH_TILED", "65536"))
DENSE = int(os.environ.get("MMTUNE_BENCH_DENSE", "16384"))

CACHING = """
import json, random, sys, time
import numpy as np, torch
from PIL import Image
kind, init, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
N, MICRO = 1024, 64

def level(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024

rng, nprng = random.Random(0), np.random.default_rng(0)
pictures = [Image.fromarray(nprng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(N)]
words = ["red", "round", "left", "zipper", "cotton", "small", "dark", "metal", "stitch", "blue", "pair", "long"]
captions = [f"{i} " + " ".join(rng.choices(words, k=6)) for i in range(N)]

def ours():
    import mmtune
    from mmtune.contracts import Batch
    from mmtune.training.build_objective import build_objective
    from mmtune.training.large_batch.item_slices import slice_inputs
    from mmtune.training.step import forward_backward
    model = mmtune.load(f"hf:{init}", device="cpu").train()
    pair = ("image", "text")
    objective = build_objective([{"loss": "info_nce"}], [pair])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)

    def batch(n):
        signals = {"image": pictures[:n], "text": captions[:n]}
        made = {m: model.towers[m].preprocess for m in signals}
        inputs = {m: p.collate([p(s) for s in signals[m]]) for m, p in made.items()}
        rows = torch.arange(n)
        labels = {k: rows + 1 for k in ("id", "image", "text")} | {"group": torch.zeros(n, dtype=torch.int64)}
        return Batch(captions[:n], rows, torch.ones(n, dtype=torch.bool), inputs, {m: rows for m in inputs}, labels)

    def part(whole, i, j):
        rows = torch.arange(j - i)
        cut = {m: slice_inputs(x, i, j) for m, x in whole.inputs.items()}
        labels = {k: v[i:j] for k, v in whole.labels.items()}
        return Batch(whole.ids[i:j], rows, whole.is_query[i:j], cut, {m: rows for m in cut}, labels)

    def step(b, micro):
        optimizer.zero_grad(set_to_none=True)
        forward_backward(model, b, objective, micro_batch_size=micro)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return batch, part, step

if kind.startswith("memory"):
    torch.set_num_threads(1)
    batch, part, step = ours()
    small = batch(8)
    step(small, None)  # gradients and optimizer state belong to the model's own
    n, micro = (MICRO, None) if kind == "memory plain" else (N, MICRO)
    base = level("VmRSS")
    whole = batch(n)
    open("/proc/self/clear_refs", "w").write("5")
    for _ in range(2):
        step(whole, micro)
    print(json.dumps(level("VmHWM") - base))
    sys.exit()

torch.set_num_threads(2)
batch, part, step = ours()
whole = batch(N)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
peer = SentenceTransformer(init, device="cpu").train()
features = [peer.preprocess(pictures), peer.preprocess(captions)]
both = dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
peer_optimizer = torch.optim.AdamW(peer.parameters(), 1e-5, fused=True)
peer_plain = losses.MultipleNegativesRankingLoss(peer, **both)
peer_cached = losses.CachedMultipleNegativesRankingLoss(peer, mini_batch_size=MICRO, **both)

def peer_step(loss, i, j):
    peer_optimizer.zero_grad(set_to_none=True)
    cut = [{k: v[i:j] if isinstance(v, torch.Tensor) else v for k, v in f.items()} for f in features]
    loss(cut, None).backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    peer_optimizer.step()

parts = [part(whole, i, i + MICRO) for i in range(0, N, MICRO)]
ways = {
    "plain": lambda: [step(b, None) for b in parts],
    "cached": lambda: step(whole, MICRO),
    "peer plain": lambda: [peer_step(peer_plain, i, i + MICRO) for i in range(0, N, MICRO)],
    "peer cached": lambda: peer_step(peer_cached, 0, N),
}
step(parts[0], None); step(parts[0], 32); peer_step(peer_plain, 0, MICRO); peer_step(peer_cached, 0, MICRO)
seconds = {k: [] for k in ways}
for _ in range(rounds):
    for k, way in ways.items():  # in turn
        begin = time.perf_counter(); way(); seconds[k].append(time.perf_counter() - begin)
print(json.dumps(seconds))
"""

TILES = """
import json, sys, time
import torch
from mmtune.losses.tiled import tiled_info_nce
large, n_dense, rounds = map(int, sys.argv[1:])
torch.set_num_threads(2)

def level(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024

def vectors(n):
    torch.manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(n, 512), dim=1).requires_grad_() for _ in range(2)]

def dense(a, b, scale):
    i = torch.arange(len(a))
    logits = a @ b.T * scale
    return (torch.nn.functional.cross_entropy(logits, i) + torch.nn.functional.cross_entropy(logits.T, i)) / 2

def tiles(a, b, scale):
    i, share = torch.arange(len(a)), torch.full((len(a),), 0.5 / len(a))
    return tiled_info_nce(a, b, (i, i), (share, share), (scale, scale))

def run(way, n):
    a, b = vectors(n)
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    base = level("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    begin = time.perf_counter()
    loss = way(a, b, scale)
    loss.backward()
    return time.perf_counter() - begin, level("VmHWM") - base, [loss.detach(), a.grad, b.grad, scale.grad]

run(tiles, 2048), run(dense, 2048)
found = {"dense": [], "tiled": []}
error = []
for _ in range(rounds):
    *d, want = run(dense, n_dense)
    *t, got = run(tiles, n_dense)
    error = [float((x - y).norm() / y.norm()) for x, y in zip(got, want)]
    found["dense"].append(d), found["tiled"].append(t)
    del want, got
seconds, memory, _ = run(tiles, large)
print(json.dumps({"at_dense_size": found, "error": error, "seconds": seconds, "memory": memory}))
"""


def work(code: str, *arguments: object) -> object:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_gradient_caching(tmp_path_factory):
    """Batch 1024 in micro-batches of 64: at most 1.25 times a batch-64 step's memory and 1.5 times its time a pair."""
    init = clip_init(Path(tmp_path_factory.getbasetemp().parent / "clip_init"))
    memory = {k: work(CACHING, f"memory {k}", init, 0) for k in ("plain", "cached")}
    seconds = {k: statistics.median(v) for k, v in work(CACHING, "time", init, ROUNDS).items()}
    line = {
        "bench": "gradient caching, 1024 in 64s, CLIP 9.9M",
        "memory_mb": {k: round(v) for k, v in memory.items()},
        "memory_ratio": round(memory["cached"] / memory["plain"], 3),
        "pairs_per_second": {k: round(1024 / v, 1) for k, v in seconds.items()},
        "time_ratio": round(seconds["cached"] / seconds["plain"], 3),
        "peer_time_ratio": round(seconds["peer cached"] / seconds["peer plain"], 3),
        "ours_over_peer_cached": round(seconds["peer cached"] / seconds["cached"], 2),
    }
    print(json.dumps(line))
    assert line["memory_ratio"] <= 1.25 and line["time_ratio"] <= 1.5


def test_tiled_info_nce():
    """65,536 x 65,536 x 512 in both directions: at most 512 MB more, gradients of both sides included, 1.3 of dense a logit."""
    found = work(TILES, TILED, DENSE, ROUNDS)
    at = {k: statistics.median(s for s, _ in v) for k, v in found["at_dense_size"].items()}
    scaled = at["dense"] * (TILED / DENSE) ** 2
    line = {
        "bench": f"tiled InfoNCE, {TILED} x {TILED} x 512, float32, both directions, forward and backward",
        "memory_mb": round(found["memory"]),
        "seconds": round(found["seconds"], 1),
        "dense_scaled_seconds": round(scaled, 1),
        "time_ratio": round(found["seconds"] / scaled, 3),
        "time_ratio_at_dense_size": round(at["tiled"] / at["dense"], 3),
        "dense_rows": DENSE,
        "dense_memory_mb": round(max(m for _, m in found["at_dense_size"]["dense"])),
        "relative_error": {k: f"{e:.1e}" for k, e in zip(("loss", "a", "b", "scale"), found["error"], strict=True)},
    }
    print(json.dumps(line))
    assert line["memory_mb"] <= 512 and line["time_ratio"] <= 1.3
