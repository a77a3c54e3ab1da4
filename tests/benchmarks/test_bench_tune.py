"""Head tuning on kept features against full tuning, the same rows and batches. Prints one JSON line.

pytest tests/benchmarks/test_bench_tune.py -m bench -s
MMTUNE_BENCH_TUNE=512 (rows) MMTUNE_BENCH_ROUNDS=3   (these are the defaults)
"""

import json
import os
import resource
import statistics
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from clip_init import clip_init

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
ROWS = int(os.environ.get("MMTUNE_BENCH_TUNE", "512"))
EPOCHS = 3


def pictures(root: Path) -> str:
    """ROWS noisy photos of 96 pixels, each with words of its own, packed."""
    from mmtune.data.pack.pack import pack

    root.mkdir()
    rng, lines = np.random.default_rng(0), ["image,text"]
    for i in range(ROWS):
        PIL.Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(root / f"{i}.jpg")
        lines.append(f"{i}.jpg,product number {i}")
    (root / "rows.csv").write_text("\n".join(lines))
    pack(root / "rows.csv", root / "packed")
    return str(root / "packed")


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def test_a_head_learns_ten_times_faster_an_epoch(tmp_path, tmp_path_factory):
    """Steps of an epoch alone; `whole_run` has the one pass that makes the features, saving and all the rest as well."""
    import mmtune

    init = clip_init(Path(tmp_path_factory.getbasetemp().parent / "clip_init"))
    data = pictures(tmp_path / "photos")
    epoch, whole = {"full": [], "head": []}, {"full": [], "head": []}
    for n in range(ROUNDS):
        for how in epoch:  # in turn
            document = {
                "model": f"hf:{init}",
                "data": {"train": data},
                "tune": how,
                "run": {"dir": str(tmp_path / f"{how}{n}")},
            }
            begin = processor_seconds()
            out = mmtune.train(document | {"train": {"epochs": EPOCHS, "batch_size": 64}}, quiet=True)
            whole[how].append(processor_seconds() - begin)
            epoch[how].append(out["seconds"] / EPOCHS)
    seconds = {k: statistics.median(v) for k, v in epoch.items()}
    line = {
        "bench": f"head on kept features against full, CLIP 9.9M, {ROWS} rows, {EPOCHS} epochs",
        "seconds_an_epoch": {k: round(v, 3) for k, v in seconds.items()},
        "ratio": round(seconds["full"] / seconds["head"], 1),
        "whole_run_processor_seconds": {k: round(statistics.median(v), 1) for k, v in whole.items()},
    }
    print(json.dumps(line))
    assert line["ratio"] >= 10
