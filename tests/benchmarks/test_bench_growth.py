"""How cost grows: a training step and a tiled loss with the batch, embedding with the rows; each with a fitted exponent.

    python -m pytest tests/benchmarks/test_bench_growth.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3, MMTUNE_BENCH_PLOT=growth.png (nothing is drawn without it)

Processor time and memory on top of what lay there, medians of runs in turn. An exponent is the slope of a line through the
logarithms of the larger half of the sizes, where what does not grow has little weight left.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_init import clip_init
from speed_corpus import corpus

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))

COMMON = """
import json, os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
import mmtune
import numpy as np, torch
init, shards, sizes, rounds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)

def level(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024

def grown(make):
    found = {n: [] for n in sizes}
    make(sizes[0])()
    for _ in range(rounds):
        for n in sizes:
            work = make(n)
            base = level("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")
            begin = time.process_time()
            work()
            found[n].append([time.process_time() - begin, level("VmHWM") - base])
    print(json.dumps(found))
"""

STEP = """
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.data.shards.dataset import open_data
from mmtune.data.loader.loader import Loader
from mmtune.training.build_objective import build_objective
from mmtune.training.step import forward_backward
pair = ("image", "text")
model = mmtune.load(f"hf:{init}").train()
objective = build_objective([{"loss": "info_nce"}], [pair])
optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
stream = Loader(WeightedConcat([open_data(shards)], [1.0]), {m: model.towers[m].preprocess for m in pair}, {}, cache_bytes=1 << 30)
micro = int(sys.argv[5]) or None

def make(n):
    batch = stream.batch(np.arange(n), 0)
    def work():
        optimizer.zero_grad(set_to_none=True)
        forward_backward(model, batch, objective, micro_batch_size=micro)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return work

grown(make)
"""

LOSS = """
from mmtune.losses.tiled import tiled_info_nce

def make(n):
    a, b = (torch.nn.functional.normalize(torch.randn(n, 256), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    i, share = torch.arange(n), torch.full((n,), 0.5 / n)
    return lambda: tiled_info_nce(a, b, (i, i), (share, share), (scale, scale)).backward()

grown(make)
"""

EMBED = """
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
model, data = mmtune.load(f"hf:{init}"), open_data(shards)
parts = {n: data.subset(range(n)) for n in sizes}
grown(lambda n: lambda: embed_data(model, parts[n], ["image"]))
"""

WORK = {
    "training step, batch": (STEP, [16, 32, 64, 128, 256, 512], ["0"]),
    "training step in 64s, batch": (STEP, [64, 128, 256, 512], ["64"]),
    "tiled InfoNCE, 256 dims, batch": (LOSS, [1024, 2048, 4096, 8192, 16384], []),
    "embedding photos, rows": (EMBED, [64, 128, 256, 512], []),
}


def exponent(sizes: list[int], values: list[float]) -> float:
    half = len(sizes) // 2
    return round(float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0]), 2)


def grow(home: Path, rounds: int) -> dict:
    """{what: {"sizes", "cpu_seconds", "memory_mb", "exponent"}}."""
    init, (_, shards) = clip_init(home / "clip_init"), corpus(home / "input-image", "image", 512)
    curves = {}
    for name, (code, sizes, more) in WORK.items():
        argv = [sys.executable, "-c", COMMON + code, str(init), str(shards), json.dumps(sizes), str(rounds), *more]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        runs = json.loads(done.stdout.strip().splitlines()[-1])
        seconds, memory = ([round(statistics.median(r[k] for r in runs[str(n)]), 4) for n in sizes] for k in (0, 1))
        curves[name] = {"sizes": sizes, "cpu_seconds": seconds, "memory_mb": memory, "exponent": exponent(sizes, seconds)}
    return curves


def test_growth(tmp_path_factory):
    """Time grows as it should: a step and embedding in proportion, all pairs with the square; cached steps in flat memory."""
    curves = grow(tmp_path_factory.getbasetemp().parent, ROUNDS)
    print(json.dumps({"bench": "growth", **curves, "rounds": ROUNDS}))
    if path := os.environ.get("MMTUNE_BENCH_PLOT"):
        import matplotlib

        matplotlib.use("Agg")
        draw(curves).savefig(path, dpi=110)
    by = {name: c["exponent"] for name, c in curves.items()}
    assert all(0.7 < by[n] < 1.3 for n in by if "InfoNCE" not in n), by
    assert 1.6 < by["tiled InfoNCE, 256 dims, batch"] < 2.3, by
    cached, plain = (curves[n]["memory_mb"][-1] for n in ("training step in 64s, batch", "training step, batch"))
    assert cached < plain / 2, (cached, plain)


def draw(curves: dict):
    """A matplotlib figure: one small plot a curve, both axes logarithmic."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.2), layout="constrained")
    for axis, (name, c) in zip(axes, curves.items(), strict=True):
        axis.loglog(c["sizes"], c["cpu_seconds"], "o-")
        axis.set(title=f"{name}\nexponent {c['exponent']}", xlabel=name.rsplit(", ", 1)[1], ylabel="processor seconds")
        axis.set_xticks(c["sizes"], [f"{n:,}" for n in c["sizes"]])
        axis.set_xticks([], minor=True)
        axis.grid(True, alpha=0.3)
    return figure
