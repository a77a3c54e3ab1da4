"""A fault of one file or version affects no other: the live version is updated and searched, and messages are one line."""

import json
import os
import shutil

import pytest

from mmtune.cli import main
from mmtune.contracts import Row
from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.query.bm25 import reciprocal_rank_fusion
from mmtune.index.query.hybrid import ItemBm25
from tests.support.index_helpers import BASE, again, coll_fixture, picture, row, shelf_fixture  # noqa: F401


def damage_applied(coll):
    """A disk that was full left v1's applied.json empty."""
    (coll.layout.directory("v1") / "applied.json").write_text("")


def damage_record(coll):
    """v1's version.json is JSON, but not a record."""
    (coll.layout.directory("v1") / "version.json").write_text('{"version": "v1"}')


def damage_store(coll):
    """v1's vectors are gone."""
    shutil.rmtree(coll.layout.directory("v1") / "image")


def damage_canaries(coll):
    """v1's canaries are not a safetensors file."""
    (coll.layout.directory("v1") / "canaries.safetensors").write_bytes(b"\0" * 64)


@pytest.mark.parametrize("damage", [damage_applied, damage_record, damage_store, damage_canaries])
def test_a_damaged_old_version_keeps_no_change_from_the_live_one(coll, damage):
    coll.promote("v2", force=True, why="a test")
    damage(coll)
    fresh = again(coll)
    assert list(fresh.delete(["0-001"]).behind) == ["v1"] and list(fresh.upsert([row("new", "red", 5)]).behind) == ["v1"]
    ids = again(coll).search(text="x", k=50).ids
    assert "0-001" not in ids and "new" in ids
    statuses = {v.version: v for v in fresh.versions()}
    assert statuses["v2"].live and statuses["v2"].behind == 0 and statuses["v2"].fault is None
    assert (statuses["v1"].fault is None) == (damage in (damage_store, damage_canaries))
    assert fresh.journal()[-1]["what"] == "upsert" and main(["index", "status", str(coll.path)]) == 0


@pytest.mark.parametrize("content", ["", "{}", "[]", "null"])
def test_a_damaged_live_pointer_is_one_line(coll, content):
    (coll.path / "live.json").write_text(content)
    for use in (lambda c: c.search(text="x"), lambda c: c.promote("v2"), lambda c: c.rollback(), lambda c: c.status()):
        with pytest.raises(DataError, match="live.json") as caught:
            use(again(coll))
        assert "\n" not in str(caught.value)


def test_a_metadata_column_called_group_is_not_the_group(coll):
    new = Row("new", "blue", {"image": picture("blue", 99)}, {"group": "red", "price": 3})
    alone = Row("alone", None, {"image": picture("blue", 98)}, {"group": "green"})
    assert coll.upsert([new, alone]).new == 2
    for version in ("v1", "v2"):
        (found,) = coll.search(image=new.values["image"], k=1, version=version).results
        assert (found.id, found.group, found.meta) == ("new", "blue", {"group": "red", "price": 3})
        (found,) = coll.search(image=alone.values["image"], k=1, version=version).results
        assert (found.id, found.group, found.meta) == ("alone", None, {"group": "green"})
        assert "new" in coll.search(image=new.values["image"], k=50, version=version, where="group = 'blue'").ids
        assert "new" not in coll.search(image=new.values["image"], k=50, version=version, where="group = 'red'").ids


def test_status_counts_are_those_of_now(coll):
    coll.upsert([row("new", "red", 5)])
    coll.delete(["0-001", "0-002"])
    assert [(v.items, v.vectors) for v in coll.versions()] == [(23, {"image": 23})] * 2


def test_a_process_that_follows_promotions_holds_the_models_of_open_versions(coll):
    for seed in range(3, 8):
        coll.open(coll.build(f"tiny:clip@{seed}", quiet=True).version)
    assert len(coll.pool.names) == 4 and len(coll.pool._models) <= 4


