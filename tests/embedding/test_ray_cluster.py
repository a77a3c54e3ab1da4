"""Embedding on a Ray cluster of two nodes, one of which dies in the middle: the vectors of one process."""

import threading
import time
from pathlib import Path

import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.embedding.parquet_parts import embed
from mmtune.embedding.ray_workers import on_ray
from mmtune.embedding.stream_parts import embed_stream
from tests.embedding.test_stream_parts import tables
from tests.support import corpora

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("work", [embed, embed_stream])
def test_a_node_dies(tmp_path: Path, work) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    pack(corpora.source(tmp_path / "source", 60, 0, ("image", "text")), tmp_path / "data", shard_size="15KB")
    data, out = str(tmp_path / "data"), tmp_path / "out"
    want = mmtune.embed("tiny:clip", data, tmp_path / "one", quiet=True)
    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = cluster.add_node(**small)
    killed = []

    def kill() -> None:
        end = time.time() + 120
        while time.time() < end and not list(out.rglob("part-*.parquet")):
            time.sleep(0.002)
        killed.append(len(list(out.rglob("part-*.parquet"))))
        cluster.remove_node(second, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
        thread = threading.Thread(target=kill)
        thread.start()
        on_ray(work, ("tiny:clip", data, str(out), None, 4, True), 2)
        thread.join(130)
        assert killed and killed[0] < sum(c.parts for c in want.counts.values())
        assert len([n for n in ray.nodes() if n["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert work("tiny:clip", data, out, quiet=True).counts == want.counts
    for m in ("image", "text"):
        assert [t["id"] for t in tables(out, m)] == [t["id"] for t in tables(tmp_path / "one", m)]
