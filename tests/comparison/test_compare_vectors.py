"""Paired comparison, intervals by cluster, the gate, the confusable slice, and the refusal of rows trained on."""

from dataclasses import replace

import numpy as np
import pytest

from mmtune.comparison.bootstrap_intervals import bootstrap_intervals, t_quantile
from mmtune.comparison.compare_vectors import compare_vectors
from mmtune.comparison.confusable import Confusable, accuracy, freeze
from mmtune.comparison.gate import Gate, complete_gate, decide, read_gate
from mmtune.comparison.paired_difference import PairedDifference
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.clusters import clusters_by_value, row_clusters
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.leakage import trained_rows
from mmtune.relevance.items import take_rows
from tests.support.evaluate_helpers import corpus, unit


def noisy(vectors, amount, seed):
    """The same rows, each item's own direction mixed with noise; `amount` 0 leaves them."""
    rng = np.random.default_rng(seed)
    return {
        m: Embeddings(e.ids, e.groups, e.labels, unit(e.vectors + amount * rng.standard_normal(e.vectors.shape)), f"f{seed}")
        for m, e in vectors.items()
    }


def grouped_corpus(seed, groups=80, each=4, dim=24):
    """A corpus where rows of a group lie together, the same point in both modalities."""
    rng = np.random.default_rng(seed)
    n, group = groups * each, np.repeat(np.arange(1, groups + 1), each)
    ids = [f"r{i:04d}" for i in range(n)]
    centre = rng.standard_normal((groups + 1, dim))
    labels = {"id": np.arange(1, n + 1), "group": group, "a": np.arange(1, n + 1), "b": np.arange(1, n + 1)}
    return {m: Embeddings(ids, [f"g{g}" for g in group], labels, unit(centre[group])) for m in ("a", "b")}


