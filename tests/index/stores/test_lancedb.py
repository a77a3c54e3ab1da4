"""What LanceDB's store does beyond the contract."""

import pytest

from mmtune.index.stores import StoreLocation, create_store

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
