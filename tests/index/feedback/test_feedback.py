"""Interleaving, click feedback, and its export as judgments."""

import json
import random
import subprocess
import sys

import pytest

import mmtune
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.index.feedback.interleave import draft, wilson
from mmtune.relevance.judgments import read_qrels, read_verdicts
from tests.support.corpora import COLOURS
from tests.support.index_helpers import BASE, again, coll_fixture, row, shelf_fixture  # noqa: F401


def test_team_draft_is_fair_and_shows_each_item_once():
    a, b = list("abcdef"), list("cafxyz")
    first = {"live": 0, "staged": 0}
    for seed in range(400):
        chosen = draft(a, b, 5, random.Random(seed))
        names = [n for n, _ in chosen]
        assert len(set(names)) == len(names) == 5
        teams = [t for _, t in chosen]
        assert abs(teams[:4].count("live") - 2) == 0  # two full rounds: each team picked twice
        first[teams[0]] += 1
        for team, ranked in (("live", a), ("staged", b)):
            picks = [n for n, t in chosen if t == team]
            assert picks == sorted(picks, key=ranked.index)  # each team picks in its own order
    assert abs(first["live"] - 200) < 60
    assert draft([], [], 5, random.Random(0)) == [] and len(draft(["a"], ["a"], 5, random.Random(0))) == 1


def test_wilson_by_hand():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)  # Brown, Cai, DasGupta 2001: [0.490, 0.943]
    assert low == pytest.approx(0.490, abs=1e-3) and high == pytest.approx(0.943, abs=1e-3)


def test_clicks_on_interleaved_answers_give_a_preference(coll):
    rng = random.Random(1)
    words = [f"a {shade} {c} square" for c in COLOURS for shade in ("dark", "light", "big", "small")]
    for w in words:
        answer = coll.interleave("v2", text=w, k=6, rng=rng)
        assert answer.version == "v1|v2" and {r["team"] for r in answer.results} == {"live", "staged"}
        wanted = next(r["id"] for r in answer.results if r["team"] == "staged")  # these people like the staged answers
        coll.feedback({"query": answer.query, "item": wanted, "kind": "click"})
        coll.feedback({"query": answer.query, "item": wanted, "kind": "click"})  # twice is once
    coll.feedback({"query": coll.interleave("v2", text="x", rng=rng).query, "item": "0-000", "kind": "not_a_match"})
    preference = again(coll).preference()
    assert (preference["impressions"], preference["clicked"], preference["staged"], preference["live"]) == (25, 24, 24, 0)
    assert preference["interval"] == list(wilson(24, 24)) and preference["prefers"] == "staged"
    with pytest.raises(DataError, match="name a staged one"):
        coll.interleave("v1", text="x")


def test_feedback_becomes_judgments_for_evaluation_and_mining(coll, tmp_path):
    words = coll.search(text="something red", k=4)
    coll.feedback({"query": words.query, "item": "0-000", "kind": "click"})
    coll.feedback({"query": words.query, "item": "0-001", "kind": "click"})
    coll.feedback({"query": words.query, "item": "0-001", "kind": "not_a_match"})  # a mark outweighs a click
    picture = coll.search(image=coll.value("0-006", "image"), k=4)
    coll.feedback({"query": picture.query, "item": "0-012", "kind": "match"})
    like = coll.search(item="0-002", k=4)
    coll.feedback({"query": like.query, "item": "0-008", "kind": "click"})
    mixed = coll.interleave("v2", text="something blue", k=4)
    coll.feedback({"query": mixed.query, "item": mixed.ids[0], "kind": "click"})
    coll.feedback({"query": "q-of-another-process", "item": "0-000", "kind": "click"})
    coll.feedback({"query": "q-elsewhere", "item": "0-004", "kind": "click", "modality": "text", "value": "white one"})
    done = again(coll).export_feedback(tmp_path / "out")
    assert (done["verdicts"], done["unused"]) == (6, 1)
    qrels = read_qrels(done["judgments"])
    assert qrels[words.query] == {"0-000": 1, "0-001": 0} and qrels["0-002"] == {"0-008": 1}
    mined = read_verdicts(done["judgments"])
    assert [v.positive for v in mined if v.query == words.query] == [True, False]
    data = open_data(done["data"])
    at = data.ids.index(words.query)
    assert data.read(at, "text") == b"something red" and not data.present["image"][at]
    assert data.read(data.ids.index("0-012"), "image") == coll.value("0-012", "image")
    assert data.groups[data.ids.index("0-012")] == "red" and data.column("shade")[data.ids.index("0-012")] == "light"
    result = mmtune.evaluate(BASE, done["data"], qrels=done["judgments"])
    assert result.directions["text->image"].queries == 4  # the three asked with words, and item 0-002 by its own
    command = [sys.executable, "-m", "mmtune", "eval", BASE, done["data"], "--qrels", done["judgments"], "--json", "--quiet"]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert document["directions"]["text->image"]["queries"] == 4
    for wrong in (
        {},
        {"query": "q", "item": "i"},
        {"query": "q", "item": "i", "kind": "buy"},
        {"query": 1, "item": "i", "kind": "click"},
    ):
        with pytest.raises(DataError, match="feedback: needs"):
            coll.feedback(wrong)
