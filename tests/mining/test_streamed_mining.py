"""`mmtune mine --read stream`: the table of indexed mining, from one reading of the shards, without copies of them."""

import shutil
from pathlib import Path

import pytest

import mmtune
from mmtune.data.shards import shard_cache
from mmtune.errors import DataError, RecipeError
from mmtune.mining.near_duplicates import hash_contents
from tests.mining.test_stored_vectors import assert_same_table
from tests.support.http_server import http_server


@pytest.fixture
def places(shop, tmp_path, monkeypatch):
    """The shop in several shards: folder, http and pipe; and the server."""
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "packed"
    rows = mmtune.open_data(shop)
    documents = [rows.row(i) for i in range(len(rows))]
    values = [
        {"id": r.id, "sku": r.group, **r.meta, "image": r.values["image"], "text": r.values["text"].decode()} for r in documents
    ]
    mmtune.pack(values, packed, group="sku", shard_size="20KB")
    shards = sorted(p.name for p in packed.glob("*.tar"))
    assert len(shards) > 2
    with http_server(packed) as server:
        yield (
            {
                "folder": str(packed),
                "http": f"{server.url}/shard-{{000000..{len(shards) - 1:06d}}}.tar",
                "pipe": f"pipe:cat {packed}/shard-{{000000..{len(shards) - 1:06d}}}.tar",
            },
            server,
            len(shards),
        )


@pytest.mark.parametrize("place", ["folder", "http"])
def test_the_table_is_that_of_indexed_mining_and_shards_are_read_once(places, tmp_path, place):
    specs, server, shards = places
    want = mmtune.mine("tiny:clip", specs["folder"], tmp_path / "a.parquet", quiet=True)
    shutil.rmtree(tmp_path / "cache")
    found = mmtune.mine("tiny:clip", specs[place], tmp_path / "b.parquet", quiet=True, read="stream", batch_size=5)
    assert found.mined == want.mined > 0
    assert_same_table(tmp_path / "a.parquet", tmp_path / "b.parquet")
    of_guards = [{n: part["dropped"] for n, part in r.document["directions"].items()} for r in (found, want)]
    assert of_guards[0] == of_guards[1]
    assert max(n for d in of_guards[0].values() for name, n in d.items() if "duplicate" in name) > 0
    if place == "http":
        heads = server.count(200, ".tar") - sum(1 for _ in range(shards))
        assert heads <= 4  # the first shards are opened once more to find the modalities
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert "data:image" in Path(want.page).read_text() and "data:image" not in Path(found.page).read_text()
    assert any("audit page shows ids" in w for w in found.document["warnings"])


def test_vectors_of_an_earlier_command_and_a_pipe(places, tmp_path):
    specs, _, _ = places
    mmtune.embed("tiny:clip", specs["folder"], tmp_path / "vectors", quiet=True)
    mmtune.mine("tiny:clip", specs["folder"], tmp_path / "a.parquet", quiet=True)
    mmtune.mine("tiny:clip", specs["folder"], tmp_path / "b.parquet", quiet=True, read="stream", vectors=tmp_path / "vectors")
    assert_same_table(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert mmtune.mine("tiny:clip", specs["pipe"], tmp_path / "c.parquet", quiet=True).mined > 0


def test_what_needs_single_values_is_refused_before_reading(places, tmp_path):
    specs, server, _ = places
    out = tmp_path / "a.parquet"
    with pytest.raises(RecipeError, match=r"--verifier: needs single values, which --read stream does not give"):
        mmtune.mine("tiny:clip", specs["http"], out, read="stream", verifier="tiny:clip")
    with pytest.raises(RecipeError, match=r"mining.sources: lexical needs single values"):
        mmtune.mine("tiny:clip", specs["http"], out, {"sources": ["nearest", "lexical"]}, read="stream")
    with pytest.raises(RecipeError, match=r"not with --engine ray; run `mmtune embed`"):
        mmtune.mine("tiny:clip", specs["http"], out, read="stream", engine="ray")
    with pytest.raises(DataError, match="give the packed data by name"):
        mmtune.mine("tiny:clip", mmtune.open_data(specs["folder"]), out, read="stream")
    assert server.count(200) == 0 and not list(shard_cache.root().rglob("*.tar"))


def test_hashes_are_those_of_indexed_rows(places):
    from mmtune.data.shards.shard_lru import ShardCache
    from mmtune.data.shards.streamed_sets import StreamedSets
    from mmtune.embedding.streamed_rows import open_streamed

    specs, _, _ = places
    streamed = open_streamed(StreamedSets([specs["folder"]], [1.0], ShardCache(0)), hashed=["image", "text"])
    for modality in ("image", "text"):
        want = hash_contents(mmtune.open_data(specs["folder"]), modality)
        found = hash_contents(streamed, modality)
        assert found.hashes.tolist() == want.hashes.tolist() and found.known.all() and found.distance == want.distance
        half = hash_contents(streamed.subset([3, 1]), modality)
        assert half.hashes.tolist() == want.hashes[[3, 1]].tolist()
