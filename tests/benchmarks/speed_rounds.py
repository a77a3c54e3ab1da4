"""Contenders of speed_contenders.py in turn, each in a process of its own, and their medians."""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from clap_init import clap_init
from clip_init import clip_init
from speed_contenders import PLANNED, Job
from speed_corpus import corpus

BATCH = {"image": 64, "audio": 32}
PEERS = {
    "image": {"sentence_transformers": [0, 1], "open_clip": [1, 2]},  # with so many workers each: the best counts
    "audio": {"sentence_transformers": [0, 1]},
}
NEEDS = {"sentence_transformers": "sentence_transformers", "open_clip": "open_clip_train"}


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


def compare(kind: str, rows_per_text: int, home: Path, rounds: int) -> dict[str, dict[str, float]]:
    """{"mmtune" | "bare" | "peer, N workers": {"pairs_per_s", "cpu_ms_per_pair", "memory_mb"}}: medians over the rounds.

    kind: image or audio; `home` keeps the corpus and the weights; a peer that is not installed does not take part."""
    init = clip_init(home / "clip_init") if kind == "image" else clap_init(home / "clap_init")
    table, shards = corpus(home / f"speed-{kind}-{rows_per_text}", kind, PLANNED * BATCH[kind], rows_per_text)
    job = Job(kind, str(init), str(table), str(shards), "", BATCH[kind], precision())
    entrants = {"mmtune": ("mmtune", 2), "bare": ("bare", 0)}
    for name, workers in PEERS[kind].items():
        if importlib.util.find_spec(NEEDS[name]):
            entrants |= {f"{name}, {w} workers": (name, w) for w in workers}
    seen: dict[str, list[dict[str, float]]] = {e: [] for e in entrants}
    for _ in range(rounds):
        for entrant, (name, workers) in entrants.items():
            job.workers = workers
            seen[entrant].append(run(name, job))
    return {e: {k: statistics.median(r[k] for r in found) for k in found[0]} for e, found in seen.items()}
