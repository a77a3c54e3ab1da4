"""Several real processes over gloo compute the loss and the gradients of one process, for every objective."""

import sys

import numpy as np
import pytest
import torch

import mmtune
from mmtune.data.loader.loader import Loader
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch.item_slices import count_items, slice_inputs
from mmtune.training.large_batch.shared_step import seed_process
from tests.support import corpora
from tests.support.dist_helpers import Toy, cases, run_cases, start, whole_batch


@pytest.mark.parametrize("count,objectives", [(2, "few"), *(pytest.param(n, "all", marks=pytest.mark.dist) for n in (2, 4))])
def test_a_step_of_several_processes_equals_that_of_one(count, objectives, tmp_path):
    """Four processes are more than some modalities have items for: then a process takes part without any. With blocks
    sharded among the processes it is the same step."""
    running = start(count, [sys.executable, "-m", "tests.support.dist_helpers", str(tmp_path), objectives])
    torch.set_num_threads(1)
    want = run_cases(SINGLE_PROCESS, objectives == "all")
    assert [p.wait(timeout=280) for p in running] == [0] * count
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    assert len(want) >= (2 * len(cases()) + 2 if objectives == "all" else 20)
    assert len(found[0]) == 2 * len(want) if objectives == "all" else len(found[0]) >= len(want) + 8
    for key, here in found[0].items():
        if key[0] in ("dropout", "norm", "bf16"):
            continue
        one, everywhere = want[*key[:2], False], [f[key] for f in found]
        assert torch.allclose(here["losses"], one["losses"], rtol=1e-5), key
        assert torch.allclose(here["norms"], one["norms"], rtol=1e-5), key
        some = 0
        for n, (g, w) in enumerate(zip(here["gradients"], one["gradients"], strict=True)):
            assert bool(g.isnan().any()) == bool(w.isnan().any()), (key, n)  # none where one process has none
            assert all(torch.equal(g.nan_to_num(7), e["gradients"][n].nan_to_num(7)) for e in everywhere), (key, n)
            if not w.isnan().any():
                some += 1
                assert float((g - w).norm()) <= 1e-5 * float(w.norm()) + 1e-7, (key, n)
        assert some >= 10, key
    for shard in (False, True):
        dropout(found, count, shard)
        statistics(found, count, shard)
        sums_in_bf16(found, want, shard)


def sums_in_bf16(found, want, shard):
    """Gradients that are summed in bf16 are values of bf16, equal on all ranks, and near those of one process."""
    for f in found:
        for g, w in zip(f["bf16", None, shard]["gradients"], want["bf16", None, False]["gradients"], strict=True):
            assert torch.equal(g.isnan(), w.isnan())
            if not w.isnan().any():
                assert torch.equal(g, g.bfloat16().float()) and g.dtype == torch.float32
                assert float((g - w).norm()) <= 0.01 * float(w.norm()) + 1e-7


def shares(step, count):
    """Each process's micro-batches of two of modality m: (rank, m, inputs)."""
    batch = whole_batch(step)
    for m, x in batch.inputs.items():
        for rank in range(count):
            part = Processes(rank, count).local_slice(count_items(x))
            for i in range(part.start, part.stop, 2):
                yield rank, m, slice_inputs(x, i, min(i + 2, part.stop))


def dropout(found, count, shard):
    """The gradient is that of one graph in which every process drew from its own stream."""
    model, objective = Toy(0.3).train(), build_objective([{"loss": "info_nce"}], [("a", "b")])
    streams, z = {}, {}
    for rank in range(count):
        seed_process(Processes(rank, count), 5, 0)
        streams[rank] = torch.get_rng_state()
    for rank, m, x in shares(0, count):
        torch.set_rng_state(streams[rank])
        z.setdefault(m, []).append(model.encode_inputs(m, x))
        streams[rank] = torch.get_rng_state()
    objective({m: torch.cat(v) for m, v in z.items()}, whole_batch(0), model.logit_scale)[0].backward()
    got = found[0]["dropout", 2, shard]["gradients"]
    for g, p in zip(got, model.parameters(), strict=False):
        if p.grad is not None:
            assert torch.allclose(g, p.grad, rtol=1e-4, atol=1e-6)
    assert not torch.equal(streams[0], streams[1])


def statistics(found, count, shard):
    """BatchNorm: every process has the mean of the running statistics of all."""
    alone = [Toy(norm=True).train() for _ in range(count)]
    for step in range(2):
        for rank, m, x in shares(step, count):
            with torch.no_grad():
                alone[rank].encode_inputs(m, x)
        floats = [[b for n, b in a.named_buffers() if "num_batches" not in n] for a in alone]
        means = [torch.stack(bs).mean(0) for bs in zip(*floats, strict=True)]
        for own in floats:
            for b, mean in zip(own, means, strict=True):
                b.copy_(mean)
    for rank in range(count):
        for b, mean in zip(found[rank]["norm", 2, shard]["buffers"], means, strict=True):
            assert torch.allclose(b, mean, rtol=1e-5, atol=1e-7)


def test_the_processes_shares_of_a_batch_add_up_to_the_batch(tmp_path_factory):
    """No item is dropped or doubled between processes, augmentation is the same; rows and labels are those of the whole batch."""
    data = WeightedConcat([open_data(corpora.packed(tmp_path_factory.mktemp("dist")))], [1.0])
    model = mmtune.load("tiny:all")
    preprocess = {m: t.preprocess for m, t in model.towers.items()}

    def noisy(signal, rng):
        return signal.rotate(rng.randrange(4) * 90)

    streams = [Loader(data, preprocess, {"image": noisy}, processes=Processes(r, 5)) for r in range(5)]
    rows = np.array([3, 4, 9, 15, 21, 22, 0])
    whole = Loader(data, preprocess, {"image": noisy}).batch(rows, 2, {"text->image": np.array([[2], [5]])})
    parts = [s.batch(rows, 2, {"text->image": np.array([[2], [5]])}) for s in streams]
    assert "text" not in parts[4].inputs and "image" in parts[3].inputs
    for m, x in whole.inputs.items():
        for k in set(x) - {"segments"}:
            mine = [p.inputs[m][k] for p in parts if m in p.inputs]
            assert torch.equal(torch.cat(mine), x[k])
    for p in parts:
        assert p.ids == whole.ids and torch.equal(p.is_query, whole.is_query)
        assert all(
            torch.equal(p.item_of_row[m], whole.item_of_row[m]) and torch.equal(p.labels[m], whole.labels[m])
            for m in whole.item_of_row
        )
