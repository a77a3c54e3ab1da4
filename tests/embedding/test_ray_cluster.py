"""Embedding, mining and packing on a Ray cluster of two nodes, one of which dies in the middle: the files of one process."""

from pathlib import Path

import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.embedding.parquet_parts import embed
from mmtune.embedding.ray_workers import on_ray
from mmtune.embedding.stream_parts import embed_stream
from tests.embedding.test_stream_parts import tables
from tests.mining.test_stored_vectors import assert_same_table
from tests.support import corpora
from tests.support.ray_nodes import WAIT_SECONDS, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * WAIT_SECONDS)]


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ray")
    pack(corpora.source(root / "source", 60, 0, ("image", "text")), root / "data", shard_size="15KB")
    return root


def parts(folder: Path) -> int:
    return len(list(folder.rglob("part-*.parquet")))


@pytest.mark.parametrize("work", [embed, embed_stream])
def test_embedding(nodes, home, tmp_path, work) -> None:
    data, out = str(home / "data"), tmp_path / "out"
    want = mmtune.embed("tiny:clip", data, tmp_path / "one", quiet=True)
    with nodes.one_dies(lambda: parts(out)) as killed:
        on_ray(work, ("tiny:clip", data, str(out), None, 4, True), 2)
    assert killed[0] < sum(c.parts for c in want.counts.values())
    assert work("tiny:clip", data, out, quiet=True).counts == want.counts
    for m in ("image", "text"):
        assert [t["id"] for t in tables(out, m)] == [t["id"] for t in tables(tmp_path / "one", m)]


def test_mining(nodes, home, tmp_path) -> None:
    """The table of one process, although the workers embed shard by shard; nothing is left beside it."""
    one = mmtune.mine("tiny:clip", home / "data", tmp_path / "one.parquet", quiet=True)
    (tmp_path / "two").mkdir()
    with nodes.one_dies(lambda: parts(tmp_path / "two")):
        two = mmtune.mine("tiny:clip", home / "data", tmp_path / "two" / "n.parquet", quiet=True, engine="ray", workers=2)
    assert two.mined == one.mined > 0
    assert_same_table(one.table, two.table)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["n.parquet", "n.parquet.audit.html", "n.parquet.audit.json"]


def test_packing(nodes, home, tmp_path) -> None:
    """Byte for byte what one process packs; a row that cannot be decoded is rejected for the same reason."""
    source = corpora.source(tmp_path / "source", 400, 1, ("image", "text"))
    broken = next(p for p in sorted(Path(source).parent.rglob("*")) if p.suffix in (".png", ".jpg"))
    broken.write_bytes(broken.read_bytes()[:100])
    one = pack(source, tmp_path / "one", shard_size="100KB")
    assert one.rejected == 1 and one.shards > 3
    with nodes.one_dies(lambda: len(list((tmp_path / "two").rglob("*.tar")))):
        two = pack(source, tmp_path / "two", shard_size="100KB", engine="ray", workers=2)
    assert two.to_dict() | {"out": "", "rejected_file": ""} == one.to_dict() | {"out": "", "rejected_file": ""}
    names = [
        sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
