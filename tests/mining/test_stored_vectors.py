"""`mmtune mine --vectors DIR`: the table that mining with embedding writes, from vectors that are mapped from disk."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.errors import DataError
from mmtune.mining import mine_model
from tests.support import corpora


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    pack(corpora.source(root / "source", 36, 0, ("image", "text")), root / "packed", shard_size="25KB")
    mmtune.embed("tiny:clip", root / "packed", root / "vectors", quiet=True)
    return root


@pytest.mark.parametrize("read", ["index", "stream"])
def test_the_table_is_the_same_and_nothing_is_embedded_or_left(home, tmp_path, read, monkeypatch):
    mmtune.mine("tiny:clip", home / "packed", tmp_path / "a.parquet", quiet=True)
    vectors = home / "vectors"
    if read == "stream":
        vectors = tmp_path / "vectors"
        mmtune.embed("tiny:clip", str(home / "packed"), vectors, quiet=True, read="stream")
    mapped = []
    usual = mine_model.mine_vectors
    monkeypatch.setattr(mine_model, "mine_vectors", lambda e, *a, **k: (mapped.extend(e.values()), usual(e, *a, **k))[1])
    monkeypatch.setattr(mine_model, "embed_data", None)
    found = mmtune.mine("tiny:clip", home / "packed", tmp_path / "b.parquet", quiet=True, vectors=vectors)
    a, b = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in "ab")
    assert found.mined > 0 and a.keys() == b.keys()
    for name in a:  # batches of one shard give other last bits than batches of all rows
        numbers = isinstance(a[name][0], float)
        assert np.allclose(a[name], b[name], atol=1e-5) if numbers else a[name] == b[name], name
    assert all(isinstance(e.vectors, np.memmap) for e in mapped) and len(mapped) == 2
    assert not list(tmp_path.glob(".vectors-*"))


def test_the_verb(home, tmp_path):
    argv = [sys.executable, "-m", "mmtune", "mine", "tiny:clip", str(home / "packed"), "--out", str(tmp_path / "n.parquet")]
    done = subprocess.run([*argv, "--vectors", str(home / "vectors"), "--json", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["mined"] > 0, done.stderr


def test_vectors_of_other_models_or_rows_are_refused(home, tmp_path):
    def mine(vectors, data=home / "packed", model="tiny:clip"):
        mmtune.mine(model, data, tmp_path / "n.parquet", quiet=True, vectors=vectors)

    with pytest.raises(DataError, match="has no meta.json; give the directory that `mmtune embed"):
        mine(tmp_path)
    with pytest.raises(DataError, match="vectors of another model"):
        mine(home / "vectors", model="tiny:clip@4")
    with pytest.raises(DataError, match="has other rows than the data; embed again"):
        mine(home / "vectors", corpora.packed(tmp_path, 30, 9, ("image", "text")))
    mmtune.embed("tiny:clip", home / "packed", tmp_path / "part", quiet=True)
    sorted((tmp_path / "part" / "image").glob("*.parquet"))[-1].unlink()
    with pytest.raises(DataError, match=r"of 36 vectors of image; run `mmtune embed` again, it continues"):
        mine(tmp_path / "part")
    assert not list(tmp_path.glob(".vectors-*"))