def test_shadow_without_a_fraction_keeps_the_one_that_was_set(coll, capsys):
    assert main(["index", "shadow", str(coll.path), "v2", "--fraction", "0.5", "--json"]) == 0
    assert main(["index", "shadow", str(coll.path), "v2", "--json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["shadowing"]["fraction"] == coll.shadow_searches.state().fraction == 0.5


def test_a_catalog_that_is_no_database_is_one_line(coll):
    coll.close()
    for name in os.listdir(coll.path / "corpus"):
        (coll.path / "corpus" / name).write_bytes(
            b"not a database, but longer than a header of SQLite, which has 100 bytes" * 9
        )
    with pytest.raises(DataError, match="the catalog cannot be opened"):
        Collection(coll.path)


def test_a_search_whose_filter_can_admit_nothing_names_the_column(coll):
    """As users meet it: a misspelt column, and a CSV's numbers, which are strings."""
    for where, says in (("shad = 'dark'", "did you mean 'shade'"), ("shade < 3", "shade holds strings")):
        with pytest.raises(DataError, match=says):
            coll.search(text="x", where=where)
    assert coll.search(text="x", where="shade = 'neither'").ids == []
    coll.upsert([row("new", "red", 5, price="2.5", weight=3)])
    assert coll.search(text="x", where="weight > 2").ids == ["new"] and coll.search(text="x", where="weight > 3").ids == []
    with pytest.raises(DataError, match="price holds strings, and is compared with numbers; write the value in single quotes"):
        coll.search(text="x", where="price < 3")


def test_hybrid_with_an_item_uses_its_caption_and_a_target_is_kept_to(coll):
    caption = coll.value("0-001", "text").decode()
    near = coll.search(item="0-001", k=23).ids
    by_words = ItemBm25(coll.catalog).search(caption, None)
    fused = [id for id, _ in reciprocal_rank_fusion([near, by_words]) if id != "0-001"]
    found = coll.search(item="0-001", hybrid=True, k=10)
    assert found.ids == fused[:10] != near[:10]
    coll.upsert([Row("mute", None, {"image": picture("red", 7)}, {})])
    with pytest.raises(DataError, match="item 'mute' has no caption; search without hybrid"):
        coll.search(item="mute", hybrid=True)
    coll.upsert([Row("words-only", None, {"text": b"yellow yellow yellow"}, {})])
    assert "words-only" in coll.search(text="yellow", hybrid=True, k=50).ids
    assert "words-only" not in coll.search(text="yellow", hybrid=True, k=50, target=["image"]).ids


def test_what_data_contains_reaches_the_terminal_escaped_and_a_search_shows_captions(coll, capsys):
    bad = Row("evil\x1b[2J\nid", "red", {"image": picture("red", 77), "text": b"a \x1b]0;title\x07 square"}, {"k": "\u202ev"})
    coll.upsert([bad])
    assert main(["index", "search", str(coll.path), "--id", "0-001", "-k", "30"]) == 0
    out = capsys.readouterr().out
    assert "evil\\x1b[2J\\nid" in out and "a \\x1b]0;title\\x07 square" in out and "\\u202ev" in out
    assert not set("\x1b\x07\u202e") & set(out) and len(out.splitlines()) == 25


def test_a_misspelt_gate_is_refused(coll, tmp_path, capsys):
    (tmp_path / "gate.yaml").write_text("model: {}\ngates: {min_gain: 0.5}\n")
    assert main(["index", "promote", str(coll.path), "v2", "--gate", str(tmp_path / "gate.yaml")]) == 2
    assert "did you mean 'gate'?" in capsys.readouterr().err


def test_values_that_no_store_can_hold_are_refused_before_anything_is_written(coll):
    long, seq = "x" * 1025, coll.catalog.seq
    for bad in (row("a\0b"), row(long), row("n", huge=10**400), row("n", nul="a\0b")):
        done = coll.upsert([bad, row("good", "red", 8)])
        assert [r.id for r in done.rejected] == [bad.id] and done.behind == {}
    assert coll.catalog.seq > seq and len(coll.search(text="x", k=50).ids) == 25
