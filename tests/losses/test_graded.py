"""Losses on a score column, against loops."""

import math

import pytest
import torch

from mmtune.losses.graded import ScoredPairs, cosent, cosine, mse


def scored_pairs(scores, seed=0):
    g = torch.Generator().manual_seed(seed)
    return ScoredPairs((torch.rand(len(scores), generator=g) * 2 - 1).requires_grad_(), torch.tensor(scores))


def test_cosent_equals_the_double_loop_ties_included():
    pairs = scored_pairs([0.5, 0.1, 0.5, 0.9, 0.1, 0.3, 1.0])
    s, y = pairs.similarity.tolist(), pairs.score.tolist()
    n = len(s)
    want = math.log(1 + sum(math.exp(5 * (s[j] - s[i])) for i in range(n) for j in range(n) if y[i] > y[j]))
    got = cosent(pairs, scale=5.0)
    assert float(got.detach()) == pytest.approx(want, rel=1e-5)
    (fast,) = torch.autograd.grad(got, pairs.similarity)
    gap = pairs.similarity[None, :] - pairs.similarity[:, None]
    slow = torch.log1p((torch.exp(5 * gap) * (pairs.score[:, None] > pairs.score[None, :])).sum())
    assert torch.allclose(fast, torch.autograd.grad(slow, pairs.similarity)[0], atol=1e-5)


def test_cosent_of_equal_scores_is_nothing():
    assert float(cosent(scored_pairs([0.5, 0.5, 0.5])).detach()) == 0


def test_mse_and_cosine_equal_loops():
    pairs = scored_pairs([1.0, 0.0, 0.5, 0.2])
    s, y = pairs.similarity.tolist(), pairs.score.tolist()
    assert float(mse(pairs).detach()) == pytest.approx(sum((a - b) ** 2 for a, b in zip(s, y, strict=True)) / 4, rel=1e-5)
    want = sum(1 - a if b >= 0.5 else max(0, a - 0.1) for a, b in zip(s, y, strict=True)) / 4
    assert float(cosine(pairs, margin=0.1).detach()) == pytest.approx(want, rel=1e-5)
