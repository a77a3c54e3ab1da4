"""Every metric in every direction equals ir_measures' on random corpora: ties, groups, grades, united content, no answers."""

import numpy as np
import pytest

from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.relevance.items import take_rows
from tests.support.evaluate_helpers import corpus, judge, naive_direction

CASES = 200


def draw(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 26))
    vectors = corpus(
        rng,
        n,
        int(rng.integers(2, 9)),
        int(rng.integers(0, 8)),
        content=int(rng.integers(1, 2 * n)),
        coarse=bool(seed % 2),
        missing=0.3 if seed % 3 == 0 else 0.0,
    )
    qrels = None
    if seed % 4 == 0:
        ids = sorted({i for e in vectors.values() for i in e.ids})
        qrels = {q: {d: int(rng.integers(-1, 4)) for d in rng.choice(ids, 4)} for q in ids if rng.random() < 0.7}
    return vectors, qrels, tuple(sorted({1, 5, int(rng.integers(2, 30))}))


@pytest.mark.parametrize("part", range(4))
def test_equal_to_ir_measures(part):
    compared = 0
    for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
        vectors, qrels, ks = draw(seed)
        result = evaluate_vectors(vectors, ks=ks, qrels=qrels)
        for a in vectors:
            for b in vectors:
                run, truth = naive_direction(a, b, vectors[a], vectors[b], qrels)
                name = f"{a}->{b}"
                if not truth:
                    assert name not in result.directions
                    continue
                direction = result.directions[name]
                assert direction.queries == len(truth)
                expected = judge(run, truth, list(direction.metrics))
                for metric, value in expected.items():
                    assert direction.metrics[metric] == pytest.approx(value, abs=1e-9), (seed, name, metric)
                    compared += 1
    assert compared > 1000


def test_never_depends_on_row_order_or_chunk():
    for seed in (1, 2, 3, 4):
        rng = np.random.default_rng(seed)
        vectors = corpus(rng, 300, 24, 20, content=200, coarse=seed % 2 == 0)
        expected = evaluate_vectors(vectors).to_dict()
        shuffled = {m: take_rows(e, rng.permutation(len(e.ids))) for m, e in vectors.items()}
        for chunk in (1, 7, 64, 4096):
            assert evaluate_vectors(shuffled, chunk=chunk).to_dict() == expected  # bit for bit


def test_equal_to_the_definitions_of_the_independent_score():
    """The shared benchmark's scorer, written again: full matrix, stable argsort, same group."""
    rng = np.random.default_rng(0)
    v = corpus(rng, 120, 16, 12, content=None)
    a, b = v["a"], v["b"]
    group = a.labels["group"] = b.labels["group"] = rng.integers(1, 13, 120)
    a.groups[:] = b.groups[:] = [f"g{x}" for x in group]
    order = np.argsort(-(a.vectors.astype(np.float64) @ b.vectors.T.astype(np.float64)), axis=1, kind="stable")
    rel = (group[order] == group[:, None]).astype(float)
    n, rank = rel.sum(1), np.arange(1, 121)
    disc = 1 / np.log2(rank + 1)
    expected = {f"hit@{k}": (rel[:, :k].sum(1) > 0).mean() for k in (1, 5, 10)}
    expected |= {f"recall@{k}": (rel[:, :k].sum(1) / n).mean() for k in (1, 5, 10)}
    expected["mrr"] = (1 / (rel.argmax(1) + 1)).mean()
    expected["map"] = ((np.cumsum(rel, 1) / rank * rel).sum(1) / n).mean()
    ideal = np.cumsum(disc)
    expected["ndcg@10"] = ((rel[:, :10] * disc[:10]).sum(1) / ideal[np.minimum(n, 10).astype(int) - 1]).mean()
    metrics = evaluate_vectors(v).directions["a->b"].metrics
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-12)


def test_many_relevant_candidates_take_the_sorting_path():
    rng = np.random.default_rng(5)
    vectors = corpus(rng, 150, 4, 2, coarse=True)
    run, truth = naive_direction("a", "b", vectors["a"], vectors["b"])
    assert max(len(t) for t in truth.values()) > 24 > min(len(t) for t in truth.values())
    direction = evaluate_vectors(vectors).directions["a->b"]
    for name, value in judge(run, truth, list(direction.metrics)).items():
        assert direction.metrics[name] == pytest.approx(value, abs=1e-9)


