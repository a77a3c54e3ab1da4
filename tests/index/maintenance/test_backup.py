"""Backup, restore, clone, gc, drop, compact, verify and repair of a collection."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.maintenance.backup import restore
from mmtune.index.stores import StoreLocation, open_store
from mmtune.index.stores.faiss_store import FaissStore
from tests.support.index_helpers import BASE, again, coll_fixture, row, shelf_fixture  # noqa: F401


def answers(coll, version):
    return [(r.id, r.score) for r in coll.search(text="a red square", k=50, version=version).results]


def test_a_restored_backup_answers_as_the_collection_did_and_is_its_own(coll, tmp_path, capsys):
    coll.upsert([row("new", "red", 5)])
    before = {v: answers(coll, v) for v in ("v1", "v2")}
    assert main(["index", "backup", str(coll.path), "--out", str(tmp_path / "b.tar")]) == 0
    coll.delete(["new", "0-001"])
    assert main(["index", "restore", str(tmp_path / "b.tar"), str(tmp_path / "restored")]) == 0
    with Collection(tmp_path / "restored") as other:
        assert {v: answers(other, v) for v in ("v1", "v2")} == before and other.live == "v1"
        assert other.layout.manifest["uid"] != coll.layout.manifest["uid"] and other.layout.manifest["name"] == "restored"
        assert other.maintenance.verify().faults == [] and other.value("new", "image") == row("new", "red", 5).values["image"]
        assert other.promote("v2", force=True, why="x").promoted and other.rollback().version == "v1"
    assert not list(coll.path.glob(".tmp*")) and not list(tmp_path.glob(".tmp*"))
    with pytest.raises(DataError, match="exists already"):
        restore(tmp_path / "b.tar", tmp_path / "restored")
    with pytest.raises(DataError, match="the file exists"):
        coll.maintenance.backup(tmp_path / "b.tar")


def test_a_damaged_or_foreign_backup_is_refused_in_one_line(coll, tmp_path):
    coll.maintenance.backup(tmp_path / "b.tar")
    data = bytearray((tmp_path / "b.tar").read_bytes())
    with tarfile.open(tmp_path / "b.tar") as tar:
        member = next(m for m in tar.getmembers() if m.name.startswith("vectors/"))
    data[member.offset_data + member.size - 5] ^= 1
    (tmp_path / "bit.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "no.tar").write_bytes(b"not a tar file" * 99)
    for name, says in (
        ("bit", "vectors/.* is not what was backed up"),
        ("cut", "not a"),
        ("no", "not a backup"),
        ("x", "no such"),
    ):
        with pytest.raises(DataError, match=says):
            restore(tmp_path / f"{name}.tar", tmp_path / "r")
    assert not (tmp_path / "r").exists() and not list(tmp_path.glob(".tmp*"))


def test_backup_restore_and_verify_show_how_far_they_are(coll, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmtune.runtime.progress.LINE_SECONDS", 0.0)
    coll.upsert([row("new", "red", 5)])  # an item whose content the collection keeps itself
    assert main(["index", "backup", str(coll.path), "--out", str(tmp_path / "b.tar")]) == 0
    assert main(["index", "restore", str(tmp_path / "b.tar"), str(tmp_path / "restored")]) == 0
    assert main(["index", "verify", str(tmp_path / "restored")]) == 0
    shown = capsys.readouterr().err
    assert all(line in shown for line in ("backup: 1/", "restore: 1/", "verify: 1/", "of version v1")), shown
    coll.maintenance.backup(tmp_path / "quiet.tar")
    assert capsys.readouterr().err == ""


def test_other_long_maintenance_shows_how_far_it_is_unless_quiet(coll, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmtune.runtime.progress.LINE_SECONDS", 0.0)
    path = str(coll.path)
    coll.upsert([row("new", "red", 5), row("newer", "red", 6)])
    for command, lines in (
        (["clone", path, "CLONE"], ["copy: 1/"]),
        (["gc", path], ["gc: 1/5", "cached vectors"]),
        (["compact", path, "--full"], ["compact: 0/2", "v1 image"]),
        (["erase", path, "ITEM", "--why", "a test"], ["erase: 1/3", "search for what is left: 1/"]),
        (["repair", path], ["verify: 1/", "fill v1 image: "]),
    ):
        for quiet in ([], ["--quiet"]):
            if command[0] == "repair":
                (rows,) = (coll.layout.directory("v1") / "image").glob("*.rows.arrow")
                rows.write_bytes(rows.read_bytes().replace(b"dark", b"dusk", 1))
            names = {"CLONE": str(tmp_path / f"clone{len(quiet)}"), "ITEM": "newer" if quiet else "new"}
            assert main(["index", *(names.get(c, c) for c in command), *quiet]) == 0
            shown = capsys.readouterr().err
            assert shown == "" if quiet else all(line in shown for line in lines), (command, shown)


def test_a_clone_is_independent(coll, tmp_path):
    assert main(["index", "clone", str(coll.path), str(tmp_path / "c2")]) == 0
    with Collection(tmp_path / "c2") as other:
        assert answers(other, "v1") == answers(coll, "v1")
        other.delete(["0-001"])
        assert "0-001" in coll.search(text="x", k=50).ids and "0-001" not in other.search(text="x", k=50).ids
        assert again(coll).maintenance.verify().faults == [] == other.maintenance.verify().faults


def test_gc_removes_what_only_dropped_versions_had(coll):
    fingerprint = coll.layout.record("v2")["fingerprint"]
    coll.upsert([row("new", "red", 5)])
    coll.delete(["new"])
    coll.drop("v2")
    assert (coll.path / "models" / fingerprint).exists() and not coll.layout.directory("v2").exists()
    done = again(coll).maintenance.gc()
    assert list(done.models) == [fingerprint] and done.vectors == 1 and done.tombstones == 1 and done.bytes > 0
    assert not (coll.path / "models" / fingerprint).exists() and not (coll.path / "vectors" / fingerprint).exists()
    assert len(again(coll).search(text="x", k=50).ids) == 24 and again(coll).build(BASE, quiet=True).version == "v3"


def test_drop_while_the_database_is_away_is_finished_by_gc(coll, monkeypatch):
    away = FaissStore.drop

    def refuse(self):
        raise DataError("postgresql localhost: connection refused")

    monkeypatch.setattr(FaissStore, "drop", refuse)
    assert "connection refused" in coll.drop("v2").pending[0] and coll.layout.versions() == ["v1"]
    assert main(["index", "gc", str(coll.path)]) == 1
    monkeypatch.setattr(FaissStore, "drop", away)
    assert len(again(coll).maintenance.gc().stores) == 1 and not coll.layout.directory("v2").exists()
    assert not (coll.path / "pending.json").exists()


def test_verify_reads_every_byte_and_repair_writes_it_again(coll):
    assert coll.maintenance.verify().faults == []
    before = answers(coll, "v1")
    (rows,) = (coll.layout.directory("v1") / "image").glob("*.rows.arrow")
    data = bytearray(rows.read_bytes())
    at = data.find(b"dark")
    data[at] ^= 1
    rows.write_bytes(data)
    fresh = again(coll)
    (fault,) = fresh.maintenance.verify().faults
    assert "rows.arrow: damaged" in fault and "v1" in fault
    assert main(["index", "verify", str(coll.path)]) == 1 and main(["index", "repair", str(coll.path)]) == 0
    assert again(coll).maintenance.verify().faults == [] and answers(again(coll), "v1") == before


def test_what_killed_writers_left_is_no_damage_and_goes(coll, tmp_path):
    """A torn temporary file is no fault; gc removes old ones and, unless a backup is running, what a killed backup left."""
    (coll.path / ".tmp-0123.json").write_text('{"torn": ')
    staging, old = coll.path / ".tmp-backup-0123", coll.path / "models" / ".tmp-model-0123"
    for directory in (staging, old):
        directory.mkdir()
        (directory / "items.sqlite").write_bytes(b"x" * 1000)
        os.utime(directory / "items.sqlite", (1, 1))
        os.utime(directory, (1, 1))
    assert coll.maintenance.verify().faults == []
    with coll.layout.lock("backup"):
        assert again(coll).maintenance.gc().files == 1 and staging.exists() and not old.exists()
    assert again(coll).maintenance.gc().files == 1 and not staging.exists()
    assert (coll.path / ".tmp-0123.json").exists()  # young: a running process may be writing it
    staging.mkdir()
    coll.maintenance.backup(tmp_path / "out.tar")
    assert not staging.exists()


KILLED_IN_TAR = """
import os, sys, tarfile
from mmtune.index.collection import Collection

