"""Equal steps have equal gradients, bit by bit, also with several threads and rows that are used many times."""

import math

import pytest
import torch
from torch import nn

from mmtune.contracts import Batch
from mmtune.training.build_objective import build_objective
from mmtune.training.fixed_order import gradients_in_fixed_order
from mmtune.training.step import forward_backward

ROWS, CAPTIONS, DIM = 512, 4, 128
PAIR = [("a", "b")]


class Indexed(nn.Module):
    """Encoders whose weights are tables that all items index, like the relative positions of windowed attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ParameterDict({m: nn.Parameter(torch.randn(7, DIM)) for m in "ab"})
        self.log_scale = nn.Parameter(torch.tensor(math.log(9.0)))
        self.was_deterministic = []

    def encode_inputs(self, modality, inputs):
        table = self.tables[modality]
        z = nn.functional.normalize(table[inputs["x"]] + inputs["noise"], dim=1)
        z.register_hook(lambda g: self.was_deterministic.append(torch.are_deterministic_algorithms_enabled()))
        return z

    def logit_scale(self, a, b):
        return self.log_scale.exp(), None


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch():
    generator = torch.Generator().manual_seed(1)
    items = {"a": torch.arange(ROWS), "b": torch.arange(ROWS) % CAPTIONS}
    inputs = {
        m: {"x": torch.arange(int(i.max()) + 1) % 3, "noise": 0.1 * torch.randn(int(i.max()) + 1, DIM, generator=generator)}
        for m, i in items.items()
    }
    labels = {"a": torch.arange(ROWS) + 1, "b": items["b"] + 1001, "id": torch.arange(ROWS) + 5001, "group": items["b"] + 9001}
    return Batch(
        ids=[f"r{i}" for i in range(ROWS)],
        inputs=inputs,
        item_of_row=items,
        labels=labels,
        is_query=torch.ones(ROWS, dtype=torch.bool),
        index=torch.arange(ROWS),
        columns={"score": torch.rand(ROWS, generator=generator)},
    )


def gradients(objective):
    model = Indexed()
    forward_backward(model, batch(), objective)
    assert model.was_deterministic and all(model.was_deterministic)
    return torch.cat([p.grad.flatten() for p in model.tables.values()])


@pytest.mark.parametrize(
    "term", [{"loss": "cosine"}, {"loss": "cosent"}, {"loss": "info_nce", "positives": "mean"}, {"loss": "triplet"}]
)
def test_equal_steps_have_equal_gradients(two_threads, term):
    objective = build_objective([term], PAIR)
    first = gradients(objective)
    assert first.abs().sum() > 0
    assert all(torch.equal(gradients(objective), first) for _ in range(4))


def test_the_setting_is_that_of_the_caller_afterwards():
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), gradients_in_fixed_order("cpu"):
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with gradients_in_fixed_order("cpu"):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
