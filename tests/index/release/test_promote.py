"""Promotion (gate, recall of the index, items, latency) and rollback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mmtune
from mmtune.errors import DataError, ModelError, RecipeError
from mmtune.index import audit_log
from mmtune.index.release import index_quality, promote
from mmtune.index.release.index_quality import index_recall, search_latencies
from mmtune.runtime.files import append_jsonl, write_json
from tests.support.corpora import packed
from tests.support.index_helpers import BASE, COLUMNS, again, coll_fixture, row, shelf_fixture, tuned_fixture  # noqa: F401


def test_from_the_first_version_to_a_rollback(shelf, tuned, tmp_path):
    """base -> v1 -> tune -> v2 -> gate -> shadow -> promote -> rollback."""
    held = packed(shelf["root"], 36, 1, COLUMNS)
    coll = mmtune.Collection(tmp_path / "shop", create=True)
    assert coll.build(BASE, shelf["data"], quiet=True)["version"] == "v1" and coll.promote("v1")["promoted"]
    before = coll.search(text="a red square", k=5)
    assert coll.build(tuned, quiet=True)["version"] == "v2" and coll.live == "v1"
    coll.shadow("v2", 1.0)
    assert [coll.search(text=f"a {c} square", k=5).version for c in ("red", "green", "blue")] == ["v1"] * 3
    shadowed = coll.shadow_report()
    assert shadowed["searches"] == 3 and shadowed["errors"] == 0 and 0 <= shadowed["overlap"] < 1
    done = coll.promote("v2", queries=held, why="tuned on colours")
    assert done["promoted"] and not done["forced"] and done["reasons"] == []
    gate = done["checks"]["gate"]
    assert gate["verdict"] == "pass" and gate["scope"] == "36 held-out rows against 24 items of the collection"
    assert list(gate["directions"]) == ["text->image"] and gate["directions"]["text->image"]["candidate"] > 0.95
    after = coll.search(text="a red square", k=4)
    assert after.version == "v2" and {r["group"] for r in after.results} == {"red"}
    assert coll.versions()[1]["gate"]["gate"]["verdict"] == "pass"
    back = coll.rollback("for the exercise")
    assert back["version"] == "v1" and coll.search(text="a red square", k=5).results == before.results
    assert [x["what"] for x in coll.journal() if x["version"]] == ["build", "promote", "build", "shadow", "promote", "rollback"]
    assert coll.journal()[-2]["why"] == "tuned on colours" and coll.journal()[-2]["gate"]["verdict"] == "pass"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_in_a_shell(shelf, tmp_path):
    """recipes/new_model.sh as a user runs it; the gate decides, so it learns enough to pass."""
    root = Path(__file__).parents[3]
    data = [packed(shelf["root"], 24, 2, COLUMNS), shelf["data"], packed(shelf["root"], 36, 1, COLUMNS)]
    keys = ["train.epochs=24", "train.batch_size=8", "train.lr=1e-3", "train.warmup=0", "train.precision=fp32"]
    command = ["sh", root / "recipes/new_model.sh", BASE, *data, tmp_path, *keys]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    with mmtune.Collection(tmp_path / "shop") as coll:
        events = [x["what"] for x in coll.journal() if x["version"]]
        assert events == ["build", "promote", "build", "promote", "rollback", "promote"] and coll.live == "v2"
    for outcome in ("v2 is live (before: v1)", "v1 is live again (before: v2)", "gate: pass", "why: to see that it works"):
        assert outcome in done.stdout, done.stdout


def test_the_gate_refuses_and_force_overrides_with_a_reason(coll, shelf):
    with pytest.raises(DataError, match="--force needs --why"):
        coll.promote("v2", queries=shelf["held"], force=True, why=" ")
    outcome = coll.promote("v2", queries=shelf["held"])
    assert not outcome["promoted"] and coll.live == "v1" and "gate: " in outcome["reasons"][0]
    assert coll.journal()[-1]["what"] == "refused" and coll.journal()[-1]["reasons"] == outcome["reasons"]
    done = coll.promote("v2", queries=shelf["held"], force=True, why="a demo at noon")
    assert done["promoted"] and done["forced"] and again(coll).live == "v2"
    line = coll.journal()[-1]
    assert (line["what"], line["why"], line["forced"]) == ("promote", "a demo at noon", True) and line["reasons"] == done[
        "reasons"
    ]
    assert coll.promote("v2")["reasons"] == ["v2 is live already"]


def test_the_recipes_gate_decides(coll, shelf, tuned):
    version = coll.build(tuned, quiet=True)["version"]
    held = packed(shelf["root"], 36, 1, COLUMNS)
    strict = {"metric": "ndcg@5", "direction": "text->image", "min_gain": 0.9}
    outcome = coll.promote(version, gate=strict, queries=held)
    assert not outcome["promoted"] and "ndcg@5 of text->image" in outcome["reasons"][0]
    with pytest.raises(RecipeError, match="gate.min_gian"):
        coll.promote(version, gate={"min_gian": 1}, queries=held)
    done = coll.promote(
        version, gate={**strict, "min_gain": 0.05, "guards": {"general": -0.5}}, queries=held, retention=shelf["held"]
    )
    assert done["promoted"] and done["checks"]["gate"]["slices"]["retention"]["queries"]


def test_the_recipes_gate_may_be_about_a_task(coll, shelf, tuned):
    version = coll.build(tuned, quiet=True)["version"]
    held = packed(shelf["root"], 36, 1, COLUMNS)
    gate = {"task": "knn", "task_options": {"label": "shade"}, "min_gain": 0.99}
    outcome = coll.promote(version, gate=gate, queries=held)
    assert not outcome["promoted"] and "accuracy of image" in outcome["reasons"][0]
    guarded = {**gate, "min_gain": -0.99, "retention_loss": 0.5}
    done = coll.promote(version, gate=guarded, queries=held, retention=shelf["held"])
    checked = done["checks"]["gate"]
    assert done["promoted"] and checked["slices"]["retention"]["queries"] and checked["directions"]["image"]["queries"] == 36
    assert checked["scope"] == "36 held-out rows, by knn"


def test_the_intervals_resample_the_column_that_is_named(coll, shelf, tuned):
    version = coll.build(tuned, quiet=True)["version"]
    held = packed(shelf["root"], 36, 1, COLUMNS)
    gate = {"metric": "ndcg@5", "min_gain": 0.9}
    by_group, by_name = (coll.promote(version, gate=gate, queries=held, cluster=c)["checks"]["gate"] for c in (None, "shade"))
    (groups,), (names,) = ({d["clusters"] for d in g["directions"].values()} for g in (by_group, by_name))
    assert groups > names == 2  # light and dark


def test_never_judged_on_what_it_was_trained_on(coll, shelf, tuned):
    version = coll.build(tuned, quiet=True)["version"]
    with pytest.raises(DataError, match=f"version {version}'s model was trained on 24 of these 24 rows"):
        coll.promote(version, queries=packed(shelf["root"], 24, 2, COLUMNS))
    assert coll.live == "v1"


def test_no_held_out_queries(coll):
    outcome = coll.promote("v2")
    assert not outcome["promoted"] and "--queries DATA" in outcome["reasons"][0]


def test_only_the_index_is_new(coll):
    version = coll.build(BASE, index="hnsw", quiet=True)["version"]
    done = coll.promote(version)
    assert done["promoted"] and done["checks"]["gate"]["verdict"] == "same model"


def test_held_out_rows_that_no_item_answers_are_their_own_candidates(coll, shelf, tmp_path):
    """Other groups than the collection's: the rows are their own candidates."""
    from mmtune.data.pack.pack import pack

    place = shelf["root"] / "source-1-12-image-text" / "other.csv"
    head, *rows = (line.split(",") for line in (place.parent / "rows.csv").read_text().strip().splitlines())
    place.write_text("\n".join(map(",".join, [head, *([*r[:3], "other-" + r[3], *r[4:]] for r in rows)])) + "\n")
    pack(place, tmp_path / "other")
    outcome = coll.promote("v2", queries=str(tmp_path / "other"))
    assert outcome["checks"]["gate"]["scope"] == "12 held-out rows among themselves"


