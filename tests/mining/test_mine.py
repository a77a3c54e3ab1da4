"""Mining equals plain loops: every guard, ties, groups, shared content; the result depends on no order, block or memory."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.mining.negatives_table import read_table
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import unique_items
from mmtune.search import blocked, quantised
from tests.support.mining_helpers import corpus, naive_mine, permuted


def options(guards=None, **more):
    base = {"relative_margin": None, "hub_cap": None, "near_duplicates": False}
    return MiningOptions(guards={**base, **(guards or {})}, **more)


def rows(path):
    return pq.read_table(path).to_pylist()


def check(table, expected):
    """The table's mined rows are the reference's, with rank, score and positive; its dropped rows carry the right reason."""
    mined = {(r["query_id"], r["negative_id"]): r for r in table if r["verdict"] == "mined"}
    assert set(mined) == {k for k, v in expected.items() if v[3] == "mined"}
    for r in table:
        rank, score, positive, reason = expected[r["query_id"], r["negative_id"]]
        assert r["rank"] == rank and r["score"] == np.float32(score)
        assert r["positive_score"] is None if positive is None else r["positive_score"] == np.float32(positive)
        assert (r["reason"], r["verdict"]) == (("nearest", "mined") if reason == "mined" else (reason, "dropped"))


CASES = {
    "plain": ({}, {}),
    "skip_top": ({"skip_top": 2}, {"skip_top": 2}),
    "max_score": ({"max_score": 0.3}, {"max_score": 0.3}),
    "absolute": ({"absolute_margin": 0.25}, {"absolute": 0.25}),
    "relative": ({"relative_margin": 0.5}, {"relative": 0.5}),
    "hub": ({"hub_cap": 1.0}, {"hub_cap": 1.0}),
    "no groups": ({"groups": False, "relative_margin": 0.1}, {"groups": False, "relative": 0.1}),
    "no trust": ({"trust_groups": False, "relative_margin": 0.05}, {"trust": False, "relative": 0.05}),
    "all": (
        {"skip_top": 1, "max_score": 0.9, "absolute_margin": 0.1, "relative_margin": 0.2, "hub_cap": 1.5},
        {"skip_top": 1, "max_score": 0.9, "absolute": 0.1, "relative": 0.2, "hub_cap": 1.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a"), ("a", "a"), ("b", "b")])
def test_every_guard_equals_the_loops(tmp_path, case, pair):
    guards, reference = CASES[case]
    data = corpus(60, 12, seed=3)
    o = options(guards, negatives=3, window=10, directions=["->".join(pair)])
    mine_vectors(data, tmp_path / "t.parquet", o)
    expected = naive_mine(data, *pair, negatives=3, window=10, **reference)
    check(rows(tmp_path / "t.parquet"), expected)
    if case in ("skip_top", "max_score", "absolute", "relative"):
        assert any(v[3] not in ("mined", None) for v in expected.values()), "the case must drop something"


@pytest.mark.parametrize("positive", ["mean", "min", "max"])
def test_positive_scores_of_shared_queries(tmp_path, positive):
    data = corpus(50, 12, seed=5, shared=0.8)
    o = options({"relative_margin": 0.1}, negatives=2, window=8, directions=["b->a", "b->b"], positive=positive)
    mine_vectors(data, tmp_path / "t.parquet", o)
    table = rows(tmp_path / "t.parquet")
    for pair in (("b", "a"), ("b", "b")):
        expected = naive_mine(data, *pair, negatives=2, window=8, relative=0.1, positive=positive)
        check([r for r in table if r["direction"] == "->".join(pair)], expected)


def test_relative_margin_is_stricter_below_zero_too(tmp_path):
    """With positive -0.5 and margin 0.2 a candidate must be at most -0.6; `s < 0.8 * positive` would let -0.45 pass."""
    q = np.array([[1, 0, 0]], np.float32)

    def at(cosine):
        return [cosine, np.sqrt(1 - cosine**2), 0]

    c = np.array([at(-0.5), at(-0.45), at(-0.55), at(-0.65)], np.float32)
    labels = {k: np.array(v, np.int64) for k, v in {"id": [1], "group": [0]}.items()}
    more = {k: np.array(v, np.int64) for k, v in {"id": [1, 2, 3, 4], "group": [0, 0, 0, 0]}.items()}
    data = {"a": Embeddings(["x"], [None], labels, q, "f"), "b": Embeddings(["x", "y", "z", "w"], [None] * 4, more, c, "f")}
    mine_vectors(data, tmp_path / "t.parquet", options({"relative_margin": 0.2}, directions=["a->b"]))
    assert [r["negative_id"] for r in rows(tmp_path / "t.parquet") if r["verdict"] == "mined"] == ["w"]


def test_bytes_do_not_depend_on_order_blocks_memory_or_grid(tmp_path, monkeypatch):
    data = corpus(400, 16, seed=7, dyadic=False)
    o = options({"relative_margin": "calibrated", "hub_cap": 2.0}, negatives=3, window=12, sampling="softmax")
    mine_vectors(data, tmp_path / "one.parquet", o)
    one = (tmp_path / "one.parquet").read_bytes()
    mine_vectors(permuted(data, 1), tmp_path / "two.parquet", o)
    assert (tmp_path / "two.parquet").read_bytes() == one
    small = blocked.Plan(37, 600, 0)
    monkeypatch.setattr(blocked, "plan", lambda *_: small)
    monkeypatch.setattr(blocked, "CHUNK", 128)
    mine_vectors(data, tmp_path / "three.parquet", o)
    assert (tmp_path / "three.parquet").read_bytes() == one
    for kind in (quantised.FloatGrid, quantised.Int8Grid):
        monkeypatch.setattr(blocked, "choose_grid", kind)
        mine_vectors(data, tmp_path / "four.parquet", o)
        assert (tmp_path / "four.parquet").read_bytes() == one
    audits = [json.loads((tmp_path / f"{n}.parquet.audit.json").read_text()) for n in ("one", "two", "four")]
    assert audits[0] == audits[1] == audits[2]


@pytest.mark.parametrize("how", ["random", "softmax"])
def test_sampling_stays_in_the_window_and_draws_anew_by_seed(tmp_path, how):
    data = corpus(120, 16, seed=2, dyadic=False, grouped=0)
    tables = []
    for seed in (0, 0, 1):
        mine_vectors(data, tmp_path / "t.parquet", options(negatives=2, window=6, sampling=how, seed=seed, directions=["a->a"]))
        tables.append(rows(tmp_path / "t.parquet"))
    assert tables[0] == tables[1] != tables[2]
    ranks = [r["rank"] for r in tables[0]]
    assert min(ranks) >= 1 and max(ranks) <= 6 and len(set(ranks)) > 3
    counts = {}
    for r in tables[0]:
        counts[r["query_id"]] = counts.get(r["query_id"], 0) + 1
    assert set(counts.values()) == {2}


def test_softmax_prefers_the_hard_ones(tmp_path):
    data = corpus(300, 8, seed=4, dyadic=False, grouped=0, shared=0)
    mean = {}
    for how in ("random", "softmax"):
        o = options(negatives=2, window=20, sampling=how, temperature=0.02, directions=["a->a"])
        mine_vectors(data, tmp_path / "t.parquet", o)
        mean[how] = np.mean([r["rank"] for r in rows(tmp_path / "t.parquet")])
    assert mean["softmax"] < mean["random"] - 2


def test_a_direction_can_have_its_own_guards(tmp_path):
    o = options(negatives=1, window=5, per_direction=[{"direction": "a->b", "guards": {"skip_top": 1}, "negatives": 2}])
    data = corpus(40, 12, seed=1, grouped=0, shared=0)
    mine_vectors(data, tmp_path / "t.parquet", o)
    mined = [r for r in rows(tmp_path / "t.parquet") if r["verdict"] == "mined"]
    assert {r["rank"] for r in mined if r["direction"] == "b->a"} == {1}
    assert {r["rank"] for r in mined if r["direction"] == "a->b"} == {2, 3}


def test_human_verdicts_are_obeyed(tmp_path):
    data = corpus(40, 12, seed=1, grouped=0, shared=0)
    o = options({"max_score": 0.4}, negatives=1, window=12, directions=["a->b"])
    mine_vectors(data, tmp_path / "t.parquet", o)
    before = rows(tmp_path / "t.parquet")
    dropped = next(r for r in before if r["verdict"] == "dropped")
    mined = next(r for r in before if r["verdict"] == "mined")
    lines = [
        {"query_id": dropped["query_id"], "negative_id": dropped["negative_id"], "verdict": "negative"},
        {"query_id": mined["query_id"], "item_id": mined["negative_id"], "grade": 2},
        {"query_id": "nobody", "negative_id": mined["negative_id"], "verdict": "positive"},
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    result = mine_vectors(data, tmp_path / "t.parquet", o.model_copy(update={"judgments": str(path)}))
    after = {(r["query_id"], r["negative_id"]): r for r in rows(tmp_path / "t.parquet")}
    assert after[dropped["query_id"], dropped["negative_id"]]["verdict"] == "mined"
    assert (mined["query_id"], mined["negative_id"]) not in after
    assert any("1 judgments are about rows" in w for w in result.document["warnings"])
    path.write_text('{"query_id": "x"}\n')
    with pytest.raises(DataError, match="line 1"):
        mine_vectors(data, tmp_path / "t.parquet", o.model_copy(update={"judgments": str(path)}))


def test_another_models_table_is_refused_unless_asked_for(tmp_path):
    data = corpus(30, 12)
    mine_vectors(data, tmp_path / "t.parquet", options())
    meta = pq.read_schema(tmp_path / "t.parquet").metadata
    assert meta[b"fingerprint"] == b"print" and "options" in json.loads(meta[b"settings"])
    names = "direction query_id negative_id rank score positive_score verdict reason".split()
    assert pq.read_schema(tmp_path / "t.parquet").names == names
    with pytest.raises(DataError, match="other weights"):
        list(read_table(tmp_path / "t.parquet", "another"))
    assert sum(len(t) for t in read_table(tmp_path / "t.parquet", "another", allow_stale=True)) > 0


def test_clear_messages(tmp_path):
    out = tmp_path / "t.parquet"
    zero = corpus(10, 12)
    zero["a"].vectors[3] = 0
    with pytest.raises(DataError, match=f"zero vectors.*{zero['a'].ids[3]}"):
        mine_vectors(zero, out, options())
    long = corpus(10, 12)
    long["b"].vectors[2] *= 3
    with pytest.raises(DataError, match="unit length"):
        mine_vectors(long, out, options())
    other = corpus(10, 12)
    other["b"].fingerprint = "else"
    with pytest.raises(DataError, match="different models"):
        mine_vectors(other, out, options())
    with pytest.raises(RecipeError, match="a->b"):
        mine_vectors(corpus(10, 12), out, options(directions=["a->c"]))
    assert not out.exists()
    away = mine_vectors(corpus(20, 12, grouped=0), out, options({"max_score": -1.1}))
    assert (
        away.mined == 0
        and "max_score 100%" in away.document["warnings"][0]
        and "the guards dropped all" in away.document["warnings"][0]
    )
    one = mine_vectors(corpus(20, 12, groups=1, grouped=1), out, options())
    assert one.mined == 0 and "known positives of every query" in one.document["warnings"][0]
    alone = corpus(20, 12, shared=0)
    for e in alone.values():
        e.labels["group"] = np.arange(1, 21)
    result = mine_vectors(alone, out, options(directions=["a->a"]))
    assert any("every group has one item only" in w for w in result.document["warnings"])


def test_audit_counts_every_candidate_once(tmp_path):
    data = corpus(80, 12, seed=9)
    o = options({"relative_margin": 0.3, "skip_top": 1, "trust_groups": False}, negatives=2, window=9)
    result = mine_vectors(data, tmp_path / "t.parquet", o)
    for d in result.document["directions"].values():
        assert sum(d["dropped"].values()) + d["mined"] <= d["looked_at"]
        assert d["dropped"]["skip_top"] == d["dropped_alone"]["skip_top"] > 0
        assert d["measured"]["guards"]["relative_margin"]["dropped"] >= d["measured"]["guards"]["relative_margin"]["right"]
    table = rows(tmp_path / "t.parquet")
    assert sum(r["verdict"] == "mined" for r in table) == result.mined
    assert result.page.read_text().startswith("<!doctype html>")


def test_calibration_separates_hidden_positives(tmp_path):
    """Groups of near vectors, a tenth of them unlabelled: the calibrated margin drops most unlabelled members of the group, and few others."""
    rng = np.random.default_rng(0)
    n, dim = 600, 32
    truth = rng.integers(0, 60, n)
    centre = rng.standard_normal((60, dim))
    x = centre[truth] + 0.25 * rng.standard_normal((n, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    hidden = rng.random(n) < 0.1
    labels = {"id": np.arange(1, n + 1), "group": np.where(hidden, 0, truth + 1)}
    e = Embeddings([f"{i:04d}" for i in range(n)], [None] * n, labels, x, "f")
    o = MiningOptions(directions=["a->a"], negatives=4, window=20)
    result = mine_vectors({"a": e}, tmp_path / "t.parquet", o)
    d = result.document["directions"]["a->a"]
    assert d["relative_margin"]["how"].startswith("calibrated") and d["relative_margin"]["caught"] > 0.9
    number = {i: k for k, i in enumerate(e.ids)}
    table = rows(tmp_path / "t.parquet")
    false = [r for r in table if truth[number[r["query_id"]]] == truth[number[r["negative_id"]]]]
    assert len(false) > 300
    assert np.mean([r["verdict"] == "dropped" for r in false]) > 0.9
    assert np.mean([r["verdict"] == "dropped" for r in table if r not in false]) < 0.1


def test_a_row_that_two_sources_hold_is_one_item_and_two_rows_of_one_id_are_refused():
    """`data.train: [A, B]` where B repeats a row of A, as the rows that people marked do."""
    x = np.eye(3, dtype=np.float32)
    labels = {"image": np.array([5, 6, 5]), "group": np.array([1, 2, 1])}
    items = unique_items("image", Embeddings(["a", "b", "a"], [None] * 3, labels, x, "f"), repeated_ids=True)
    assert sorted(items.ids) == ["a", "b"] and items.of_row[0] == items.of_row[2] != items.of_row[1]
    with pytest.raises(DataError, match="'a' occurs twice, with different content"):
        unique_items(
            "image", Embeddings(["a", "b", "a"], [None] * 3, labels | {"image": np.array([5, 6, 7])}, x, "f"), repeated_ids=True
        )
