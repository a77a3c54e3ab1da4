"""Live against staged: shadow searches, interleaving, and clicks that become judgments."""

import json
import random
import subprocess
import sys

import pytest

import mmtune
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.index.feedback.interleave import draft, wilson
from mmtune.index.release import shadow
from mmtune.index.release.shadow import agreement
from mmtune.relevance.judgments import read_qrels, read_verdicts
from tests.support.corpora import COLOURS
from tests.support.index_helpers import BASE, again, coll_fixture, row, shelf_fixture  # noqa: F401


def test_agreement_by_hand():
    assert agreement(["a", "b", "c"], ["a", "b", "c"], 3) == (1.0, 0.0)
    assert agreement(["a", "b", "c"], ["c", "x", "a"], 3) == (2 / 3, 2.0)
    assert agreement(["a", "b"], ["x", "y"], 2) == (0.0, None)
    assert agreement([], [], 5) == (1.0, None) and agreement(["a"], [], 5) == (0.0, None)


def test_shadowed_searches_say_what_would_change(coll):
    coll.shadow("v2", 1.0)
    other = again(coll)  # another process of the same collection shadows, too
    words = [f"a {c} square" for c in COLOURS]
    for who in (coll, other):
        for w in words:
            answer = who.search(text=w, k=5)
            assert answer.version == "v1"
    coll.search(item="0-003", k=5)
    coll.search(text="red", k=5, where="shade = 'nothing'")
    other.shadow_searches.wait()
    report = coll.shadow_report()
    assert report["searches"] == 14 and report["errors"] == 0 and report["dropped"] == 0
    naive = []
    for kwargs in [{"text": w} for w in words] * 2 + [{"item": "0-003"}, {"text": "red", "where": "shade = 'nothing'"}]:
        one, two = (coll.search(**kwargs, k=5, version=v).ids for v in ("v1", "v2"))
        naive.append(agreement(one, two, 5)[0])
    assert report["overlap"] == pytest.approx(sum(naive) / 14)
    assert report["empty_live"] == report["empty_staged"] == 1 and report["live_ms"]["p50"] > 0
    coll.shadow(None)
    before = coll.shadow_report("v2")["searches"]
    coll.search(text="red")
    assert coll.shadow_report("v2")["searches"] == before and coll.shadow_searches.state() is None
    for wrong in (lambda: coll.shadow("v1"), lambda: coll.shadow("v9"), lambda: coll.shadow("v2", 0)):
        with pytest.raises(DataError):
            wrong()


def test_a_full_log_makes_room_and_the_report_reads_both(coll, monkeypatch):
    monkeypatch.setattr(shadow, "MAX_LOG_BYTES", 1500)
    coll.shadow("v2", 1.0)
    sizes = []
    for _ in range(20):
        coll.search(text="red", k=2)
        coll.shadow_searches.wait()
        sizes.append(sum(p.stat().st_size for p in coll.path.glob("shadow*.jsonl")))
    assert max(sizes) < 2 * 1500 + 600 and (coll.path / "shadow.old.jsonl").exists()
    logged = sum(len(p.read_text().splitlines()) for p in coll.path.glob("shadow*.jsonl"))
    assert coll.shadow_report()["searches"] == logged >= 3


def test_a_shadowed_version_that_goes_live_is_shadowed_no_more(coll):
    coll.shadow("v2", 1.0)
    assert coll.status()["shadow"]["version"] == "v2"
    coll.promote("v2", force=True, why="a test")
    coll.search(text="red")
    assert coll.status()["shadow"] is None and coll.shadow_report("v2")["shadowing"] is None
    coll.rollback()
    assert coll.status()["shadow"]["version"] == "v2"


def test_a_fraction_is_drawn(coll):
    coll.shadow("v2", 0.25)
    coll.shadow_searches._random.seed(0)
    for _ in range(80):
        coll.search(text="red", k=2)
    assert 8 <= coll.shadow_report()["searches"] <= 32


def test_a_broken_staged_version_never_hurts_a_live_search(coll):
    coll.shadow("v2", 1.0)
    (coll.layout.directory("v2") / "canaries.safetensors").unlink()
    fresh = again(coll)
    assert fresh.search(text="red", k=3).version == "v1"
    report = fresh.shadow_report()
    assert (report["searches"], report["errors"]) == (0, 1)


def test_replaying_held_out_rows_needs_no_traffic(coll, shelf):
    held = open_data(shelf["held"])
    assert coll.shadow_searches.replay("v2", held, 5) == sum(int(held.present[m].sum()) for m in held.modalities)
    assert coll.shadow_report("v2")["searches"] == 24 and coll.live == "v1"


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