def test_a_bad_index_is_refused(coll, shelf, monkeypatch):
    """Recall against exact search is measured on the index that will serve."""
    from mmtune.index.stores.faiss_store import FaissStore

    new = coll.open("v2").stores["image"]
    queries = coll.open("v2").encode("text", ["red", "blue", "a green square"])
    assert index_recall(new, queries, 10) == 1.0
    real = FaissStore.search
    monkeypatch.setattr(FaissStore, "search", lambda self, q, k, where=None: [h[1::2] for h in real(self, q, 2 * k, where)])
    assert index_recall(new, queries, 4) == pytest.approx(0.5)
    outcome = coll.promote("v2", queries=shelf["held"])
    assert not outcome["promoted"] and "of what exact search finds, 0.95 is required" in outcome["reasons"][0]


def test_a_slow_version_is_refused(coll, shelf, monkeypatch):
    """On a clock of the test, which stands still except in searches of v2: the result does not depend on the machine's load."""
    clock, real = [0.0], coll.pool.reopen

    def slow(version):
        opened = real(version)
        search = opened.search

        def timed(*args, **kwargs):
            clock[0] += 0.2
            return search(*args, **kwargs)

        opened.search = timed
        return opened

    monkeypatch.setattr(index_quality, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(coll.pool, "reopen", slow)
    monkeypatch.setattr(promote, "QUERIES", 8)
    outcome = coll.promote("v2", queries=shelf["held"])
    assert any(r.startswith("a search takes 200.0 ms, and 0.0 ms on v1: more than 2 times as long") for r in outcome["reasons"])


def test_search_latencies_are_measured(coll):
    times = search_latencies([coll.open("v1")], [("text", "a red square")] * 5)
    assert 0 < times[0]["p50"] <= times[0]["p95"]


def test_other_items_are_a_reason_unless_explained(coll, shelf):
    done = coll.build(BASE, modalities=["image", "text"], quiet=True)
    outcome = coll.promote(done["version"])
    assert outcome["promoted"] and outcome["checks"]["items"]["only_live"] == 0
    live, new = coll.open(done["version"]), coll.open("v2")
    new.stores["image"].delete(["0-000"])
    check, reasons = promote.compare_items(coll.open("v1"), new)
    assert reasons == ["different items: 1 only in v1, 0 only in v2, e.g. '0-000'"] and check.explained is None
    check, reasons = promote.compare_items(live, new)
    assert reasons == [] and check.explained


def test_rollback_follows_the_history(coll, shelf):
    with pytest.raises(DataError, match="nothing to roll back to"):
        coll.rollback()
    coll.promote("v2", force=True, why="a")
    version = coll.build("tiny:clip@4", quiet=True)["version"]
    coll.promote(version, force=True, why="b")
    coll.upsert([row("late", "white", 77)])
    assert [coll.rollback()["version"], coll.rollback()["version"]] == ["v2", "v1"]
    assert "late" in coll.search(text="x", k=50).ids  # never a stale corpus
    with pytest.raises(DataError, match="nothing to roll back to"):
        coll.rollback()


def test_somebody_else_promoted_meanwhile(coll, monkeypatch):
    real = promote.Promoter._check

    def check(*a):
        write_json(coll.path / "live.json", {**coll.layout.live(), "generation": 99})
        return real(*a)

    monkeypatch.setattr(promote.Promoter, "_check", check)
    with pytest.raises(DataError, match="was made live meanwhile"):
        coll.promote("v2", force=True, why="x")
    assert coll.live == "v1"


def test_a_rollback_to_a_version_that_cannot_be_trusted_is_refused(coll):
    coll.promote("v2", force=True, why="x")
    file = coll.path / "models" / coll.layout.record("v1")["fingerprint"] / "mmtune.json"
    file.write_text(file.read_text().replace('"dim": 64', '"dim": 32'))
    with pytest.raises(ModelError, match="what differs"):
        again(coll).rollback()
    assert coll.live == "v2"


def test_the_journal_misses_nothing_when_its_writer_is_killed(coll, monkeypatch):
    real = audit_log.append
    calls = []

    def killed(*a):
        calls.append(a)
        if len(calls) == 2:  # the first looks for what others left undone
            raise KeyboardInterrupt

    monkeypatch.setattr(audit_log, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        promoter = promote.Promoter(coll.layout, coll.catalog, coll.pool, coll.updates)
        promoter._move_pointer(coll.open("v2"), ["v1"], "promote", "killed between pointer and journal")
    monkeypatch.setattr(audit_log, "append", real)
    with open(coll.path / "journal.jsonl", "a") as f:
        f.write('{"torn": ')
    assert again(coll).live == "v2" and again(coll).journal()[-1]["why"] == "killed between pointer and journal"
    coll.rollback("and the next writer mends it")
    lines = [json.loads(line) for line in (coll.path / "journal.jsonl").read_text().splitlines()]
    assert [x.get("generation") for x in lines if x["what"] in ("promote", "rollback")] == [1, 2, 3]
    append_jsonl(coll.path / "journal.jsonl", {"what": "note", "version": None})
    assert coll.journal()[-1]["what"] == "note"
