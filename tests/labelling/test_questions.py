"""Which pairs are asked, what answers teach, and what a budget buys."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.labelling.budget import _map, simulate_budget
from mmtune.labelling.choose_questions import choose, metric_of, strategies_of
from mmtune.labelling.pair_metric import PairMetric, _solve, cosine_metric, fit_pair_metric
from mmtune.labelling.question_pool import make_pool


def embeddings(groups=20, rows=6, dims=24, useful=6, seed=0, labelled=False):
    """Groups differ in the first dimensions alone; the others are noise that the plain cosine is misled by."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(1, groups + 1), rows)
    centre = rng.normal(0, 1, (groups, dims)) * (np.arange(dims) < useful)
    x = (
        centre[truth - 1]
        + rng.normal(0, 0.35, (len(truth), dims))
        + rng.normal(0, 1.1, (len(truth), dims)) * (np.arange(dims) >= useful)
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    number = np.arange(1, len(truth) + 1)
    group = truth if labelled else np.zeros(len(truth), np.int64)
    names = [f"row {i:04d}" for i in number]
    labels = {"id": number, "group": group, "image": number + 10_000}
    return {"image": Embeddings(names, [str(g) if g else None for g in group], labels, x, "f")}, truth


def test_the_pool_has_each_near_pair_once_and_no_known_positive():
    vectors, truth = embeddings(labelled=True)
    pool = make_pool(vectors, ("image", "image"), neighbours=10)
    names = {i: int(name.split()[1]) - 1 for i, name in enumerate(pool.queries)}
    pairs = [(names[q], names[c]) for q, c in pool.pair.tolist()]
    assert len({frozenset(p) for p in pairs}) == len(pairs) > 300
    assert all(truth[a] != truth[b] for a, b in pairs)
    x = vectors["image"].vectors
    assert pool.score == pytest.approx([float(x[a] @ x[b]) for a, b in pairs], abs=1e-5)
    nearest = {a: [b for b in np.argsort(-(x[a] @ x.T)) if b != a][:10] for a in range(len(x))}
    expected = {frozenset((a, b)) for a, near in nearest.items() for b in near if truth[a] != truth[b]}
    assert {frozenset(p) for p in pairs} == expected


def test_a_metric_fitted_to_answers_is_penalised_logistic_regression():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 4))
    match = rng.random(300) < 1 / (1 + np.exp(-(a * b) @ np.array([3.0, 0.5, 0.5, -1.0])))
    fitted = fit_pair_metric(a, b, match, PairMetric(np.full(4, 1.0), 0.0), ridge=1e-6)
    oracle = LogisticRegression(C=1e6).fit(a * b, match)
    assert fitted.weight == pytest.approx(oracle.coef_[0], abs=0.05)
    strong = fit_pair_metric(a, b, match, PairMetric(np.full(4, 1.0), 0.0), ridge=1e6)
    assert np.ptp(strong.weight) < 0.01 * np.abs(strong.weight).mean()


def test_answers_of_one_kind_move_the_threshold():
    vectors, _ = embeddings()
    pool = make_pool(vectors, ("image", "image"))
    asked = np.array([p for p, _ in choose(pool, 20, ["unsure"], np.zeros(0, np.int64), np.zeros(0, bool))])
    for match, side in ((True, -1), (False, 1)):
        following = [p for p, _ in choose(pool, 20, ["unsure"], asked, np.full(20, match))]
        assert side * (pool.score[following].mean() - pool.score[asked].mean()) > 0


def test_few_answers_in_many_dimensions_are_solved_as_many_in_few():
    rng = np.random.default_rng(1)
    x, penalty, gradient = rng.normal(size=(7, 30)), rng.uniform(0.5, 2, 30), rng.normal(size=30)
    curvature = rng.uniform(0.01, 0.25, 7)
    expected = np.linalg.solve((x * curvature[:, None]).T @ x + np.diag(penalty), gradient)
    assert _solve(x, curvature, penalty, gradient) == pytest.approx(expected)


def test_unsure_questions_are_nearest_to_one_half():
    vectors, _ = embeddings()
    pool = make_pool(vectors, ("image", "image"))
    none = np.zeros(0, np.int64), np.zeros(0, bool)
    chosen = choose(pool, 15, ["unsure"], *none)
    metric = metric_of(pool, *none)
    distance = np.abs(metric.probability(*pool.features(np.arange(len(pool)))) - 0.5)
    asked = [p for p, _ in chosen]
    assert (
        len(set(asked)) == 15 and len({int(pool.pair[p, 0]) for p in asked}) == 15
    )  # each query once, while there are queries
    assert asked[0] == int(np.argmin(distance)) and distance[asked].max() < np.quantile(distance, 0.3)
    again = choose(pool, 15, ["unsure"], *none, skip=np.array(asked))
    assert not set(asked) & {p for p, _ in again}
    everything = choose(pool, 10**6, ["unsure", "random"], *none)
    assert sorted(p for p, _ in everything) == list(range(len(pool)))