def test_a_forgetting_budget_keeps_the_other_default_guards(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for gate, guards in (
        ("", {"a->b": -0.01, "b->a": -0.01, "confusable": 0.0, "retention": -0.05}),
        ("gate: {guards: {}}", {"retention": -0.05}),
        ("gate: {guards: {retention: -0.02, confusable: -0.1}}", {"retention": -0.02, "confusable": -0.1}),
    ):
        recipe.write_text(f"model: x\nretention: {{data: y, at_most: 0.05}}\n{gate}\n")
        chosen = Gate.read(read_gate(recipe))
        assert complete_gate(chosen, ["a->b", "b->a"], ["confusable", "retention"]).guards == guards


def test_differences_are_paired_and_counted_by_hand():
    vectors = grouped_corpus(0)
    base, candidate = noisy(vectors, 0.9, 1), noisy(vectors, 0.5, 2)
    comparison = compare_vectors(base, candidate, gate={"metric": "mrr", "direction": "a->b"})
    before, after = (evaluate_vectors(v, per_query=True).directions["a->b"] for v in (base, candidate))
    delta = after.values["mrr"] - before.values["mrr"]
    change = comparison.directions["a->b"]
    assert change.difference == pytest.approx(delta.mean()) and change.candidate - change.base == pytest.approx(delta.mean())
    assert (change.wins, change.losses, change.queries, change.clusters) == ((delta > 0).sum(), (delta < 0).sum(), 320, 80)
    assert change.interval[0] < delta.mean() < change.interval[1]
    assert comparison.verdict == "pass" and comparison.status == 0
    document = comparison.to_dict()
    assert set(document["directions"]["a->b"]) >= {"base", "candidate", "difference", "interval", "wins", "losses"}
    mean = comparison.metrics["mean"]["mrr"].difference
    assert mean == pytest.approx(np.mean([comparison.metrics[x]["mrr"].difference for x in ("a->b", "b->a")]))
    reverse = compare_vectors(candidate, base, gate={"metric": "mrr", "direction": "a->b"})
    assert reverse.verdict == "fail" and reverse.status == 1
    rng = np.random.default_rng(9)
    shuffled = {m: take_rows(e, rng.permutation(320)) for m, e in candidate.items()}
    assert compare_vectors(base, shuffled, gate={"metric": "mrr", "direction": "a->b"}).to_dict() == document
    assert len(comparison.to_pandas()) > 10 and "PASS" in comparison._repr_html_() and "a->b" in str(comparison)


def test_a_model_against_itself_never_passes():
    vectors = noisy(grouped_corpus(1), 0.7, 1)
    comparison = compare_vectors(vectors, vectors)
    assert comparison.verdict == "fail" and comparison.directions["mean"].interval == (0, 0)


def test_interval_covers_when_nothing_differs():
    """1,000 comparisons with no true difference, 200 clustered queries each: the 95% interval misses zero in 3 to 7%."""
    rng, misses = np.random.default_rng(11), 0
    for run in range(1000):
        size = rng.integers(1, 9, 45)
        clusters = np.repeat(np.arange(45), size)
        values = rng.standard_normal(45)[clusters] * 0.1 + rng.standard_normal(len(clusters)) * 0.1
        low, high = bootstrap_intervals([(values[:, None], clusters)], resamples=600, seed=run)
        misses += not low[0] <= 0 <= high[0]
    assert 30 <= misses <= 70, misses


def test_rows_instead_of_clusters_would_not_cover():
    """The reason for clusters: the same differences resampled by row miss zero several times too often."""
    rng, misses = np.random.default_rng(11), 0
    for run in range(200):
        clusters = np.repeat(np.arange(45), 5)
        values = rng.standard_normal(45)[clusters] * 0.1 + rng.standard_normal(len(clusters)) * 0.05
        low, high = bootstrap_intervals([(values[:, None], np.arange(len(values)))], resamples=300, seed=run)
        misses += not low[0] <= 0 <= high[0]
    assert misses > 40


@pytest.mark.parametrize(("runs", "most"), [(20, 5), pytest.param(200, 18, marks=pytest.mark.slow)])
def test_whole_comparisons_cover_and_a_retention_drop_is_refused(runs, most):
    """Two equally noisy models differ by chance alone; a retention corpus made 3 points worse must not get through."""
    excluded = refused = 0
    for run in range(runs):
        vectors, retained = grouped_corpus(run, 40, 3), grouped_corpus(1000 + run, 200, 1)
        base, candidate = noisy(vectors, 0.8, 2 * run), noisy(vectors, 0.8, 2 * run + 1)
        change = compare_vectors(base, candidate, ks=(10,), resamples=400).directions["mean"]
        excluded += not change.interval[0] <= 0 <= change.interval[1]
        base_retained = noisy(retained, 0.1, run)
        candidate_retained = {m: Embeddings(e.ids, e.groups, e.labels, e.vectors.copy(), "f") for m, e in base_retained.items()}
        spoil(candidate_retained, 0.03, run)
        gate = {"metric": "hit@10", "guards": {"retention": -0.01}}
        comparison = compare_vectors(
            base, noisy(vectors, 0.2, run), ks=(10,), gate=gate, retention=(base_retained, candidate_retained), resamples=400
        )
        assert comparison.slices["retention"].difference == pytest.approx(-0.03, abs=1e-9)
        refused += comparison.status == 1
    assert excluded <= most  # 5% of them by right; more than that has a chance below 1 in 100
    assert refused >= 0.95 * runs


def spoil(vectors, share, seed):
    """Turn the vectors of a `share` of one modality's rows round, so that they neither find nor are found."""
    rng = np.random.default_rng(seed)
    e = vectors["a"]
    at = rng.choice(len(e.ids), round(share * len(e.ids)), replace=False)
    e.vectors[at] *= -1


def test_too_few_clusters_give_the_widest_interval():
    low, high = bootstrap_intervals([(np.ones((40, 1)), np.repeat(np.arange(4), 10))])
    assert (low[0], high[0]) == (-1, 1)


def test_t_quantile_against_the_published_table():
    for p, freedom, t in (
        (0.975, 4, 2.776445),
        (0.975, 10, 2.228139),
        (0.975, 60, 2.000298),
        (0.95, 5, 2.015048),
        (0.995, 30, 2.749996),
    ):
        assert t_quantile(p, freedom) == pytest.approx(t, abs=2e-6)


def change(difference, low, high):
    return PairedDifference(0.5, 0.5 + difference, difference, (low, high), 1, 1, 100, 50)


@pytest.mark.parametrize(
    ("gain", "guard", "verdict", "word"),
    [
        (change(0.03, 0.02, 0.04), change(0, -0.005, 0.005), "pass", "1 guard held"),
        (change(0.03, 0.005, 0.05), change(0, 0, 0), "inconclusive", "both sides of +0.01"),
        (change(0.0, -0.01, 0.009), change(0, 0, 0), "fail", "not more than"),
        (change(0.03, 0.02, 0.04), change(-0.03, -0.04, -0.02), "fail", "guard 'retention'"),
        (change(0.03, 0.02, 0.04), change(-0.01, -0.02, 0.0), "inconclusive", "may lie below"),
    ],
)
def test_verdicts(gain, guard, verdict, word):
    gate = Gate(metric="ndcg@10", direction="a->b", min_gain=0.01, guards={"retention": -0.01})
    verdict_given, reason = decide(gate, gain, {"retention": guard})
    assert verdict_given == verdict and word in reason and reason.count("\n") == 0


def test_a_gate_refuses_unknown_keys_and_names():
    with pytest.raises(RecipeError, match="gate.min_gian: unknown; did you mean min_gain"):
        Gate.read({"min_gian": 1})
    with pytest.raises(RecipeError, match="are numbers"):
        Gate.read({"guards": {"retention": "little"}})
    vectors = noisy(grouped_corpus(2, 20, 2), 0.7, 1)
    for bad, message in (
        ({"metric": "ndgc@10"}, "no metric 'ndgc@10'"),
        ({"direction": "a->c"}, "there are: a->b, b->a"),
        ({"guards": {"generl": 0}}, "no such slice or direction"),
    ):
        with pytest.raises(RecipeError, match=message):
            compare_vectors(vectors, vectors, gate=bad)
    assert "ndcg@3" in compare_vectors(vectors, vectors, gate={"metric": "ndcg@3"}).metrics["a->b"]


def test_a_gate_is_read_from_a_recipe_or_alone(tmp_path):
    for text, expected in (
        ("model: x\ngate: {metric: map, min_gain: 0.1}\n", {"metric": "map", "min_gain": 0.1}),
        ("metric: map\n", {"metric": "map"}),
        ("model: x\ngate: null\n", None),
        ("model: x\n", None),
    ):
        (tmp_path / "g.yaml").write_text(text)
        assert read_gate(tmp_path / "g.yaml") == expected
    for text, line in (("[1]", "a gate is a mapping"), ("a: {", "not valid YAML")):
        (tmp_path / "g.yaml").write_text(text)
        with pytest.raises(RecipeError, match=line):
            read_gate(tmp_path / "g.yaml")


def test_twins_are_the_nearest_items_of_another_group(tmp_path):
    rng = np.random.default_rng(5)
    vectors = corpus(rng, 60, 6, 12, content=None)
    frozen = freeze(vectors, ("a", "b"), share=1.0)
    row = {r: i for i, r in enumerate(vectors["b"].ids)}
    group, sim = vectors["b"].groups, vectors["b"].vectors.astype(np.float64) @ vectors["b"].vectors.T
    for t in frozen.twins:
        r, w = row[t.right], row[t.twin]
        others = [j for j in range(60) if j != r and (group[j] is None or group[j] != group[r])]
        assert w == max(others, key=lambda j: sim[r, j]) and t.similarity == pytest.approx(sim[r, w], abs=1e-6)
        q = vectors["a"].ids.index(t.query)
        assert t.query == t.right or vectors["a"].groups[q] == group[r]
    assert len(frozen.twins) == len({t.query for t in frozen.twins}) == 60
    part = freeze(vectors, ("a", "b"), share=0.25)
    assert part.twins == frozen.twins[:15]
    part.save(tmp_path / "c.json")
    assert Confusable.read(tmp_path / "c.json") == part
    values, ids = accuracy(part, vectors)
    for value, t in zip(values, part.twins, strict=True):
        q = vectors["a"].vectors[vectors["a"].ids.index(t.query)].astype(np.float64)
        right, twin = (q @ vectors["b"].vectors[row[x]] for x in (t.right, t.twin))
        assert value == (right > twin)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="not a confusable slice"):
        Confusable.read(tmp_path / "x.json")
    with pytest.raises(DataError, match="make a new slice from these data"):
        accuracy(part, {m: Embeddings(["?"], [None], {}, e.vectors[:1]) for m, e in vectors.items()})


