"""Gradient caching equals one graph over the whole batch: gradients of towers and logit scale, dropout, windows."""

import math

import pytest
import torch
from torch import nn

from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch import micro_batches
from mmtune.training.large_batch.item_slices import count_items, slice_inputs
from mmtune.training.step import forward_backward
from tests.support.losses_helpers import ROWS, make_batch


class Toy(nn.Module):
    """Two small encoders with dropout; `a` may come in windows that are averaged."""

    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)

        def tower():
            middle = nn.BatchNorm1d(16) if norm else nn.LayerNorm(16)
            return nn.Sequential(nn.Linear(5, 16), nn.GELU(), middle, nn.Dropout(0.3), nn.Linear(16, 8))

        self.towers = nn.ModuleDict({m: tower() for m in "ab"})
        self.log_scale = nn.Parameter(torch.tensor(math.log(9.0)))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.largest = 0

    def encode_inputs(self, modality, inputs):
        h = self.towers[modality](inputs["x"])
        if "segments" in inputs:
            n = int(inputs["segments"][-1]) + 1
            h = torch.zeros(n, 8).index_add(0, inputs["segments"], h)
        self.largest = max(self.largest, len(h))
        return nn.functional.normalize(h, dim=1)

    def logit_scale(self, a, b):
        return self.log_scale.exp(), self.bias


def batch_with_inputs(windows=False):
    batch = make_batch(ROWS)
    g = torch.Generator().manual_seed(4)
    for m in batch.inputs:
        n = count_items(batch.inputs[m])
        if m == "a" and windows:
            segments = torch.repeat_interleave(torch.arange(n), torch.tensor([1 + i % 3 for i in range(n)]))
            batch.inputs[m] = {"x": torch.randn(len(segments), 5, generator=g), "segments": segments}
        else:
            batch.inputs[m] = {"x": torch.randn(n, 5, generator=g)}
    return batch


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid", "triplet"])
def test_cached_gradients_equal_one_graph_over_the_same_dropout(loss, windows):
    batch = batch_with_inputs(windows)
    objective = build_objective([{"loss": loss}], [("a", "b")])
    whole, cached = Toy(), Toy()

    # the unsplit batch: one graph, dropout drawn in the order of the micro-batches
    torch.manual_seed(11)
    z = {}
    for m in batch.inputs:
        n = count_items(batch.inputs[m])
        z[m] = torch.cat([whole.encode_inputs(m, slice_inputs(batch.inputs[m], i, min(i + 3, n))) for i in range(0, n, 3)])
    want, _ = objective(z, batch, whole.logit_scale)
    want.backward()
    after = torch.rand(1)

    torch.manual_seed(11)
    got, logs = forward_backward(cached, batch, objective, micro_batch_size=3)
    assert torch.equal(torch.rand(1), after)  # the random stream goes on as if nothing was drawn twice
    assert cached.largest == 3
    assert got == pytest.approx(float(want.detach()), rel=1e-6) and logs[loss] == pytest.approx(got)
    used = [(p, q) for p, q in zip(whole.parameters(), cached.parameters(), strict=True) if p.grad is not None]
    assert len(used) == {"sigmoid": 14, "info_nce": 13, "triplet": 12}[loss]  # the scale, and the bias, where they are used
    a, b = (torch.cat([x[i].grad.flatten() for x in used]) for i in (0, 1))
    assert float((a - b).norm() / a.norm()) < 1e-5


def test_only_the_items_of_a_micro_batch_are_copied_to_the_device(monkeypatch):
    copied = []
    usual = micro_batches.to_device

    def recorded(inputs, device):
        copied.append(count_items(inputs))
        return usual(inputs, device)

    monkeypatch.setattr(micro_batches, "to_device", recorded)
    batch, objective = batch_with_inputs(), build_objective([{"loss": "info_nce"}], [("a", "b")])
    waiting = batch.map_tensors(lambda x: x.clone(), inputs=False)  # what training does where there is an accelerator
    assert all(waiting.inputs[m] is batch.inputs[m] for m in batch.inputs) and waiting.is_query is not batch.is_query
    forward_backward(Toy(), waiting, objective, micro_batch_size=3)
    assert max(copied) == 3 and sum(copied) == 2 * sum(count_items(x) for x in batch.inputs.values())


def test_without_micro_batches_the_step_is_a_plain_one():
    batch, objective = batch_with_inputs(), build_objective([{"loss": "sigmoid"}], [("a", "b")])
    plain, whole, cached = Toy().eval(), Toy().eval(), Toy().eval()
    objective({m: plain.encode_inputs(m, batch.inputs[m]) for m in "ab"}, batch, plain.logit_scale)[0].backward()
    forward_backward(whole, batch, objective, micro_batch_size=None)
    forward_backward(cached, batch, objective, micro_batch_size=4)
    assert torch.equal(gradients(plain), gradients(whole))
    assert float((gradients(plain) - gradients(cached)).norm() / gradients(plain).norm()) < 1e-5


def test_running_statistics_are_updated_once():
    batch, objective = batch_with_inputs(), build_objective([{"loss": "sigmoid"}], [("a", "b")])
    once, cached = Toy(norm=True), Toy(norm=True)
    with torch.no_grad():
        for m in batch.inputs:
            n = count_items(batch.inputs[m])
            for i in range(0, n, 3):
                once.encode_inputs(m, slice_inputs(batch.inputs[m], i, min(i + 3, n)))
    forward_backward(cached, batch, objective, micro_batch_size=3)
    for x, y in zip(once.buffers(), cached.buffers(), strict=True):
        assert torch.equal(x, y)
    assert cached.towers["a"][2].momentum == 0.1


def test_windows_are_sliced_with_their_item():
    inputs = {"x": torch.arange(6.0), "segments": torch.tensor([0, 1, 1, 2, 3, 3])}
    part = slice_inputs(inputs, 1, 3)
    assert part["x"].tolist() == [1, 2, 3] and part["segments"].tolist() == [0, 0, 1]
    assert count_items(inputs) == 4


def test_parameters_without_gradient_keep_none_and_gradients_accumulate():
    batch, objective = batch_with_inputs(), build_objective([{"loss": "info_nce"}], [("a", "b")])
    model, twice = Toy().eval(), Toy().eval()
    model.spare = nn.Parameter(torch.ones(3))
    forward_backward(model, batch, objective, micro_batch_size=4)
    assert model.spare.grad is None and model.bias.grad is None and model.log_scale.grad is not None
    for _ in range(2):
        forward_backward(twice, batch, objective, micro_batch_size=4)
    for p, q in zip(model.towers.parameters(), twice.towers.parameters(), strict=True):
        assert torch.allclose(2 * p.grad, q.grad, rtol=1e-5, atol=1e-7)