def test_disagreement_and_dense_regions():
    vectors, truth = embeddings()
    tuned = vectors["image"].vectors * (np.arange(24) < 6)
    tuned = (tuned / np.linalg.norm(tuned, axis=1, keepdims=True)).astype(np.float32)
    e = vectors["image"]
    other = {"image": Embeddings(e.ids, e.groups, e.labels, tuned, "g")}
    pool = make_pool(vectors, ("image", "image"), other)
    assert strategies_of(None, pool) == ["unsure", "disagreement", "dense"]
    [(pair, why)] = choose(pool, 1, ["disagreement"], np.zeros(0, np.int64), np.zeros(0, bool))
    gap = np.abs(np.log1p(pool.rank) - np.log1p(pool.tuned_rank))
    assert why == "disagreement" and gap[pair] == gap.max()
    scores = tuned @ tuned.T
    at = {name: i for i, name in enumerate(e.ids)}
    q, c = at[pool.queries[pool.pair[pair, 0]]], at[pool.candidates[pool.pair[pair, 1]]]
    assert pool.tuned_rank[pair] == pytest.approx((scores[q] > scores[q, c] + 1e-6).sum(), abs=1)
    [(pair, _)] = choose(pool, 1, ["dense"], np.zeros(0, np.int64), np.zeros(0, bool))
    mean = {q: pool.score[pool.pair[:, 0] == q].mean() for q in set(pool.pair[:, 0].tolist())}
    assert pool.pair[pair, 0] == max(mean, key=mean.get)
    labelled, _ = embeddings(labelled=True)
    plain = make_pool(labelled, ("image", "image"))
    assert strategies_of(None, plain) == ["unsure"]
    for text in ("disagreement", "never", ","):
        with pytest.raises(DataError, match="--choose"):
            strategies_of(text, plain)


def test_the_searched_half_is_scored_by_mean_average_precision():
    import ir_measures

    vectors, truth = embeddings(groups=5, rows=4)
    weight = np.random.default_rng(0).uniform(0.5, 2, 24)
    x = vectors["image"].vectors.astype(np.float64)
    scores = (x * weight) @ x.T
    n = range(len(truth))
    qrels = {str(i): {str(j): 1 for j in n if j != i and truth[i] == truth[j]} for i in n}
    run = {str(i): {str(j): float(scores[i, j]) for j in n if j != i} for i in n}
    expected = ir_measures.calc_aggregate([ir_measures.AP], qrels, run)[ir_measures.AP]
    assert _map(vectors, ("image", "image"), truth, weight) == pytest.approx(expected, abs=1e-6)


def test_a_budget_says_what_answers_buy():
    vectors, truth = embeddings(groups=40, rows=6)
    curve = simulate_budget(vectors, ("image", "image"), [50, 200], truth=truth, seeds=2)
    gain = np.array(curve.chosen)[:, -1] - np.array(curve.without)
    assert gain.mean() > 0.01 and (gain > 0).all() and len(curve.without) == 2
    assert np.array(curve.matches_chosen).shape == (2, 2) and "200 answers: chosen +" in str(curve)
    assert str(simulate_budget(vectors, ("image", "image"), [50], truth=truth, seeds=1)) == str(
        simulate_budget(vectors, ("image", "image"), [50], truth=truth, seeds=1)
    )
    with pytest.raises(DataError, match="the simulation needs 8"):
        simulate_budget(vectors, ("image", "image"), [50], truth=np.minimum(truth, 3))
    with pytest.raises(DataError, match="can be asked"):
        simulate_budget(vectors, ("image", "image"), [10**6], truth=truth, seeds=1)


def test_no_answers_rank_as_the_cosine():
    scores = np.array([0.1, 0.5, 0.9])
    metric = cosine_metric(scores)
    vectors = np.array([[1.0, 0.0]] * 3), np.stack([scores, np.sqrt(1 - scores**2)], 1)
    p = PairMetric(np.repeat(metric.weight, 2), metric.bias).probability(*vectors)
    assert (np.diff(p) > 0).all() and p[1] == pytest.approx(0.5)
