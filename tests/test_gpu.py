"""What runs on an accelerator, on one when it is there (`-m gpu`), and the same code at toy size on the CPU (`-m slow`).

`python -m pytest tests/test_gpu.py -m gpu -s` prints a JSON line a measurement; GPU_BATCHES="4096 32768" chooses the batches.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import mmtune
from mmtune.contracts import Embeddings
from mmtune.model.artifact.save import save
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.positives import Positives
from mmtune.run import train
from mmtune.search.approximate import ApproximateSearch
from mmtune.search.blocked import ExactSearch
from mmtune.training.loop import Trainer
from tests.support import gpu_steps
from tests.support.corpora import packed
from tests.support.dist_helpers import start

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator: torch.cuda.is_available() is False"),
]
WHERE = [pytest.param("cuda", marks=ON_GPU), pytest.param("cpu", marks=pytest.mark.slow)]
BATCHES = [int(x) for x in os.environ.get("GPU_BATCHES", "4096").split()]
MICRO = 1024
TOY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 2},
}


def toy_or(name: str, where: str) -> dict:
    import open_clip

    config = open_clip.get_model_config(name) if where == "cuda" else TOY
    return {k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg")}


def report(what: str, where: torch.device, n: int, found: dict, flops: float) -> dict:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    top, each = gpu_steps.peak(where), found["ours"]["samples_per_s"]
    line = {"bench": what, "device": name, "batch": n, "gflop_a_sample": round(flops / 1e9, 3)}
    line |= {f"{k} {x}": round(v, 4) for k, row in found.items() for x, v in row.items()}
    line["share_of_peak"] = round(each * flops / top, 4) if top else None
    print(json.dumps(line), flush=True)
    return line


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.timeout(900)
def test_a_step_beside_open_clips(name, where):
    """The same tensors, in turn; the same loss at the same weights (bf16). A batch over MICRO in parts, both."""
    config, device = toy_or(name, where), torch.device(where)
    for n in BATCHES if where == "cuda" else [8]:
        micro = None if n <= MICRO and where == "cuda" else MICRO if where == "cuda" else 3
        inputs, model = gpu_steps.pictures(config, n, device), gpu_steps.picture_model(config)
        flops = gpu_steps.flops(model.to(device), inputs)
        steps = {"ours": gpu_steps.ours(model, inputs, micro), "open_clip": gpu_steps.theirs(config, inputs, micro)}
        if where == "cpu" or n == BATCHES[0]:
            losses = {k: step() for k, step in steps.items()}
            assert losses["ours"] == pytest.approx(losses["open_clip"], rel=0.02), losses
        found = gpu_steps.measured(steps, n, 3, device)
        line = report(f"step {name}", device, n, found, flops)
        assert line["ours samples_per_s"] > 0.8 * line["open_clip samples_per_s"] or where == "cpu", line
        del steps, inputs, model
        if where == "cuda":
            torch.cuda.empty_cache()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.timeout(900)
def test_a_step_of_sounds(where, tmp_path):
    """HTSAT and RoBERTa in bf16, the batch in parts: speed and memory; that each loss is a number, `measured` asserts."""
    device, small = torch.device(where), where == "cpu"
    n, micro = (8, 3) if small else (1024, 256)
    inputs, model = gpu_steps.sounds(n, small, device), gpu_steps.sound_model(tmp_path, small)
    flops = gpu_steps.flops(model.to(device), inputs)
    found = gpu_steps.measured({"ours": gpu_steps.ours(model, inputs, micro)}, n, 3, device)
    report("step HTSAT", device, n, found, flops)


@pytest.mark.parametrize("where", WHERE)
def test_embedding_is_the_bare_forward(where):
    """Pictures that are decoded already through `encode.vectors`, beside the tower alone on tensors that lie on the device."""
    from mmtune.model.encode import encode_batches

    config, device = toy_or("ViT-B-32", where), torch.device(where)
    n, size = (16_384, 1024) if where == "cuda" else (16, 8)
    model = gpu_steps.picture_model(config).to(device).eval()
    ready = gpu_steps.pictures(config, size, torch.device("cpu"))["image"]["image"]
    there, rates = ready.to(device), {}

    class Ready:
        def __call__(self, signal):
            return signal

        def collate(self, items):
            return {"image": ready}

    model.towers["image"].preprocess = Ready()
    for name in ("vectors", "forward", "forward in bf16"):
        with torch.inference_mode(), torch.autocast(where, torch.bfloat16, enabled="bf16" in name):
            for count in (size, n):
                begin = time.perf_counter()
                if name == "vectors":
                    found = list(encode_batches(model, "image", [lambda: None] * count, size, lambda n: None))
                else:
                    found = [model.encode_inputs("image", {"image": there}) for _ in range(count // size)]
                float(found[-1].sum())
                rates[name] = count / (time.perf_counter() - begin)
        assert len(found[-1]) == size
    print(json.dumps({"bench": "embed ViT-B-32", "device": where, **{k: round(v, 1) for k, v in rates.items()}}), flush=True)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("micro", [None, 5])
def test_training_on_the_device_learns_and_its_artifact_embeds(micro, where, tmp_path):
    """A whole run: bf16 on the device, and the artifact's vectors there are those on the CPU."""
    data = packed(tmp_path, 24, 0, ("image", "text"))
    recipe = {"model": "tiny:clip", "data": {"train": data, "val": data}, "run": {"dir": str(tmp_path / "run")}}
    settings = {"epochs": 6, "batch_size": 12, "micro_batch_size": micro, "precision": "bf16", "lr": 1e-3}
    train(recipe | {"train": settings}, quiet=True)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if "loss" in x]
    assert losses[-1] < losses[0], losses
    one = mmtune.load(str(tmp_path / "run" / "artifact"), device=where).encode(text=["a red square", "a blue square"])
    two = mmtune.load(str(tmp_path / "run" / "artifact"), device="cpu").encode(text=["a red square", "a blue square"])
    assert (one * two).sum(1).min() > 0.9999


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.timeout(900)
def test_blocks_cut_among_two_processes(precision, where, tmp_path):
    """Both on one device: they learn what they learn with whole blocks, and on a card each needs less of it."""
    config = toy_or("ViT-B-32", where)
    config["text_cfg"] = config["text_cfg"] | {"vocab_size": 49408}  # that of CLIP's own tokenizer
    save(gpu_steps.picture_model(config), tmp_path / "model", info={})
    data = packed(tmp_path, 96, 0, ("image", "text"))
    settings = {"epochs": 2, "batch_size": 16, "precision": precision, "lr": 1e-5}
    losses, peaks = {}, {}
    for shard in (False, True):
        run = tmp_path / f"run-{shard}"
        recipe = {"model": str(tmp_path / "model"), "data": {"train": data}, "run": {"dir": str(run)}}
        recipe["train"] = settings | {"shard": shard}
        command = [sys.executable, "-m", "tests.support.gpu_cut", json.dumps(recipe), where]
        both = start(2, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = [p.communicate(timeout=400) for p in both]
        assert [p.returncode for p in both] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
        peaks[shard] = [json.loads(out.splitlines()[-1])["peak"] for out, _ in said]
        lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        losses[shard] = [x["loss"] for x in lines if "loss" in x]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4 if precision == "fp32" else 2e-2)
    print(json.dumps({"bench": f"cut ViT-B-32 {precision}", "device": where, "peaks": peaks, "losses": losses}), flush=True)
    assert where == "cpu" or max(peaks[True]) < 0.8 * min(peaks[False])


