"""One step of every objective, by one process or several: `python -m tests.support.dist_helpers OUT all|few` is one of these."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from mmtune.backbones import Tower
from mmtune.runtime.distributed import Processes, init_processes
from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch.fsdp import ShardedBlocks
from mmtune.training.large_batch.item_slices import count_items, slice_inputs
from mmtune.training.large_batch.shared_step import all_reduce_gradients, average_running_statistics, seed_process
from mmtune.training.step import forward_backward
from mmtune.training.teacher_outputs import TeacherVectors
from tests.support.losses_helpers import ROWS, make_batch, unit

DIM = 8
FEW = ("info_nce", "sigmoid", "triplet", "memory", "kl", "feature", "three", "proxies", "sampled")
PAIRS = [("a", "b"), ("a", "c"), ("c", "b")]


class Wide(nn.BatchNorm1d):
    """A BatchNorm that takes a single item too, as convolutional towers do."""

    def forward(self, x):
        return super().forward(torch.stack([x, 2 * x], 2)).mean(2)


class Residual(nn.Module):
    """A block; its three rows are fewer than four processes."""

    def __init__(self, dropout, norm):
        super().__init__()
        middle = Wide(16) if norm else nn.LayerNorm(16)
        self.inner = nn.Sequential(middle, nn.Linear(16, 3), nn.GELU(), nn.Dropout(dropout), nn.Linear(3, 16))

    def forward(self, x):
        return x + self.inner(x)


class Toy(nn.Module):
    """Three small encoders in one space, each with two blocks between two linear layers."""

    dim = DIM

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        torch.manual_seed(0)

        def tower():
            return nn.Sequential(nn.Linear(5, 16), *(Residual(dropout, norm) for _ in range(2)), nn.Linear(16, DIM))

        self.nets = nn.ModuleDict({m: tower() for m in "abc"})
        self.towers = {m: Tower(m, DIM, None, net, [net]) for m, net in self.nets.items()}
        self.device = torch.device("cpu")
        self.log_scale = nn.Parameter(torch.tensor(math.log(9.0)))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def encode_inputs(self, modality, inputs):
        return nn.functional.normalize(self.nets[modality](inputs["x"]), dim=1)

    def output_width(self, modality):
        return DIM

    def logit_scale(self, a, b):
        return self.log_scale.exp(), self.bias


def whole_batch(step=0):
    """Rows with shared groups, repeated items, missing sides, candidates only; modality c stands in a single row."""
    rows = ROWS if step == 0 else [(g and g + 1, a and a + 3, b and b + 2, asks) for g, a, b, asks in ROWS]
    g = torch.Generator().manual_seed(7 + step)
    n = len(rows)
    batch = make_batch(rows, {"score": torch.rand(n, generator=g), "grade": 0.5 + torch.rand(n, generator=g)})
    batch.item_of_row["c"] = torch.full((n,), -1)
    batch.item_of_row["c"][3] = 0
    batch.labels["c"] = torch.where(batch.item_of_row["c"] == 0, 77, 0)
    batch.labels["id"] += 100 * step
    batch.inputs = {m: {"x": torch.randn(int(s.max()) + 1, 5, generator=g)} for m, s in batch.item_of_row.items()}
    return batch


def local_batch(batch, processes, shard=False):
    """The batch as this process gets it: its share of each modality's items, no input of a modality that it has no item of (the last item when
    blocks are sharded)."""
    parts = {m: slice_inputs(x, *_ends(processes.local_slice(count_items(x)))) for m, x in batch.inputs.items()}
    if shard:
        parts = {m: p if count_items(p) else slice_inputs(x, n - 1, n) for (m, x), p, n in _sized(batch.inputs, parts)}
    batch.inputs = {m: x for m, x in parts.items() if count_items(x)}
    return batch


def _sized(inputs, parts):
    return [((m, x), parts[m], count_items(x)) for m, x in inputs.items()]


def _ends(part):
    return part.start, part.stop


def teacher():
    rows = len(ROWS)
    vectors = {m: unit(rows, 6, 20 + i).numpy() for i, m in enumerate("abc")}
    return TeacherVectors("t", vectors, {m: torch.arange(rows).numpy() for m in "abc"}, "mark")


class ClassData:
    """What counting classes needs to know of the rows in `whole_batch`."""

    spec = "rows"

    def __init__(self):
        batch = whole_batch()
        self.labels = {k: v.numpy() for k, v in batch.labels.items()}
        self.present = {m: items.numpy() >= 0 for m, items in batch.item_of_row.items()}

    def __len__(self):
        return len(ROWS)


def cases():
    """name -> arguments of build_objective."""
    found = {}
    for loss in ("info_nce", "sigmoid", "triplet"):
        for tile in ("never", "always"):
            found[f"{loss} {tile}"] = {"terms": [{"loss": loss, "tile": tile}]}
    for tile in ("never", "always"):
        for name, options in {
            "mask": {"positives": "mask"},
            "sum": {"positives": "sum"},
            "smooth": {"smoothing": 0.1},
            "hard": {"hardness": 0.5},
            "robust": {"robustness": 0.7},
            "weighted": {"positives": "mask", "weights": "grade"},
            "guided": {"guide": "t"},
            "fixed": {"scale": 200.0},
        }.items():
            found[f"{name} {tile}"] = {"terms": [{"loss": "info_nce", "tile": tile, **options}]}
        found[f"memory {tile}"] = {"terms": [{"loss": "info_nce", "tile": tile}], "memory": {"size": 9}}
    for loss in ("mse", "cosine", "cosent"):
        found[loss] = {"terms": [{"loss": loss, "column": "score"}]}
    for loss in ("kl", "score_mse", "margin_mse", "feature"):
        found[loss] = {"terms": [{"loss": loss, "teacher": "t"}, {"loss": "info_nce"}]}
    for tile in ("never", "always"):
        found[f"matryoshka {tile}"] = {"terms": [{"loss": "info_nce", "tile": tile}], "matryoshka": {"dims": [4]}}
        found[f"semi-hard {tile}"] = {"terms": [{"loss": "triplet", "mining": "semi_hard", "tile": tile}]}
        found[f"one-way {tile}"] = {"terms": [{"loss": "info_nce", "directions": "forward", "queries": "items", "tile": tile}]}
        found[f"memory-sigmoid {tile}"] = {"terms": [{"loss": "sigmoid", "tile": tile}], "memory": {"size": 9}}
    both = [("a", "b"), ("a", "a")]
    proxies = {"loss": "pml:ProxyAnchorLoss", "pairs": [["a", "a"]]}
    arcs = {"loss": "pml:SubCenterArcFaceLoss", "weight": 0.1}
    found["proxies"] = {"terms": [{"loss": "info_nce", "pairs": [["a", "b"]]}, proxies, arcs], "pairs": both}
    sampled = {"loss": "pml:TripletMarginLoss", "triplets_per_anchor": 3, "margin": 1.0}
    found["sampled triplets"] = {"terms": [sampled, {"loss": "pml:MultiSimilarityLoss", "miner": "pml:MultiSimilarityMiner"}]}
    found["three pairs"] = {"terms": [{"loss": "info_nce"}, {"loss": "triplet", "pairs": [["a", "c"]]}], "pairs": PAIRS}
    return found


def run_case(
    processes: Processes, terms, pairs=(("a", "b"),), micro=None, dropout=0.0, norm=False, shard=False, reduce=None, **options
):
    """Two steps without an update; {"losses": [2], "norms": [2], "gradients": [one a parameter, NaN for none], ...}."""
    model = Toy(dropout, norm).train(bool(dropout or norm))
    objective = build_objective(
        terms, list(pairs), dim=DIM, teachers={"t": teacher()}, processes=processes, data=ClassData(), **options
    )
    parameters = [*model.parameters(), *objective.parameters()]
    rows = [len(p) if p.ndim else 1 for p in parameters]
    sharded = ShardedBlocks(model, processes, shard, reduce or torch.float32)
    rest = [p for p in parameters if not sharded.is_shard(p)]
    assert len(rest) == len(parameters) - (shard and 3 * 2 * 6)
    losses, norms, gradients = [], [], []
    for step in range(2):
        batch = local_batch(whole_batch(step), processes, shard)
        seed_process(processes, 5, step)
        sharded.zero_grad()
        for p in parameters:
            p.grad = None
        loss, _ = forward_backward(model, batch, objective, micro_batch_size=micro, processes=processes, lockstep=shard)
        sharded.collect_gradients()
        flag = processes.rank == 1 and step == 1
        assert all_reduce_gradients(processes, rest, flag, reduce) == (step == 1 and not processes.is_single)
        average_running_statistics(processes, model)
        losses.append(loss)
        norms.append(float(sharded.clip_grad_norm(parameters, math.inf)))
        for p, n in zip(parameters, rows, strict=True):
            if p.grad is None:
                gradients.append(torch.full([], torch.nan))
            else:
                gradients.append(processes.gather(p.grad, n) if sharded.is_shard(p) else p.grad)
    held = next((p for p in parameters if sharded.is_shard(p)), None)
    if held is not None:  # only rank 0 gets the gathered tensor
        assert (sharded.full_tensor(held, held.data).untyped_storage().nbytes() > 0) == processes.is_main_process
    with sharded.full_weights():
        buffers = [b.clone() for n, b in model.named_buffers() if "num_batches" not in n]
        assert [len(p) if p.ndim else 1 for p in parameters] == rows and parameters[0] is next(model.parameters())
    return {"losses": torch.tensor(losses), "norms": torch.tensor(norms), "gradients": gradients, "buffers": buffers}


def run_cases(processes: Processes, thorough: bool = True):
    """All cases (or a few), in one pass and in micro-batches of two; several processes also with sharded blocks."""
    every = {name: c for name, c in cases().items() if thorough or name.split()[0] in FEW}
    found = {}
    for shard in (False,) if processes.is_single else (False, True):
        for name, case in every.items():
            if shard and not thorough and name.split()[0] not in ("three", "memory"):
                continue
            found |= {(name, micro, shard): run_case(processes, micro=micro, shard=shard, **case) for micro in (None, 2)}
        odd = {"terms": [{"loss": "info_nce"}], "micro": 2, "shard": shard}
        found["dropout", 2, shard] = run_case(processes, dropout=0.3, **odd)
        found["bf16", None, shard] = run_case(processes, reduce=torch.bfloat16, terms=odd["terms"], shard=shard)
        found["norm", 2, shard] = run_case(processes, norm=True, **odd)
    return found


def check_collectives(processes: Processes):
    """The methods of Processes on real processes."""
    for n in (0, 1, 3, 4, 7):
        part = torch.arange(n)[processes.local_slice(n)]
        assert processes.gather(part, n).tolist() == list(range(n)) if n else len(part) == 0
    ones = [torch.ones(3), torch.full((2, 2), float(processes.rank)), torch.ones(1, dtype=torch.int64)]
    processes.all_reduce(ones)
    total = processes.world_size * (processes.world_size - 1) / 2
    assert ones[0].tolist() == [processes.world_size] * 3 and ones[1].flatten().tolist() == [total] * 4
    assert ones[2].item() == processes.world_size
    third = [torch.full((3,), 1 / 3), torch.full((2,), 1 / 3)]
    processes.all_reduce(third, torch.bfloat16)
    assert third[0].dtype == torch.float32 and torch.equal(third[0], third[0].bfloat16().float())
    assert torch.allclose(third[1], torch.tensor(processes.world_size / 3), rtol=0.01)
    assert processes.broadcast({"a": [1, 0.1], "rank": processes.rank}) == {"a": [1, 0.1], "rank": 0}
    layer = nn.BatchNorm1d(2)
    layer.weight.data.fill_(processes.rank + 1.0)
    layer.num_batches_tracked += processes.rank
    processes.broadcast_parameters(layer)
    assert layer.weight.tolist() == [1, 1] and int(layer.num_batches_tracked) == 0


def start(count: int, command: list[str], **options) -> list[subprocess.Popen]:
    """`count` processes with the variables that a launcher sets."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    own = [{**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(count)]
    return [subprocess.Popen(command, env=env, cwd=root, **options) for env in own]


def main(out: str, thorough: str) -> None:
    torch.set_num_threads(1)
    with init_processes() as processes:
        check_collectives(processes)
        torch.save(run_cases(processes, thorough == "all"), Path(out) / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
