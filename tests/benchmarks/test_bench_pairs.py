"""Models trained on pairs of a simulated click log, corrected and naive, scored on the true relevance. Prints JSON lines.

pytest tests/benchmarks/test_bench_pairs.py -m bench -s
MMTUNE_BENCH_SEEDS=3 MMTUNE_BENCH_SESSIONS=8000 (these are the defaults); seeds begin at 3, because the method was chosen on 0 to 2
"""

import json
import os
import statistics
import warnings

import pytest

import mmtune
from mmtune.runtime.files import write_jsonl
from tests.support.click_simulator import NAMES, picture_shop

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
SEEDS = int(os.environ.get("MMTUNE_BENCH_SEEDS", "3"))
SESSIONS = int(os.environ.get("MMTUNE_BENCH_SESSIONS", "8000"))


def test_models_of_corrected_and_naive_pairs(tmp_path):
    scores = {}
    for seed in range(3, 3 + SEEDS):
        root = tmp_path / f"shop{seed}"
        log = picture_shop(root, photos=6, seed=seed, sessions=SESSIONS, shown=10, swaps=0.4, noise=0.08)
        grades = {0.9: 3, 0.3: 2, 0.15: 1, 0: 0}
        lines = [{"query": q, "item": i, "grade": grades[round(r, 2)]} for (q, i), r in log.truth.items()]
        write_jsonl(root / "truth.jsonl", lines)
        for bias in ("estimate", "none"):
            out = root / bias
            mmtune.pairs_from_logs(root / "log.parquet", out, **NAMES, position_bias=bias, catalog=root / "items.csv")
            mmtune.pack(out / "pairs.parquet", root / f"packed-{bias}", workers=1)
            if bias == "estimate":
                mmtune.pack(out / "evaluation.parquet", root / "evaluation", workers=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = mmtune.train(
                    {
                        "model": "tiny:clip",
                        "data": {"train": str(root / f"packed-{bias}")},
                        "objective": [{"loss": "info_nce", "weights": "weight"}],
                        "train": {"epochs": 12, "batch_size": 32, "lr": 1e-3, "seed": seed},
                        "run": {"dir": str(root / f"run-{bias}")},
                    },
                    quiet=True,
                )
                found = mmtune.evaluate(
                    result.artifact, str(root / "evaluation"), qrels=str(root / "truth.jsonl"), allow_trained=True
                )
            for metric in ("ndcg@10", "map"):
                scores.setdefault((bias, metric), []).append(found.metric(metric, "text->image"))
    line = {f"{bias} {metric}": [round(v, 4) for v in values] for (bias, metric), values in scores.items()}
    print(json.dumps({"bench": f"click log, {SESSIONS} sessions", **line}))
    assert statistics.mean(scores["estimate", "ndcg@10"]) > statistics.mean(scores["none", "ndcg@10"])