def to_mine(rows: int, dim: int, around: int = 0) -> tuple[Items, Positives]:
    """Unit vectors in groups of five; with `around`, near so many centres."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, dim), dtype=np.float32)
    if around:
        x = rng.standard_normal((around, dim), dtype=np.float32)[rng.integers(around, size=rows)] + 0.7 * x
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = {"id": np.arange(1, rows + 1), "group": np.arange(rows) // 5 + 1}
    embedded = Embeddings([f"{i:07d}" for i in range(rows)], [None] * rows, labels, x, "f")
    items = unique_items("a", embedded)
    return items, Positives(items, items)


def mined(search, items: Items, asked: np.ndarray, positives: Positives, rounds: int) -> tuple[list[np.ndarray], float]:
    """(items and scores of all queries, median seconds)."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        blocks = [asked[i : i + search.block] for i in range(0, len(asked), search.block)]
        parts = [search.top(items.vectors[q], positives.of(q)) for q in blocks]
        times.append(time.perf_counter() - begin)
    return [np.concatenate(p) for p in zip(*parts, strict=True)], statistics.median(times)


@pytest.mark.parametrize("where", WHERE)
def test_all_state_of_a_resumed_run_is_on_the_device(where, tmp_path, monkeypatch):
    """Queue, EMA, moments of the optimizer, class proxies: nothing that --resume restores stays on the CPU."""
    pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
    recipe = {
        "model": "tiny:clip",
        "data": {"train": packed(tmp_path), "batches": {"groups": 4, "rows": 2}},
        "pairs": [["image", "text"], ["image", "image"]],
        "objective": [{"loss": "info_nce"}, {"loss": "pml:ProxyAnchorLoss", "pairs": [["image", "image"]]}],
        "memory": {"size": 12},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_every": 1, "ema": 0.9},
        "run": {"dir": str(tmp_path / "run")},
    }
    step, fit, found = Trainer.step, Trainer.fit, {}

    def killed(self, batch):
        if self.state.step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    def looked_at(self):
        queues = [x for q in self.objective.memory.queues.values() for x in (q.z, q.content, q.index, *q.labels["id"])]
        moments = [v for s in self.optimizer.state.values() for k, v in s.items() if k != "step"]
        found.update(
            queue=queues, moments=moments, mean=self.ema_l2sp.mean, proxies=[*self.objective.class_losses.parameters()]
        )
        fit(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, quiet=True)
    monkeypatch.setattr(Trainer, "fit", looked_at)
    train(recipe, resume=True, quiet=True)
    assert all(found.values())
    assert {t.device.type for tensors in found.values() for t in tensors} == {where}