def test_tie_rate_counts_queries_where_the_tie_rule_decides():
    e = np.eye(3, dtype=np.float32)
    labels = {"id": np.array([1, 2, 3]), "group": np.zeros(3, np.int64)}
    left = Embeddings(["r1", "r2", "r3"], [None] * 3, labels, e)
    right = Embeddings(["r1", "r2", "r3"], [None] * 3, labels, e[[0, 0, 2]])
    result = evaluate_vectors({"a": left, "b": right}, pairs=[("a", "b")])
    assert result.tie_rate == {"a->b": pytest.approx(2 / 3)}  # r1 ties r2; r2 (score 0) ties r3; r3 is alone
    assert result.directions["a->b"].metrics["mrr"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)  # ids descending


def test_skipped_queries_and_absent_directions():
    e = np.eye(2, dtype=np.float32)
    a = Embeddings(["x", "y"], ["g", "h"], {"id": np.array([1, 2]), "group": np.array([7, 8])}, e)
    b = Embeddings(["z"], ["g"], {"id": np.array([3]), "group": np.array([7])}, e[:1])
    result = evaluate_vectors({"a": a, "b": b})
    assert result.directions["a->b"].queries == 1 and result.skipped["a->b"] == 1
    assert "a->a" not in result.directions and result.skipped["a->a"] == 2 and result.skipped["b->b"] == 1
    assert set(result.to_dict()) == {"fingerprint", "directions", "skipped", "tie_rate"}
    assert set(result.to_dict()["directions"]["b->a"]) == {"queries", "candidates", "metrics"}


def test_labels_may_be_left_out():
    """Without label arrays the names decide: the same row id, the same group name."""
    rng = np.random.default_rng(3)
    full = corpus(rng, 60, 8, 5, content=None)
    bare = {m: Embeddings(e.ids, e.groups, {m: e.labels[m]}, e.vectors) for m, e in full.items()}
    assert evaluate_vectors(bare).to_dict() == evaluate_vectors(full).to_dict()


def test_bad_input_is_one_line():
    e = Embeddings(["x", "x"], [None, None], {}, np.eye(2, dtype=np.float32))
    with pytest.raises(DataError, match="row id 'x' occurs twice"):
        evaluate_vectors({"a": e})
    with pytest.raises(DataError, match="NaN or infinity, the first at position 1"):
        evaluate_vectors({"a": Embeddings(["x", "y"], [None] * 2, {}, np.array([[1, 0], [np.nan, 1]], np.float32))})
    with pytest.raises(RecipeError, match="whole numbers"):
        evaluate_vectors({}, ks=(0,))
    with pytest.raises(DataError, match="no vectors of this modality"):
        evaluate_vectors({"a": e}, pairs=[("a", "b")])


def test_result_as_frame_and_page():
    result = evaluate_vectors(corpus(np.random.default_rng(0), 40, 8, 4), fingerprint="f" * 64)
    frame = result.to_pandas()
    assert list(frame.index) == list(result.directions) and frame.loc["a->b", "mrr"] == result.directions["a->b"].metrics["mrr"]
    assert "<table>" in result._repr_html_() and "a-&gt;b" in result._repr_html_()
    assert "a->b" in str(result) and "ndcg@10" in str(result)
    assert result.metric("mrr") == pytest.approx(np.mean([result.metric("mrr", d) for d in ("a->b", "b->a")]))
    with pytest.raises(RecipeError, match="there are: hit@1"):
        result.metric("recal@1")


def test_per_query_values_come_with_their_rows_and_clusters():
    vectors = corpus(np.random.default_rng(1), 50, 8, 6, content=30)
    direction = evaluate_vectors(vectors, per_query=True).directions["a->b"]
    assert len(direction.query_ids) == len(direction.query_rows) == len(direction.clusters) == direction.queries
    assert all(i in rows for i, rows in zip(direction.query_ids, direction.query_rows, strict=True))
    for name, values in direction.values.items():
        assert values.mean() == direction.metrics[name]
    groups = dict(zip(vectors["a"].ids, vectors["a"].groups, strict=True))
    for x in range(direction.queries):
        for y in range(direction.queries):
            shared = {groups[r] for r in direction.query_rows[x]} & {groups[r] for r in direction.query_rows[y]} - {None}
            assert not shared or direction.clusters[x] == direction.clusters[y]