def test_confusable_slice_in_a_comparison():
    vectors = grouped_corpus(3, 60, 3)
    base, candidate = noisy(vectors, 0.8, 1), noisy(vectors, 0.4, 2)
    frozen = freeze(base, ("a", "b"))
    comparison = compare_vectors(base, candidate, confusable=frozen, slices={"half": set(base["a"].ids[:90])})
    assert set(comparison.slices) == {"confusable", "confusable pairs", "half"} and "confusable" in comparison.gate.guards
    assert comparison.slices["confusable pairs"].queries == 45 and comparison.slices["half"].queries == 180
    differences = [c.difference for c in comparison.slices.values()]
    assert differences == sorted(differences)


def test_a_gate_without_guards_gets_the_default_ones():
    """One option, such as --metric, must not drop the guards that hold without it."""
    vectors = grouped_corpus(3, 60, 3)
    base, candidate = noisy(vectors, 0.8, 1), noisy(vectors, 0.1, 2)
    frozen = freeze(base, ("a", "b"))

    def compared(gate):
        return compare_vectors(base, candidate, confusable=frozen, gate=gate)

    default = compared(None)
    guards = {"a->b": -0.01, "b->a": -0.01, "confusable": 0.0}
    assert default.gate.guards == guards and "3 guards held" in default.reason
    spelt_out = compared({"metric": "ndcg@10", "direction": "mean", "min_gain": 0.0})
    assert spelt_out.to_dict() == default.to_dict()
    assert compared({"metric": "map"}).gate.guards == guards
    assert compared({"direction": "a->b"}).gate.guards == {"confusable": 0.0}
    assert compared({"guards": {}}).gate.guards == {} and compared({"guards": {"a->b": -1}}).gate.guards == {"a->b": -1}


