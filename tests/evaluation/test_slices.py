"""Slices, judgments and TREC files: what is written is what other tools score."""

import json

import ir_measures
import numpy as np
import pytest

from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.slices import slice_direction, slices_by_value
from mmtune.relevance.judgments import qrels_for, read_qrels
from mmtune.relevance.trec_files import write_qrels, write_run
from tests.support.evaluate_helpers import corpus, measure, unit


def test_slices_of_a_column_and_of_a_quantity():
    assert slices_by_value("kind", ["r1", "r2", "r3", "r4"], ["x", "y", "x", None]) == {
        "kind=x": {"r1", "r3"},
        "kind=y": {"r2"},
    }
    assert set(slices_by_value("size", ["r1", "r2"], [36864.0, 0.5])) == {"size=36864", "size=0.5"}
    parts = slices_by_value("length", [f"r{i}" for i in range(101)], range(101))
    assert list(map(len, parts.values())) == [26, 25, 25, 25] and set().union(*parts.values()) == {f"r{i}" for i in range(101)}
    assert all(name.startswith("length=") for name in parts)
    with pytest.raises(RecipeError, match="no row has a value"):
        slices_by_value("kind", ["r1"], [None])


def test_a_slice_is_the_mean_over_its_queries_worst_first():
    vectors = corpus(np.random.default_rng(0), 60, 6, 8, content=40)
    found = evaluate_vectors(vectors, per_query=True).directions["a->b"]
    ids = sorted(vectors["a"].ids)
    parts = slice_direction(found, {"first": set(ids[:20]), "second": set(ids[20:]), "none": {"?"}}, "mrr")
    assert set(parts) == {"first", "second"}
    for name, rows in (("first", set(ids[:20])), ("second", set(ids[20:]))):
        here = [i for i, r in enumerate(found.query_rows) if rows & set(r)]
        assert parts[name].queries == len(here)
        assert parts[name].metrics["mrr"] == pytest.approx(np.mean([found.values["mrr"][i] for i in here]))
    values = [s.metrics["mrr"] for s in parts.values()]
    assert values == sorted(values)
    with pytest.raises(RecipeError, match="per_query"):
        slice_direction(evaluate_vectors(vectors).directions["a->b"], {"first": set(ids)}, "mrr")


@pytest.mark.parametrize("pair", [("a", "b"), ("a", "a")])
@pytest.mark.parametrize("graded", [False, True])
def test_exported_run_and_judgments_score_the_same_elsewhere(tmp_path, pair, graded):
    rng = np.random.default_rng(3)
    vectors = corpus(rng, 50, 4, 8, content=60, coarse=True)
    ids = vectors["a"].ids
    qrels = {q: {d: int(rng.integers(0, 4)) for d in rng.choice(ids, 5)} for q in ids} if graded else None
    write_run(tmp_path / "run", vectors, pair, k=100)
    write_qrels(tmp_path / "qrels", vectors, pair, qrels)
    found = evaluate_vectors(vectors, pairs=[pair], qrels=qrels).directions["->".join(pair)]
    run = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    truth = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels")))
    scored = ir_measures.calc_aggregate([measure(n) for n in found.metrics], truth, run)
    for name, value in found.metrics.items():
        assert scored[measure(name)] == pytest.approx(value, abs=1e-9), name


def test_judgments_are_read_from_trec_and_from_json_lines(tmp_path):
    (tmp_path / "t").write_text("q1 0 d1 2\nq1 0 d2 0\n\nq2\t0\td1\t-1\n")
    rows = [
        {"query": "q1", "item": "d1", "grade": 2},
        {"qid": "q1", "doc": "d2", "rel": 0},
        {"query_id": "q2", "item_id": "d1", "grade": -1},
    ]
    (tmp_path / "j").write_text("".join(json.dumps(r) + "\n" for r in rows))
    expected = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    assert read_qrels(tmp_path / "t") == read_qrels(tmp_path / "j") == expected
    (tmp_path / "n").write_text('{"query": 7, "item": 8}\n')
    assert read_qrels(tmp_path / "n") == {"7": {"8": 1}}


def test_judgments_by_people(tmp_path):
    """The verdicts that mining reads, several judges, and a direction of its own."""
    rows = [
        {"query_id": "r1", "negative_id": "r2", "verdict": "negative"},
        {"query_id": "r1", "negative_id": "r2", "verdict": "positive"},
        {"query": "r1", "item": "r3", "grade": 3, "judge": "ann"},
        {"query": "r1", "item": "r3", "grade": 0, "judge": "bob"},
        {"query": "r1", "item": "r3", "grade": 2, "judge": "cem"},
        {"query": "r1", "item": "r3", "grade": 1, "judge": "ann"},
        {"query_id": "r1", "candidate_id": "r4", "verdict": "positive", "direction": "a->b"},
    ]
    (tmp_path / "j").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = read_qrels(tmp_path / "j")
    assert found == {"r1": {"r2": 1, "r3": 1}} and found.directed == {"a->b": {"r1": {"r4": 1}}}
    rng = np.random.default_rng(3)
    ids = ["r1", "r2", "r3", "r4"]
    labels = {"id": np.arange(1, 5)}
    vectors = {m: Embeddings(ids, [None] * 4, labels, unit(rng.standard_normal((4, 6)))) for m in "ab"}
    result = evaluate_vectors(vectors, pairs=[("a", "b"), ("b", "a")], qrels=found)
    for name, answers in (("a->b", {"r2", "r3", "r4"}), ("b->a", {"r2", "r3"})):
        a, b = (vectors[m].vectors for m in name.split("->"))
        rank = {r: 1 + sum(b @ a[0] > b[i] @ a[0]) for i, r in enumerate(ids)}
        assert result.directions[name].queries == 1
        assert result.directions[name].metrics["mrr"] == pytest.approx(1 / min(rank[r] for r in answers))
    assert qrels_for(tmp_path / "j", ids) == found and qrels_for(None, ids) is None
    with pytest.raises(DataError, match="about two rows of these data .the first is about 'r1'"):
        qrels_for(tmp_path / "j", ["r1", "x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q d 1\n", "line 1: 3 columns"),
        ("q 0 d 1\nq 0 d x\n", "line 2: the grade 'x' is no number"),
        ("q 0 d 0.5\n", "not a whole number"),
        ("q 0 d 1\nq 0 d 2\n", "line 2: 'q' and 'd' are judged 1 above and 2 here"),
        ('{"query": "q"}\n', 'needs "query" and "item"; this line has query'),
        ("{broken\n", "line 1: not valid JSON"),
        ("\n", "no judgments"),
    ],
)
def test_bad_judgments_name_their_line(tmp_path, content, message):
    (tmp_path / "q").write_text(content)
    with pytest.raises(DataError, match=message):
        read_qrels(tmp_path / "q")


def test_ids_with_white_space_are_refused_not_mangled(tmp_path):
    vectors = corpus(np.random.default_rng(0), 5, 4, 2)
    for e in vectors.values():
        e.ids[0] = "two words"
    with pytest.raises(DataError, match="'two words' holds white space"):
        write_run(tmp_path / "run", vectors, ("a", "b"))
    assert list(tmp_path.iterdir()) == []