add = tarfile.TarFile.add
def killed(self, *args, **options):
    add(self, *args, **options)
    self.fileobj.flush()
    print(flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
tarfile.TarFile.add = killed
Collection(sys.argv[1]).maintenance.backup(sys.argv[2])
"""


@pytest.mark.parametrize("verb", ["backup", "gc"])
def test_the_unfinished_file_of_a_killed_backup_is_removed_and_named_but_not_a_living_ones(coll, tmp_path, capsys, verb):
    """Wherever its --out was. While the process lives, no other verb touches its file."""
    away = tmp_path / "away"
    away.mkdir()
    (away / ".tmp-backup-0123.tar").write_bytes(b"of another collection")
    command = [sys.executable, "-c", KILLED_IN_TAR, str(coll.path), str(away / "b.tar")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"\n"  # it has written the first file
        (unfinished,) = set(away.glob(".tmp-*")) - {away / ".tmp-backup-0123.tar"}
        assert unfinished.stat().st_size > 0 and not (away / "b.tar").exists()
        assert main(["index", "gc", str(coll.path)]) == 0 and unfinished.exists()
        assert "removed" not in capsys.readouterr().out
        process.stdin.write(b"\n")
    assert process.returncode == -9 and unfinished.exists()
    argv = ["index", verb, str(coll.path), *(["--out", str(tmp_path / "b.tar")] if verb == "backup" else [])]
    assert main(argv) == 0
    assert f"{unfinished.resolve()}: removed; a backup that was killed had left it" in capsys.readouterr().out
    assert [p.name for p in away.iterdir()] == [".tmp-backup-0123.tar"] and not list(coll.path.glob(".tmp*"))
    assert main(["index", "backup", str(coll.path), "--out", str(away / "b.tar")]) == 0
    assert "removed" not in capsys.readouterr().out
    restore(away / "b.tar", tmp_path / "restored")


def test_a_forged_note_of_a_backup_removes_no_other_file(coll, tmp_path):
    """Only a file that has the staging directory's name is removed."""
    precious = tmp_path / "precious.tar"
    precious.write_bytes(b"x")
    staging = coll.path / ".tmp-backup-0123"
    staging.mkdir()
    (staging / "unfinished.txt").write_text(str(precious))
    assert again(coll).maintenance.gc().files == 1 and precious.exists() and not staging.exists()


def test_compact_says_what_was_done_or_why_nothing_was(coll, capsys):
    assert main(["index", "compact", str(coll.path), "v1"]) == 0
    assert "nothing to do: no row was added, replaced or deleted since the index was built" in capsys.readouterr().out
    coll.delete(["0-001"])
    done = again(coll).maintenance.compact("v1")
    assert done.notes == {"v1 image": "written again without deleted and replaced rows, and the index built again"}
    assert done.after["v1 image"] < done.before["v1 image"]
    assert main(["index", "compact", str(coll.path), "--full", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == {"v1 image": "written again", "v2 image": "written again"}
    assert len(again(coll).search(text="x", k=50).ids) == 23


@pytest.mark.parametrize("kind", ["lancedb", "qdrant", "qdrant-edge"])
def test_compact_in_other_stores(shelf, tmp_path, kind):
    pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client", "qdrant-edge": "qdrant_edge"}[kind])
    notes = {"lancedb": "files merged", "qdrant": "local mode was written again", "qdrant-edge": "written again"}
    with Collection(tmp_path / "c", create=True) as coll:
        coll.build(BASE, shelf["data"], store=kind, quiet=True)
        coll.promote("v1")
        coll.delete(["0-001", "0-002"])
        for full in (False, True):
            done = coll.maintenance.compact(full=full)
            assert ("written again" if full else notes[kind]) in done.notes["v1 image"]
            assert len(coll.search(text="x", k=50).ids) == 22 and coll.maintenance.verify().faults == []


def test_a_damaged_stored_content_is_named(coll):
    coll.upsert([row("new", "red", 5)])
    db = coll.catalog.connection()
    with db:
        db.execute("update blobs set data = ? where modality = 'image'", (row("x", "blue", 6).values["image"],))
    (fault,) = [f for f in coll.maintenance.verify().faults if "damaged" in f]
    assert "image of item 'new'" in fault


def test_a_faiss_store_that_is_changed_often_stays_small(tmp_path, monkeypatch):
    """Upserts beyond the threshold build the index again: searches stay exact, and no segment piles up."""
    monkeypatch.setattr("mmtune.index.stores.faiss_store.MIN_COMPACT", 100)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1000, 8)).astype(np.float32)
    location = StoreLocation("faiss", tmp_path / "s", None, "s")
    store = FaissStore.create(location, 8, "f")
    ids = [f"i{n:04d}" for n in range(1000)]
    store.upsert(ids[:200], vectors[:200], [{}] * 200)
    store.build("flat")
    most = 0
    for start in range(200, 1000, 5):
        store.upsert(ids[start : start + 5], vectors[start : start + 5], [{}] * 5)
        most = max(most, len(store._snapshot().delta_ids))
    assert most <= 100 and len(store) == 1000
    fresh = open_store(location)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    want = [ids[i] for i in np.argsort(-(unit @ unit[7]), kind="stable")[:10]]
    assert [h.id for h in fresh.search(unit[7:8], 10)[0]] == want
    store.delete(ids[:500])
    assert len(open_store(location)) == 500 and store.damaged_files() == []
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["sha256"]


def test_a_plain_copy_shares_no_tables_with_the_original(shelf, tmp_path):
    """cp -r is refused in one line where the vectors are in a database; mv is not; a clone has tables of its own."""
    pytest.importorskip("lancedb")
    url = str(tmp_path / "db")
    with Collection(tmp_path / "a", create=True) as coll:
        coll.build(BASE, shelf["data"], store="lancedb", url=url, quiet=True)
        coll.promote("v1")
        before = answers(coll, "v1")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with Collection(tmp_path / "copy") as copy:
        for use in (lambda: copy.search(text="x"), lambda: copy.build(BASE, store="lancedb", url=url, quiet=True)):
            with pytest.raises(DataError, match="a copy of .*mmtune index clone"):
                use()
        assert list(copy.delete(["0-001"]).behind) == ["v1"]
    assert main(["index", "clone", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    with Collection(tmp_path / "b") as clone:
        assert answers(clone, "v1") == before
        clone.delete(["0-002"])
        assert len(clone.search(text="x", k=50).ids) == 23
        erased = clone.maintenance.erase("0-003", "a test")
        assert erased.erased and len(clone.search(text="x", k=50).ids) == 22
    os.rename(tmp_path / "a", tmp_path / "moved")
    with Collection(tmp_path / "moved") as coll:
        assert answers(coll, "v1") == before and sum(n.endswith(".lance") for n in os.listdir(url)) == 2
