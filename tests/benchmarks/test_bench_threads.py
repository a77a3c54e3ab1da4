"""`runtime.threads`: training at fixed numbers of threads and at `auto`, without and beside two programs that use a core each.

    python -m pytest tests/benchmarks/test_bench_threads.py -m bench -s
    MMTUNE_BENCH_ROUNDS=3 (the default)

One process for each setting, in turn. Rates are medians over the steps after the search; the whole run includes it.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack

import pytest
from clip_init import clip_init
from speed_corpus import corpus

from mmtune.runtime.cpu_quota import available_cpus
from mmtune.runtime.files import read_jsonl

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
STEPS, SEARCH, BATCH = 40, 12, 32
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}


def rates(init, shards, run, threads):
    """(pairs/s after the search, pairs/s of all steps) of one run, waiting for data left out."""
    settings = [f"model=hf:{init}", f"data.train={shards}", f"train.batch_size={BATCH}", f"train.samples={STEPS * BATCH}"]
    (run.parent / "r.yaml").write_text("model: tiny:clip\ndata: {train: x}\n")
    command = [sys.executable, "-m", "mmtune", "train", str(run.parent / "r.yaml"), *settings]
    subprocess.run(
        [*command, f"run.dir={run}", "run.trackers=[]", f"runtime.threads={threads}", "--quiet"],
        env=CLEAN,
        check=True,
        capture_output=True,
    )
    steps = [r for r in read_jsonl(run / "metrics.jsonl") if "loss" in r]
    seconds = [BATCH / r["pairs_per_second"] * (1 - r["wait"]) for r in steps]
    return BATCH / statistics.median(seconds[SEARCH:]), BATCH * len(seconds) / sum(seconds)


@pytest.mark.parametrize("others", [0, 2])
def test_auto_is_within_a_tenth_of_the_best_number(others, tmp_path_factory, tmp_path):
    home = tmp_path_factory.getbasetemp().parent
    init, (_, shards) = clip_init(home / "clip_init"), corpus(home / "threads-image", "image", STEPS * BATCH)
    n = available_cpus()
    settings = sorted({1, 2, n // 2, n} - {0})
    found: dict[object, list[tuple[float, float]]] = {s: [] for s in [*settings, "auto"]}
    with ExitStack() as stack:
        for _ in range(others):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        for k in range(ROUNDS):
            for setting in found:
                found[setting].append(rates(init, shards, tmp_path / f"{setting}-{k}", setting))
    after = {str(s): round(statistics.median(r for r, _ in v), 1) for s, v in found.items()}
    line = {
        "bench": f"training, 9.9M CLIP, batch {BATCH}, {n} cores, {others} other programs",
        "pairs_per_s": after,
        "pairs_per_s_with_search": {str(s): round(statistics.median(r for _, r in v), 1) for s, v in found.items()},
        "load": [round(x, 1) for x in os.getloadavg()],
        "rounds": ROUNDS,
    }
    print(json.dumps(line))
    assert after["auto"] >= 0.9 * max(after[str(s)] for s in settings)
