"""Training from JPEG and FLAC shards, first epoch, against sentence-transformers, open_clip's own trainer, and a bare PyTorch
loop whose inputs lie in memory as tensors: each in a process of its own, in turn, medians (see speed_contenders.py).

    python -m pytest tests/benchmarks/test_bench_training.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 (the default)

There is no verb for this: what a user wants to know, pairs/s and the share of time spent waiting for data on own rows, is what
`mmtune train` prints; the rest needs the peers.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
from clap_init import clap_init
from clip_init import clip_init
from speed_contenders import PLANNED, Job
from speed_corpus import corpus

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
PEERS = {
    "image": {"sentence_transformers": [0, 1], "open_clip": [1, 2]},  # with so many workers each: the best counts
    "audio": {"sentence_transformers": [0, 1]},
}


def precision() -> str:
    """What ours takes on this machine; everybody gets the same."""
    import torch

    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def run(name: str, job: Job) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        job.out = f"{out}/run"
        argv = [sys.executable, str(Path(__file__).with_name("speed_contenders.py")), name, json.dumps(asdict(job))]
        done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind, rows_per_text", [("image", 1), ("image", 32), ("audio", 1), ("audio", 16)])
def test_training(kind, rows_per_text, tmp_path_factory):
    """rows_per_text: in a catalog many photos have the same words, in a plant many sounds; ours encodes them once a batch."""
    home = tmp_path_factory.getbasetemp().parent
    init = clip_init(home / "clip_init") if kind == "image" else clap_init(home / "clap_init")
    batch = 64 if kind == "image" else 32
    table, shards = corpus(home / f"speed-{kind}-{rows_per_text}", kind, PLANNED * batch, rows_per_text)
    job = Job(kind, str(init), str(table), str(shards), "", batch, precision())
    entrants = {"mmtune": ("mmtune", 2), "bare": ("bare", 0)}
    entrants |= {f"{n}, {w} workers": (n, w) for n, workers in PEERS[kind].items() for w in workers}
    seen: dict[str, list[dict[str, float]]] = {e: [] for e in entrants}
    for _ in range(ROUNDS):
        for entrant, (name, workers) in entrants.items():
            job.workers = workers
            seen[entrant].append(run(name, job))
    middle = {e: {k: statistics.median(r[k] for r in found) for k in found[0]} for e, found in seen.items()}
    speed = {e: m["pairs_per_s"] for e, m in middle.items()}
    peers = {e: v for e, v in speed.items() if e not in ("mmtune", "bare")}
    line = {
        "bench": f"training, {kind}, {rows_per_text} rows a text, batch {batch}, {job.precision}",
        **{k: {e: round(m[k], 1) for e, m in middle.items()} for k in ("pairs_per_s", "cpu_ms_per_pair", "memory_mb")},
        "best_peer": max(peers, key=peers.__getitem__),
        "over_best_peer": round(speed["mmtune"] / max(peers.values()), 2),
        "over_bare": round(speed["mmtune"] / speed["bare"], 2),
        "rounds": ROUNDS,
    }
    print(json.dumps(line))
    assert line["over_bare"] >= 0.9 and line["over_best_peer"] >= 1
