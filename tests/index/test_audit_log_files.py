"""The audit log in several files: nothing that a rollback, gc or the missing events need is ever lost."""

import json
import os

import pytest

from mmtune.index import audit_log
from mmtune.index.maintenance.mask_item import mask_logs
from mmtune.runtime.segmented_log import log_files
from tests.support.index_helpers import coll_fixture, row, shelf_fixture  # noqa: F401


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(audit_log, "MAX_BYTES", 4000)
    monkeypatch.setattr(audit_log, "SEGMENTS", 3)


def changes(coll, count, start=0):
    for n in range(start, start + count):
        with coll.layout.lock():
            audit_log.append(coll.layout, audit_log.event("upsert", None, None, items=1, number=n))


def whats(coll):
    return [x["what"] for x in coll.journal()]


def test_events_other_than_changes_of_items_are_kept_for_ever(coll, small):
    before = [x for x in coll.journal() if x["what"] not in audit_log.ITEM_CHANGES]
    assert [x["what"] for x in before] == ["build", "promote", "build"]
    earlier = len(coll.journal()) - len(before)
    changes(coll, 200)
    coll.promote("v2", force=True, why="a test")
    changes(coll, 200, 200)
    path = coll.path / audit_log.JOURNAL
    files = log_files(path)
    assert len(files) == 4 and sum(p.stat().st_size for p in files) < 4 * 8000
    events = coll.journal()
    assert [x for x in events if x["what"] in ("build", "promote", "refused")][:3] == before
    assert [x["version"] for x in events if x["what"] == "promote"] == ["v1", "v2"] and "carried" not in str(events)
    numbers = [x["number"] for x in events if x["what"] == "upsert"]
    assert numbers == list(range(numbers[0], 400)) and 0 < numbers[0] < 390  # the oldest are gone, each other is there once
    trims = [x for x in events if x["what"] == "trim"]
    assert trims and sum(int(x["why"].split("; ")[1].split()[0]) for x in trims) == earlier + numbers[0]
    assert events == sorted(events, key=lambda x: x["at"])
    assert audit_log.releases(coll.layout) == [x for x in events if x["what"] != "upsert"]
    # rollback, and what gc and the missing events read
    assert coll.rollback("a test").version == "v1"
    assert coll.rollback("again").version == "v1" if coll.layout.live()["previous"] else True
    assert coll.drop("v2").dropped == "v2"
    changes(coll, 300, 400)
    assert {x["version"] for x in coll.journal() if x["what"] == "drop"} == {"v2"}
    assert coll.maintenance.gc().versions == []
    assert whats(coll).count("rollback") == 1 and whats(coll).count("build") == 2


@pytest.mark.parametrize("moment", ["renamed", "written"])
def test_a_writer_killed_while_it_begins_a_new_file(coll, small, monkeypatch, moment):
    before = coll.journal()
    if moment == "renamed":
        monkeypatch.setattr(audit_log, "_begin_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        monkeypatch.setattr(
            audit_log, "log_files", lambda path: (_ for _ in ()).throw(KeyboardInterrupt) if path.exists() else []
        )
    with pytest.raises(KeyboardInterrupt):
        changes(coll, 100)
    monkeypatch.undo()
    monkeypatch.setattr(audit_log, "MAX_BYTES", 4000)
    found = coll.journal()
    assert found[: len(before)] == before
    count = len(found)
    changes(coll, 1, 500)
    again = coll.journal()
    assert again[:count] == found and len(again) == count + 1
    first = json.loads((coll.path / audit_log.JOURNAL).read_text().split("\n")[0])
    assert first["what"] == "build" and first["carried"]


def test_many_promotions_do_not_begin_a_file_each_time(coll, small):
    for n in range(60):
        with coll.layout.lock():
            audit_log.append(coll.layout, audit_log.event("refused", "v2", "x" * 80, number=n))
    assert (coll.path / audit_log.JOURNAL).stat().st_size > 4000
    assert log_files(coll.path / audit_log.JOURNAL) == [coll.path / audit_log.JOURNAL]


def test_a_full_disk_while_a_file_is_begun_loses_no_event(coll, small, monkeypatch):
    monkeypatch.setattr(audit_log.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    changes(coll, 100)
    assert [x["number"] for x in coll.journal() if "number" in x] == list(range(100))


def test_an_erased_id_is_masked_in_every_file(coll, small):
    coll.upsert([row("secret-item", "red", 5)])
    with coll.layout.lock():
        audit_log.append(coll.layout, audit_log.event("refused", "v2", "secret-item was wrong"))
        audit_log.append(coll.layout, audit_log.event("upsert", None, "secret-item"))
    changes(coll, 100)
    for kind in ("click", "match"):
        coll.feedback({"query": "q-x", "item": "secret-item", "kind": kind})
    os.replace(coll.path / "feedback.jsonl", coll.path / "feedback.000001.jsonl")
    files = log_files(coll.path / audit_log.JOURNAL)
    assert len(files) > 2 and sum(b"secret-item" in p.read_bytes() for p in files) > 1
    mask_logs(coll.path, "secret-item")
    assert not [p for p in coll.path.glob("*.jsonl") if b"secret-item" in p.read_bytes()]
    assert coll.feedback_log.events() == [] and len([x for x in coll.journal() if "***" in str(x["why"])]) == 2
    proof = coll.maintenance.erase("secret-item", "a request").proof
    assert proof.found == []
