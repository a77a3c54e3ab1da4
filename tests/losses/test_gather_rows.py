"""Rows that are used several times: their values and their gradient."""

import torch

from mmtune.losses.gather_rows import rows_at


def test_the_gradient_of_repeated_rows_is_right_and_the_same_each_time():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(24, 50, 64, generator=generator, requires_grad=True)
    index = torch.randint(0, 24, (300,), generator=generator)
    weight = torch.randn(300, 50, 64, generator=generator)
    assert torch.equal(rows_at(values, index), values[index])
    gradients = [torch.autograd.grad((rows_at(values, index) * weight).sum(), values)[0] for _ in range(10)]
    assert all(torch.equal(g, gradients[0]) for g in gradients)
    exact = torch.stack([weight[index == n].double().sum(0) for n in range(24)])
    assert torch.allclose(gradients[0].double(), exact, atol=1e-4)
