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
from mmtune.recipe.prompts_block import parse_prompts
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
    assert found.mined > 0
    assert_same_table(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert all(isinstance(e.vectors, np.memmap) for e in mapped) and len(mapped) == 2
    assert not list(tmp_path.glob(".vectors-*"))


def test_a_model_with_a_query_prompt_needs_the_vectors_of_queries_too(home, tmp_path):
    model = mmtune.load("tiny:clip")
    model.set_prompts(parse_prompts({"text": {"default": "a photo: {}", "query": "find {}"}}))
    with_queries = tmp_path / "vectors"
    mmtune.embed(model, home / "packed", with_queries, quiet=True)
    with pytest.raises(DataError, match=r"queries: has no meta.json; the model has another prompt for queries.*--role query"):
        mmtune.mine(model, home / "packed", tmp_path / "b.parquet", quiet=True, vectors=with_queries)
    mmtune.embed(model, home / "packed", with_queries / "queries", ["text"], quiet=True, role="query")
    mmtune.mine(model, home / "packed", tmp_path / "a.parquet", quiet=True)
    mmtune.mine(model, home / "packed", tmp_path / "b.parquet", quiet=True, vectors=with_queries)
    assert_same_table(tmp_path / "a.parquet", tmp_path / "b.parquet")


def assert_same_table(one, two):
    """Batches of one shard give other last bits than batches of all rows."""
    a, b = (pq.read_table(path).to_pydict() for path in (one, two))
    assert a.keys() == b.keys() and len(a["query_id"]) > 0
    for name in a:
        numbers = isinstance(a[name][0], float)
        assert np.allclose(a[name], b[name], atol=1e-5) if numbers else a[name] == b[name], name


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
