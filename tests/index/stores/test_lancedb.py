"""What LanceDB's store does beyond the contract."""

import pytest

from mmtune.index.stores import StoreLocation, create_store
from mmtune.index.stores.lancedb_store import CHECK_EVERY, SMALL_FRAGMENTS

lance = pytest.importorskip("lancedb")
SECRET = "a-very-secret-id"


def test_compaction_removes_what_a_killed_writer_left(tmp_path):
    """LanceDB keeps files that no version of the table has for 7 days: another process might be writing them."""
    at = StoreLocation("lancedb", tmp_path / "shop", None, "shop")
    store = create_store(at, 2, "f")
    store.upsert(["a", "b"], [[1, 0], [0, 1]], [{}, {}])
    data = next(tmp_path.rglob("*.lance/data/*.lance"))
    killed = data.with_name("0" * 50 + ".lance")  # a writer that did not come to commit
    killed.write_bytes(data.read_bytes() + SECRET.encode())
    manifest = next(tmp_path.rglob("*.manifest"))
    manifest.with_name(f"{manifest.name}#1").write_text(SECRET)  # a writer that did not come to rename
    store.compact()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files and not any(SECRET.encode() in p.read_bytes() for p in files)
    assert sorted(h.id for h in store.search([[1, 0]], 5)[0]) == ["a", "b"]
    store.close()


def test_single_upserts_keep_few_fragments(tmp_path):
    """Every upsert adds a fragment, and LanceDB reads all of them at the next one."""
    store = create_store(StoreLocation("lancedb", tmp_path / "shop", None, "shop"), 2, "f")
    most = 0
    for n in range(60):
        store.upsert([f"i{n % 50}"], [[1, n]], [{"n": n}])
        most = max(most, store._statistics()["fragment_stats"]["num_fragments"])
    assert SMALL_FRAGMENTS < most <= SMALL_FRAGMENTS + CHECK_EVERY + 1
    assert len(store) == 50 and sorted(store.ids()) == sorted(f"i{n}" for n in range(50))
    replaced, kept = store.fetch(["i3", "i30"])
    assert replaced[1] / replaced[0] == pytest.approx(53) and kept[1] / kept[0] == pytest.approx(30)
    store.close()
