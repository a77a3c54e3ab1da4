"""Shadow searches: live searches repeated on a staged version, and their report."""

import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.index.release import shadow
from mmtune.index.release.shadow import agreement
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
