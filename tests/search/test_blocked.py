"""The blocked scan equals the sorted full matrix, with either grid and for any shape, mask and ties."""

import numpy as np
import pytest
import torch

from mmtune.contracts import Embeddings
from mmtune.relevance import positives as positives_module
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import Positives
from mmtune.search import blocked, quantised
from mmtune.search.approximate import ApproximateSearch
from mmtune.search.exact_scores import exact_keys


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def two_modalities(n, m, dim, seed=0, groups=40, collapse=0.0):
    rng = np.random.default_rng(seed)
    heavy = rng.standard_normal(dim) * np.geomspace(1, 20, dim)  # one dimension dominates, as in CLIP

    def one(k, first):
        labels = {"id": np.arange(first, first + k), "group": rng.integers(0, groups, k)}
        x = unit(rng.standard_normal((k, dim)) * (1 - collapse) + collapse * heavy)
        return Embeddings([f"{i:06d}" for i in rng.permutation(k)], [None] * k, labels, x, "f")

    return one(n, 1), one(m, 1)


def reference(a, b, positives, k):
    keys = exact_keys(np.asarray(a.vectors), b.vectors).astype(np.int64)
    every = np.broadcast_to(np.arange(len(b)), keys.shape)
    keys[positives.contains(np.arange(len(a)), every)] = -(2**30)
    order = np.lexsort((every, -keys), axis=1)[:, :k]
    best = np.take_along_axis(keys, order, 1)
    return np.where(best == -(2**30), -1, order), best


@pytest.mark.parametrize("kind", [quantised.FloatGrid, quantised.Int8Grid])
@pytest.mark.parametrize(
    ("n", "m", "dim", "k", "collapse"),
    [(70, 2000, 32, 20, 0.0), (33, 1000, 48, 30, 0.9), (20, 300, 8, 280, 0.0), (5, 7, 16, 30, 0.0), (40, 1500, 20, 5, 0.999)],
)
def test_equals_the_full_matrix(monkeypatch, kind, n, m, dim, k, collapse):
    monkeypatch.setattr(blocked, "CHUNK", 256)
    monkeypatch.setattr(blocked, "choose_grid", kind)
    ea, eb = two_modalities(n, m, dim, collapse=collapse)
    a, b = unique_items("a", ea), unique_items("b", eb)
    positives = Positives(a, b)
    search = blocked.ExactSearch(b.vectors, k=k)
    candidates, keys = search.top(a.vectors[:], positives.of(np.arange(n)))
    expected, scores = reference(a, b, positives, k)
    width = expected.shape[1]
    np.testing.assert_array_equal(candidates[:, :width], expected)
    assert (candidates[:, width:] == -1).all()
    np.testing.assert_array_equal(keys[:, :width][expected >= 0], scores[expected >= 0])


def test_ties_everywhere_and_little_memory(monkeypatch):
    """Most candidates are the same vector: the survivors exceed their memory again and again, and the result stays exact."""
    monkeypatch.setattr(blocked, "CHUNK", 128)
    monkeypatch.setattr(blocked, "plan", lambda *_: blocked.Plan(16, 400, 0))
    monkeypatch.setattr(blocked, "MAX_NEAR", 40)
    ea, eb = two_modalities(16, 900, 16)
    eb.vectors[:850] = eb.vectors[0]
    a, b = unique_items("a", ea), unique_items("b", eb)
    positives = Positives(a, b)
    for kind in (quantised.FloatGrid, quantised.Int8Grid):
        monkeypatch.setattr(blocked, "choose_grid", kind)
        candidates, _ = blocked.ExactSearch(b.vectors, k=25).top(a.vectors[:], positives.of(np.arange(16)))
        np.testing.assert_array_equal(candidates, reference(a, b, positives, 25)[0])


def test_large_groups_are_masked_by_rectangle(monkeypatch):
    monkeypatch.setattr(blocked, "CHUNK", 128)
    ea, eb = two_modalities(50, 700, 16, groups=3)
    a, b = unique_items("a", ea), unique_items("b", eb)
    pairwise = Positives(a, b)
    expected = reference(a, b, pairwise, 20)[0]
    monkeypatch.setattr(positives_module, "BIG", 10)
    by_rectangle = Positives(a, b)
    assert by_rectangle.of(np.arange(50)).rectangles
    candidates, _ = blocked.ExactSearch(b.vectors, k=20).top(a.vectors[:], by_rectangle.of(np.arange(50)))
    np.testing.assert_array_equal(candidates, expected)
    every = np.broadcast_to(np.arange(len(b)), (50, len(b)))
    np.testing.assert_array_equal(by_rectangle.contains(np.arange(50), every), pairwise.contains(np.arange(50), every))


def test_int8_error_bounds_hold_and_are_tight():
    ea, eb = two_modalities(64, 3000, 64, collapse=0.5)
    b = unique_items("b", eb)
    grid = quantised.Int8Grid(b.vectors, 512, "cpu", 1 << 30)
    q = grid.queries(ea.vectors)
    true = ea.vectors.astype(np.float64) @ np.asarray(b.vectors).astype(np.float64).T
    out = torch.empty(64, 512, dtype=torch.int32)
    for number in range(6):
        grid.product(q, number, out)
        unit_B, eps_B = grid.bounds(q, number)
        items = grid.order[number * 512 : (number + 1) * 512]
        error = np.abs(out.numpy()[:, : len(items)] * unit_B[:, None] + q.shift[:, None] - true[:, items])
        assert (error <= eps_B[:, None]).all()
        assert eps_B.max() < 0.05


@pytest.mark.parametrize("method", ["hnsw", "ivf"])
def test_approximate_search_scores_exactly_and_finds_most(method):
    ea, eb = two_modalities(100, 3000, 32)
    a, b = unique_items("a", ea), unique_items("b", eb)
    positives = Positives(a, b)
    expected, scores = reference(a, b, positives, 10)
    candidates, keys = ApproximateSearch(b.vectors, method, probes=64, k=10).top(a.vectors[:], positives.of(np.arange(100)))
    hit = [len(np.intersect1d(x, y)) for x, y in zip(candidates, expected, strict=True)]
    assert np.mean(hit) > 9
    assert not positives.contains(np.arange(100), candidates).any()
    same = candidates == expected
    np.testing.assert_array_equal(keys[same], scores[same])
