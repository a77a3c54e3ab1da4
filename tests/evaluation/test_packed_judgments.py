"""Scores of a packed table as graded judgments: nDCG equals a loop, and an evaluation without them says so."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.errors import DataWarning
from mmtune.training.build_objective import build_objective
from mmtune.training.unused_inputs import unused_scores
from tests.support.data_helpers import picture


def test_ndcg_with_packed_scores_equals_a_loop(tmp_path):
    scores = [3, 1, 0, 2, 0, 1]
    rows = [{"text": f"query {i // 3}", "image": picture(i), "score": s} for i, s in enumerate(scores)]
    packed = mmtune.pack(rows, tmp_path / "graded", score="score")
    assert packed.negatives.judgments == 6
    data, path = str(tmp_path / "graded"), tmp_path / "graded" / "judgments.jsonl"
    with pytest.warns(DataWarning, match="the scores that were packed are not used"):
        plain = mmtune.evaluate("tiny:clip", data)
    graded = mmtune.evaluate("tiny:clip", data, qrels=path, metrics=["ndcg@3"])
    model = mmtune.load("tiny:clip")
    queries, images = model.encode(text=["query 0", "query 1"]), model.encode(image=[r["image"] for r in rows])
    want = []
    for q in range(2):
        grade = np.array([s if i // 3 == q else 0 for i, s in enumerate(scores)], float)
        order = np.argsort(-(images @ queries[q]))[:3]
        discount = 1 / np.log2(np.arange(2, 5))
        want.append((grade[order] * discount).sum() / (np.sort(grade)[::-1][:3] * discount).sum())
    assert graded.metric("ndcg@3", "text->image") == pytest.approx(np.mean(want), abs=1e-6)
    assert plain.metric("map", "text->image") != graded.metric("map", "text->image")
    assert json.loads(path.read_text().splitlines()[0])["grade"] == 3


def test_scores_that_no_loss_uses_are_named(tmp_path):
    from mmtune.data.shards.dataset import open_data
    from mmtune.data.shards.weighted_concat import WeightedConcat

    rows = [{"text": f"t{i}", "image": picture(i), "relevance": i / 4} for i in range(4)]
    mmtune.pack(rows, tmp_path / "graded", score="relevance")
    data = WeightedConcat([open_data(str(tmp_path / "graded"))], [1.0])

    def lines(*terms):
        return unused_scores(build_objective(list(terms), [("image", "text")]), data)

    assert "no loss uses the scores in the column 'relevance'" in lines({"loss": "info_nce"})[0]
    assert lines({"loss": "info_nce", "weights": "relevance"}) == lines({"loss": "cosent", "column": "relevance"}) == []
