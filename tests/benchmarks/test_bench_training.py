"""Training from JPEG and FLAC shards, first epoch, against sentence-transformers, open_clip's own trainer, and a bare PyTorch
loop whose inputs lie in memory as tensors: each in a process of its own, in turn, medians (see speed_contenders.py).

    python -m pytest tests/benchmarks/test_bench_training.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 (the default)

There is no verb for this: what a user wants to know, pairs/s and the share of time spent waiting for data on own rows, is what
`mmtune train` prints; the rest needs the peers. notebooks/speed.ipynb draws it.
"""

import json
import os

import pytest
from speed_rounds import BATCH, compare, precision

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))


@pytest.mark.parametrize("kind, rows_per_text", [("image", 1), ("image", 32), ("audio", 1), ("audio", 16)])
def test_training(kind, rows_per_text, tmp_path_factory):
    """rows_per_text: in a catalog many photos have the same words, in a plant many sounds; ours encodes them once a batch."""
    for needed in ("sentence_transformers", "open_clip_train"):
        pytest.importorskip(needed, reason='needs pip install -e ".[bench]"')
    middle = compare(kind, rows_per_text, tmp_path_factory.getbasetemp().parent, ROUNDS)
    speed = {e: m["pairs_per_s"] for e, m in middle.items()}
    peers = {e: v for e, v in speed.items() if e not in ("mmtune", "bare")}
    line = {
        "bench": f"training, {kind}, {rows_per_text} rows a text, batch {BATCH[kind]}, {precision()}",
        **{k: {e: round(m[k], 1) for e, m in middle.items()} for k in ("pairs_per_s", "cpu_ms_per_pair", "memory_mb")},
        "best_peer": max(peers, key=peers.__getitem__),
        "over_best_peer": round(speed["mmtune"] / max(peers.values()), 2),
        "over_bare": round(speed["mmtune"] / speed["bare"], 2),
        "rounds": ROUNDS,
    }
    print(json.dumps(line))
    assert line["over_bare"] >= 0.9 and line["over_best_peer"] >= 1