def test_a_default_guard_with_too_few_clusters_decides_nothing():
    """Photos of ten classes: the confusable queries lie in two of them, and no number of photos would give an interval."""
    vectors = grouped_corpus(3, 12, 20)
    base, candidate = noisy(vectors, 0.8, 1), noisy(vectors, 0.2, 2)
    whole = freeze(base, ("a", "b"), share=1.0)
    two = set(base["a"].groups[:40])
    group = dict(zip(base["a"].ids, base["a"].groups, strict=True))
    few = replace(whole, twins=[t for t in whole.twins if group[t.query] in two])
    comparison = compare_vectors(base, candidate, confusable=few)
    assert comparison.slices["confusable"].clusters == 2 and "confusable" not in comparison.gate.guards
    assert comparison.verdict == "pass" and comparison.reason.endswith(
        "The guard 'confusable' was left out: 2 clusters, and an interval needs at least 5 clusters."
    )
    asked = compare_vectors(base, candidate, confusable=few, gate={"guards": {"confusable": 0.0}})
    assert asked.verdict == "inconclusive" and "with 2 clusters no interval is possible" in asked.reason
    assert str(asked.slices["confusable"]).endswith(" [2 clusters: no interval]")


def test_no_interval_of_a_difference_exceeds_what_is_possible():
    values = np.ones((40, 1))
    values[:6] = 0.0
    low, high = bootstrap_intervals([(values, np.arange(40) // 5)])
    assert low[0] < 0.85 < high[0] <= 1
    low, high = bootstrap_intervals([(-values, np.arange(40) // 5)])
    assert -1 <= low[0] < -0.85
    low, high = bootstrap_intervals([(10 * values, np.arange(40) // 5)])
    assert 1 < low[0] < 8.5 < high[0] <= 10


def test_clusters_follow_groups_and_content_in_chains():
    labels = {"id": np.arange(1, 6), "group": np.array([1, 1, 2, 0, 0]), "a": np.array([1, 2, 2, 4, 5])}
    e = Embeddings(list("vwxyz"), [None] * 5, labels, np.eye(5, dtype=np.float32))
    cluster = row_clusters({"a": e})
    assert cluster["v"] == cluster["w"] == cluster["x"] and len({cluster["x"], cluster["y"], cluster["z"]}) == 3


def test_a_column_says_which_rows_are_resampled_together():
    """Three groups give no interval, and more queries cannot; the recordings do."""
    rng = np.random.default_rng(0)
    n = 48
    labels = {"id": np.arange(1, n + 1), "group": np.arange(n) % 3 + 1, "a": np.arange(n) + 1, "b": np.arange(n) % 3 + 1}
    words = unit(rng.standard_normal((3, 8)))[np.arange(n) % 3]

    def model(noise):
        near = unit(words + noise * rng.standard_normal((n, 8)))
        names, groups = [f"r{i:02d}" for i in range(n)], [f"g{i % 3}" for i in range(n)]
        return {"a": Embeddings(names, groups, labels, near), "b": Embeddings(names, groups, labels, words)}

    base, candidate = model(2.0), model(0.05)
    gate = {"metric": "map", "direction": "a->b"}
    by_group = compare_vectors(base, candidate, gate=gate)
    assert by_group.directions["a->b"].clusters == 3 and by_group.directions["a->b"].interval == (-1.0, 1.0)
    assert by_group.verdict == "inconclusive" and "with 3 clusters no interval is possible" in by_group.reason
    assert "more test queries" not in by_group.reason
    source = {f"r{i:02d}": f"rec{i // 4}" if i < 44 else None for i in range(n)}
    by_recording = compare_vectors(base, candidate, gate=gate, source=source)
    difference = by_recording.directions["a->b"]
    assert difference.clusters == 11 + 4 and difference.queries == n and by_recording.verdict == "pass"
    clusters = clusters_by_value([[r] for r in source], source)
    deltas = np.array(
        [
            after - before
            for before, after in zip(
                by_recording.base.directions["a->b"].values["map"],
                by_recording.candidate.directions["a->b"].values["map"],
                strict=True,
            )
        ]
    )
    queries = by_recording.base.directions["a->b"].query_ids
    at = [list(source).index(q) for q in queries]
    low, high = bootstrap_intervals([(deltas[:, None], clusters[at])])
    assert difference.interval == pytest.approx((low[0], high[0]))
    assert by_recording.directions["b->a"].clusters == 3  # a caption of several recordings is a cluster of its own
    several = clusters_by_value([["x", "y"], ["x"], ["y"], ["z"], ["w"]], {"w": "1", "x": "1", "y": "2", "z": None})
    assert several[1] == several[4] and len(set(several.tolist())) == 4


def test_rows_trained_on_are_refused_but_a_class_name_is_not():
    n = 40
    labels = {
        "id": np.arange(100, 100 + n),
        "group": np.arange(n) % 4 + 1,
        "a": np.arange(500, 500 + n),
        "b": np.arange(n) % 4 + 1,
    }
    e = Embeddings([f"r{i}" for i in range(n)], ["g"] * n, labels, unit(np.random.default_rng(0).standard_normal((n, 4))))
    vectors = {"a": e, "b": e}
    assert trained_rows(vectors, {"id": {1, 2}, "a": {3}, "b": {1, 2, 3, 4}}) == {}
    assert trained_rows(vectors, {"id": {105}}) == {"r5": "its id was trained on"}
    assert trained_rows(vectors, {"a": {507}}) == {"r7": "its a was trained on"}
    many = {"id": set(range(1000, 1030)), "a": {507, 508}}  # 30 rows were trained on, and two contents of "a"
    assert set(trained_rows(vectors, many)) == {"r7", "r8"}  # a mix of sets: perhaps only two rows have an "a"
    assert set(trained_rows(vectors, {**many, "a:rows": {3}})) == {"r7", "r8"}
    assert trained_rows(vectors, {**many, "a:rows": {30}}) == {}  # "a" repeats in training: it identifies no row
    only = {"b": e}
    assert len(trained_rows(only, {"b": {1}})) == 10  # nothing but the repeated content, all of it seen
    with pytest.raises(DataError, match="the candidate was trained on 1 of these 40 rows \\(row 'r7': its a"):
        compare_vectors(vectors, vectors, trained={"a": {507}})


def test_other_rows_or_modalities_are_refused():
    vectors = grouped_corpus(4, 10, 2)
    fewer = {m: take_rows(e, np.arange(5)) for m, e in vectors.items()}
    with pytest.raises(DataError, match="only one model has a vector of row"):
        compare_vectors(vectors, fewer)
    with pytest.raises(DataError, match="both need the same"):
        compare_vectors(vectors, {"a": vectors["a"]})
