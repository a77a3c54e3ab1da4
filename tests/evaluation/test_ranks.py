"""The blocks for very many candidates give the exact ranks and ties, bit for bit."""

import numpy as np
import pytest

from mmtune.evaluation import ranks, ranks_blocked
from mmtune.relevance.ragged import Ragged
from tests.support.evaluate_helpers import unit


def case(rng, kind, n=3000, q=40, dim=32):
    d = rng.standard_normal((n, dim))
    if kind == "ties":
        d = d[rng.integers(0, 400, n)]
    if kind == "near":  # clouds far tighter than float32 sums can tell apart
        d = d[rng.integers(0, 50, n)] + 3e-7 * rng.standard_normal((n, dim))
    if kind == "collapsed":
        d = np.ones((n, dim)) + 1e-6 * rng.standard_normal((n, dim))
    d = unit(d)
    relevant = [rng.choice(n, rng.integers(0, 14), replace=False) for _ in range(q)]
    query = unit(np.stack([d[r].sum(0) + (0.1 if i % 2 else 3) * rng.standard_normal(dim) for i, r in enumerate(relevant)]))
    owner = np.repeat(np.arange(q), [len(r) for r in relevant])
    return query, d, Ragged.of(owner, np.concatenate(relevant).astype(np.int64), q)


@pytest.mark.parametrize("kind", ["plain", "ties", "near", "collapsed"])
@pytest.mark.parametrize("within", [False, True])
def test_blocked_ranks_equal_exact_ranks(kind, within, monkeypatch):
    monkeypatch.setattr(ranks_blocked, "COLUMNS", 700)
    monkeypatch.setattr(ranks_blocked, "ROWS", 7)
    monkeypatch.setattr(ranks_blocked, "SORT_FROM", 6)
    for seed in range(3):
        query, d, items = case(np.random.default_rng(seed), kind)
        exclude = None
        if within:
            others = [[j for j in range(3000) if j not in set(items[i])][: 1 + i % 3] for i in range(len(query))]
            owner = np.repeat(np.arange(len(query)), [len(x) for x in others])
            exclude = Ragged.of(owner, np.concatenate(others), len(query))
        monkeypatch.setattr(ranks, "MANY_CANDIDATES", 10**9)
        expected, tied = ranks.relevant_ranks(query, d, items, exclude)
        monkeypatch.setattr(ranks, "MANY_CANDIDATES", 1)
        blocked, blocked_tied = ranks.relevant_ranks(query, d, items, exclude)
        assert (blocked == expected).all() and (blocked_tied == tied).all()
        if kind == "ties":
            assert tied.any()


def test_every_way_of_counting_is_taken(monkeypatch):
    """Tail, sort and count agree with a plain loop."""
    rng = np.random.default_rng(0)
    s = rng.standard_normal(4000).astype(np.float32)
    for low in (np.array([2.5]), np.array([-0.5, 0.2]), np.linspace(-1, 1, 12)):
        low = low.astype(np.float32)
        high = low + np.float32(0.01)
        above, inside = ranks_blocked.count_above(s, low, high)
        assert above.tolist() == [(s > h).sum() for h in high]
        members = {r: sorted(at.tolist()) for r, at in inside}
        for r in range(len(low)):
            assert members.get(r, []) == np.flatnonzero((s >= low[r]) & (s <= high[r])).tolist()
