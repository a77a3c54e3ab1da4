"""Files of judgments: TREC or JSON lines, graded relevance for evaluation and verdicts for mining."""

import json

import numpy as np
import pytest

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.relevance.judgments import Verdict, qrels_for, read_qrels, read_verdicts
from mmtune.runtime.files import append_jsonl
from tests.support.evaluate_helpers import unit


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


def test_verdicts_several_judges_and_a_direction(tmp_path):
    """Lines as mining reads them, several judges of one pair, and a judgment of one direction."""
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
    qrels = read_qrels(tmp_path / "j")
    assert qrels == {"r1": {"r2": 1, "r3": 1}} and qrels.directed == {"a->b": {"r1": {"r4": 1}}}
    rng = np.random.default_rng(3)
    ids = ["r1", "r2", "r3", "r4"]
    labels = {"id": np.arange(1, 5)}
    vectors = {m: Embeddings(ids, [None] * 4, labels, unit(rng.standard_normal((4, 6)))) for m in "ab"}
    result = evaluate_vectors(vectors, pairs=[("a", "b"), ("b", "a")], qrels=qrels)
    for name, relevant in (("a->b", {"r2", "r3", "r4"}), ("b->a", {"r2", "r3"})):
        a, b = (vectors[m].vectors for m in name.split("->"))
        rank = {r: 1 + sum(b @ a[0] > b[i] @ a[0]) for i, r in enumerate(ids)}
        assert result.directions[name].queries == 1
        assert result.directions[name].metrics["mrr"] == pytest.approx(1 / min(rank[r] for r in relevant))
    assert qrels_for(tmp_path / "j", ids) == qrels and qrels_for(None, ids) is None
    with pytest.raises(DataError, match="about two rows of these data .the first has query 'r1'"):
        qrels_for(tmp_path / "j", ["r1", "x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q d 1\n", "line 1: 3 columns"),
        ("q 0 d 1\nq 0 d x\n", "line 2: the grade 'x' is not a number"),
        ("q 0 d 0.5\n", "not a whole number"),
        ("q 0 d 1\nq 0 d 2\n", "line 2: the pair 'q' and 'd' has grade 1 on an earlier line and 2 here"),
        ('{"query": "q"}\n', 'needs "query" and "item"; this line has query'),
        ("{broken\n", "line 1: not valid JSON"),
        ("\n", "no judgments"),
    ],
)
def test_bad_judgments_name_their_line(tmp_path, content, message):
    (tmp_path / "q").write_text(content)
    with pytest.raises(DataError, match=message):
        read_qrels(tmp_path / "q")


def test_mining_reads_verdicts_in_order_and_skips_torn_lines(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"query_id": "a", "negative_id": "b", "verdict": "neg')  # its writer was killed
    append_jsonl(path, {"query_id": "a", "negative_id": "b\u2028c", "verdict": "negative"})
    append_jsonl(path, {"query_id": "a", "item_id": "d", "grade": 2, "direction": "a->b"})
    append_jsonl(path, {"query": "a", "item": "d", "grade": 0.5})
    expected = [Verdict("a", "b\u2028c", False), Verdict("a", "d", True, "a->b"), Verdict("a", "d", True)]
    assert read_verdicts(path) == expected
    with path.open("a") as f:
        f.write('{"query": "a", "it')
    assert read_verdicts(path) == expected
    for line, message in (
        ('{"query": "a", "item": "b"}', 'line 1: needs a "query", an "item", and a "verdict"'),
        (
            '{"query": "a", "item": "b", "score": 0.9}',
            'line 1: needs a "query", an "item", and a "verdict"',
        ),  # a mined pair, not judged
        ('{"query": "a", "verdict": "positive"}', 'line 1: a judgment needs "query" and "item"'),
    ):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            read_verdicts(path)
    with pytest.raises(DataError, match="this file with judgments does not exist"):
        read_verdicts(tmp_path / "none")
