"""Score keys and top-k equal exact sums, for any block, order and library."""

import importlib.util

import numpy as np
import pytest

from mmtune.search import exact, exact_scores, tie_order, vectors
from tests.support.evaluate_helpers import naive_score, unit


def draw(rng, n, dim, coarse):
    return unit(rng.integers(0, 2, (n, dim)) + 1e-3 * (rng.random((n, dim)) * (not coarse)) + 1e-9)


@pytest.mark.parametrize("coarse", [False, True])
def test_keys_are_the_rounded_exact_sums(coarse):
    rng = np.random.default_rng(0)
    q, d = draw(rng, 12, 33, coarse), draw(rng, 40, 33, coarse)
    expected = np.array([[naive_score(a, b) for b in d] for a in q]) * 2**24
    assert (exact_scores.exact_keys(q, d) == expected).all()
    i, j = (x.ravel() for x in np.indices((12, 40)))
    assert (exact_scores.pair_keys(q, d, i, j).reshape(12, 40) == expected).all()
    assert (tie_order.to_scores(exact_scores.exact_keys(q, d)).astype(np.float64) * 2**24 == expected).all()


def test_sums_on_a_rounding_boundary_do_not_depend_on_the_order_of_summation():
    """Cosines of (m + 1/2) / 2**24 plus 2**-56, among terms that cancel: float64 keeps the small rest in some orders only."""
    rng = np.random.default_rng(1)
    d = np.zeros((64, 256), np.float32)
    q = rng.choice([0.25, -0.25], 256).astype(np.float32)
    for row in d:
        big = rng.permutation(256)
        for x, y in big[:24].reshape(-1, 2):
            row[x] = np.float32(rng.random())
            row[y] = -row[x] if q[x] == q[y] else row[x]
        row[big[250]] = np.float32(rng.choice([1, -1]) * 2.0**-54)
        row[big[251]] = np.float32((2 * rng.integers(1, 1000) + 1) * 2.0**-25 * 4)
    q = np.repeat(q[None], 5, axis=0)
    expected = exact_scores.exact_keys(q, d)
    for block in (1, 3, 17, 64):
        for start in range(0, 64, block):
            assert (exact_scores.exact_keys(q, d[start : start + block]) == expected[:, start : start + block]).all()
    for row in range(5):
        assert (exact_scores.exact_keys(q[row : row + 1], d) == expected[row]).all()
        assert (exact_scores.pair_keys(q, d, np.full(64, row), np.arange(64)) == expected[row]).all()
    reverse = np.ascontiguousarray(d[::-1])
    assert (exact_scores.exact_keys(q, reverse) == expected[:, ::-1]).all()


@pytest.mark.parametrize("library", ["faiss", "numpy", "scan"])
@pytest.mark.parametrize("coarse", [False, True])
def test_topk_is_the_full_matrix_sorted_in_the_total_order(library, coarse, monkeypatch):
    if library == "numpy":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        pytest.importorskip("faiss")
    if library == "scan":
        monkeypatch.setattr(exact, "MANY_QUERIES", 1)
        monkeypatch.setattr(exact, "MANY_CANDIDATES", 1)
    rng = np.random.default_rng(2)
    q, d = draw(rng, 30, 12 if coarse else 48, coarse), draw(rng, 900, 12 if coarse else 48, coarse)
    ids = [f"d{i}" for i in rng.permutation(900)]
    keys = exact_scores.exact_keys(q, d)
    for k in (1, 10, 100, 2000):
        scores, index = exact.topk(q, d, k, order=tie_order.tie_order(ids), chunk=13)
        assert index.shape == (30, min(k, 900))
        for row in range(30):
            ranked = sorted(range(900), key=lambda j: (keys[row, j], ids[j]), reverse=True)
            assert index[row].tolist() == ranked[:k]
            assert (scores[row] == tie_order.to_scores(keys[row, ranked[:k]])).all()


def test_topk_without_ids_ties_by_position():
    d = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)
    scores, index = exact.topk(d[:1], d, 60)
    assert index[0].tolist() == list(range(60)) and scores[0, 49] == 1 and scores[0, 50] == 0


def test_unit_leaves_unit_vectors_alone_and_mends_others():
    x = unit(np.random.default_rng(0).standard_normal((5, 4)))
    assert vectors.normalize_rows(x) is x
    assert np.allclose(np.linalg.norm(vectors.normalize_rows(3 * x), axis=1), 1)
    assert (vectors.normalize_rows(np.zeros((1, 4), np.float32)) == 0).all()


def test_tie_order_is_descending_by_code_point():
    ids = ["b", "a", "é", "Z", "10", "9"]
    assert [ids[i] for i in tie_order.tie_order(ids)] == sorted(ids, key=str.encode, reverse=True)