@pytest.mark.parametrize("where", WHERE)
def test_mining_on_the_device_finds_what_the_cpu_finds(where):
    rows, dim, k = (200_000, 512, 30) if where == "cuda" else (3000, 32, 20)
    items, positives = to_mine(rows, dim)
    asked, found, seconds = np.arange(min(rows, 2048)), {}, {}
    for device in dict.fromkeys((where, "cpu")):
        found[device], seconds[device] = mined(ExactSearch(items.vectors, 4096, device, k), items, asked, positives, 3)
    for a, b in zip(found[where], found["cpu"], strict=True):
        np.testing.assert_array_equal(a, b)
    print(json.dumps({"bench": "mining", "rows": rows, "dim": dim, "queries": len(asked), "seconds": seconds}), flush=True)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.timeout(900)
def test_mining_by_an_index_on_the_device(where):
    """faiss's IVF on the card (faiss-gpu) and on the CPU: how much of the exact answer, how soon."""
    faiss = pytest.importorskip("faiss")
    if where == "cuda" and (not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0):
        pytest.skip("faiss without a GPU: this is faiss-cpu, or there is no card")
    rows, dim, k = (1_000_000, 128, 30) if where == "cuda" else (20_000, 32, 20)
    items, positives = to_mine(rows, dim, rows // 100)
    asked, line = np.arange(2048), {}
    exact, line["exact seconds"] = mined(ExactSearch(items.vectors, 4096, where, k), items, asked, positives, 1)
    for device in dict.fromkeys((where, "cpu")):
        begin = time.perf_counter()
        search = ApproximateSearch(items.vectors, "ivf", 16, device, k)
        line[f"{device} build seconds"] = time.perf_counter() - begin
        found, line[f"{device} seconds"] = mined(search, items, asked, positives, 3)
        line[f"{device} recall"] = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact[0], found[0], strict=True)]))
        assert line[f"{device} recall"] > 0.9, line
    print(json.dumps({"bench": f"mining by IVF, {rows} x {dim}, {len(asked)} queries", **line}), flush=True)


@pytest.mark.gpu
def test_faiss_on_the_device_beside_the_cpu():
    """Flat search by faiss-gpu: the same neighbours, and how much sooner."""
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        pytest.skip("faiss without a GPU: this is faiss-cpu, or there is no card")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 256), dtype=np.float32)
    flat, times = faiss.IndexFlatIP(256), {}
    flat.add(x)
    there = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)
    for name, index in (("gpu", there), ("cpu", flat)):
        index.search(x[:100], 10)
        begin = time.perf_counter()
        scores, _ = index.search(x[:2048], 10)
        times[name] = (time.perf_counter() - begin, scores)
    np.testing.assert_allclose(times["gpu"][1], times["cpu"][1], rtol=1e-4)
    print(json.dumps({"bench": "faiss flat 200k x 256, 2048 queries", **{k: v[0] for k, v in times.items()}}), flush=True)
