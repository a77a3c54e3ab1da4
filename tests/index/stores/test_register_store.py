"""A store from outside, in under 40 lines: found in the working directory, or registered under a name."""

import sys

import pytest

from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.stores import TABLE, register_store
from tests.support.index_helpers import BASE, OTHER, coll_fixture, row, shelf_fixture  # noqa: F401

NPZ_STORE = '''
"""Vectors in one .npz file, searched exactly."""
import json, numpy as np
from mmtune.index.stores import Hit
from mmtune.runtime.files import write_bytes, write_json, read_json

class NpzStore:
    kind = "npz"

    def __init__(self, directory):
        self.rows, self.stamp = directory / "rows.json", read_json(directory / "stamp.json")
        self.fingerprint, self.dim = self.stamp["fingerprint"], self.stamp["dim"]

    @classmethod
    def create(cls, location, dim, fingerprint):
        write_json(location.directory / "stamp.json", {"dim": dim, "fingerprint": fingerprint})
        write_json(location.directory / "rows.json", {})
        return cls(location.directory)

    @classmethod
    def open(cls, location): return cls(location.directory)
    def read(self): return read_json(self.rows)
    def upsert(self, ids, vectors_ND, meta):
        new = {i: [v.tolist(), m] for i, v, m in zip(ids, np.asarray(vectors_ND, np.float32), meta)}
        write_json(self.rows, self.read() | new)
    def delete(self, ids): write_json(self.rows, {i: r for i, r in self.read().items() if i not in set(ids)})
    def build(self, index="auto", *, search_dim=None, memory_mb=None): return {"index": "flat"}
    def search(self, query_QD, k, where=None):
        rows = {i: r for i, r in self.read().items() if where is None or where.matches(r[1])}
        scored = [[(float(np.float32(q @ np.float32(v))), i, m) for i, (v, m) in rows.items()] for q in query_QD]
        return [[Hit(i, s, m) for s, i, m in sorted(hits, key=lambda h: h[:2], reverse=True)[:k]] for hits in scored]
    def fetch(self, ids): return np.array([self.read()[i][0] for i in ids], np.float32).reshape(-1, self.dim)
    def ids(self): return list(self.read())
    def __len__(self): return len(self.read())
    def size(self): return self.rows.stat().st_size
    def drop(self): self.rows.unlink()
    def close(self): pass
'''


@pytest.fixture(params=["npz_store_of_this_folder:NpzStore", "npz"])
def kind(request, tmp_path, monkeypatch):
    """The store by its place in the working directory, and by a registered name."""
    assert len(NPZ_STORE.strip().splitlines()) < 40
    (tmp_path / "npz_store_of_this_folder.py").write_text(NPZ_STORE)
    monkeypatch.chdir(tmp_path)
    if ":" not in request.param:
        register_store(request.param, "npz_store_of_this_folder:NpzStore")
    yield request.param
    TABLE.pop("npz", None)
    sys.modules.pop("npz_store_of_this_folder", None)


def test_a_store_from_outside_is_built_searched_and_promoted(kind, coll, shelf, tmp_path):
    with Collection(tmp_path / "other", create=True) as other:
        assert other.build(BASE, shelf["data"], store=kind, quiet=True).store == kind
        assert other.promote("v1").promoted
        found, expected = other.search(text="a red square", k=6), coll.search(text="a red square", k=6)
        assert found.ids == expected.ids
        assert [r.score for r in found.results] == pytest.approx([r.score for r in expected.results], abs=1e-6)
        assert (
            other.search(text="x", where="shade = 'dark'", k=30).ids == coll.search(text="x", where="shade = 'dark'", k=30).ids
        )
        assert other.build(OTHER, quiet=True).store == kind  # as the newest version
        assert other.promote("v2", force=True, why="a test").promoted and other.rollback().version == "v1"
        assert other.upsert([row("new", "red", 5, shade="odd")]).behind == {} and other.delete(["0-001"]).behind == {}
    with Collection(tmp_path / "other") as again:
        for version in ("v1", "v2"):
            again.pool.verify(again.open(version), all_vectors=True)
            assert again.search(text="x", where="shade = 'odd'", version=version).ids == ["new"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fais", "no store 'fais'; did you mean 'faiss'?"),
        ("no_such_module_anywhere:Store", "among the installed packages nor in "),
        ("mmtune.index.stores.faiss_store:FaisStore", "did you mean 'FaissStore'?"),
    ],
)
def test_an_unknown_store_is_one_line(kind, message, coll):
    with pytest.raises(DataError) as caught:
        coll.build(BASE, store=kind, quiet=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert coll.layout.versions() == ["v1", "v2"]
