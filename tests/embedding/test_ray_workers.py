"""Embedding on a local Ray cluster of two workers, undisturbed and with one of them killed: the vectors of one process."""

import json
import threading
import time
from pathlib import Path

import psutil
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.embedding.parquet_parts import EmbedResult, embed, read_meta
from mmtune.embedding.ray_workers import on_ray
from mmtune.errors import DataError
from tests.support import corpora
from tests.support.ray_nodes import one_node

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def cluster():
    with one_node() as ray:
        yield ray


def kill_a_worker(out: Path, killed: list) -> None:
    """Kill -9 a worker once the first part is there."""
    end = time.time() + 120
    while time.time() < end and not list(out.rglob("part-*")):
        time.sleep(0.002)
    for p in psutil.Process().children(recursive=True):
        if p.name().startswith("ray::embed") or "ray::embed" in " ".join(p.cmdline()):
            p.kill()
            killed.append(p.pid)
            return


def embed_on_ray(model: str, data: str, out: Path, workers: int) -> EmbedResult:
    on_ray(embed, (model, data, str(out), None, 64, True), workers)
    return embed(model, data, out, quiet=True)


def test_vectors_are_those_of_one_process(cluster, tmp_path):
    import pyarrow.parquet as pq

    pack(corpora.source(tmp_path / "source", 36), tmp_path / "data", shard_size="25KB")
    data = str(tmp_path / "data")
    want, killed = mmtune.embed("tiny:all", data, tmp_path / "one", quiet=True), []
    assert embed_on_ray("tiny:all", data, tmp_path / "two", 2) == want
    assassin = threading.Thread(target=kill_a_worker, args=(tmp_path / "killed", killed))
    assassin.start()
    assert embed_on_ray("tiny:all", data, tmp_path / "killed", 2) == want
    assassin.join(10)
    assert killed
    for run in ("two", "killed"):
        assert read_meta(tmp_path / run) == json.loads(json.dumps(want.to_dict()))
        for part in (tmp_path / "one").rglob("*.parquet"):
            a, b = pq.read_table(part), pq.read_table(tmp_path / run / part.relative_to(tmp_path / "one"))
            assert a["id"] == b["id"]
            x, y = (t["vector"].combine_chunks().flatten().to_numpy() for t in (a, b))
            assert abs(x - y).max() < 1e-6
    with pytest.raises(DataError, match="another model"):
        embed_on_ray("tiny:clip@3", data, tmp_path / "two", 1)
