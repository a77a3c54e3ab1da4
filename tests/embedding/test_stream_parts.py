"""`mmtune embed --read stream`: the vectors of the indexed way, shard by shard; resumed, shared, over a server, with bad values."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError, DataWarning
from tests.data.loader.test_stream_loader import shards
from tests.support import corpora
from tests.support.http_server import http_server


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> str:
    """40 rows in many shards; a third of the captions repeat in other rows."""
    root = tmp_path_factory.mktemp("embed-stream")
    pack(corpora.source(root / "source", 40, 0, ("image", "text")), root / "packed", shard_size="20KB")
    return str(root / "packed")


def tables(out: Path, modality: str) -> list[dict]:
    return [pq.read_table(p).to_pydict() for p in sorted((out / modality).glob("part-*.parquet"))]


def same(a: Path, b: Path) -> None:
    for m in ("image", "text"):
        assert len(tables(a, m)) == len(tables(b, m)) > 3
        for x, y in zip(tables(a, m), tables(b, m), strict=True):
            assert x["id"] == y["id"] and x["group"] == y["group"]
            assert np.allclose(x["vector"], y["vector"], atol=1e-6)


def test_vectors_ids_and_counts_of_the_indexed_way_also_over_a_server(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    indexed = mmtune.embed("tiny:clip", packed, tmp_path / "index", quiet=True)
    streamed = mmtune.embed("tiny:clip", packed, tmp_path / "stream", quiet=True, read="stream", batch_size=3)
    assert streamed.counts == indexed.counts and streamed.fingerprint == indexed.fingerprint
    same(tmp_path / "stream", tmp_path / "index")
    with http_server(Path(packed)) as server:
        argv = [sys.executable, "-m", "mmtune", "embed", "tiny:clip", server.url, "--out", str(tmp_path / "there"), "--quiet"]
        done = subprocess.run([*argv, "--read", "stream", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["image"]["rows"] == 40
    same(tmp_path / "there", tmp_path / "index")
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_run_that_ends_early_is_continued_with_whole_files_only(packed, tmp_path, monkeypatch):
    read, seen = StreamedSets.read, []

    def breaks(self, shard, notes):
        seen.append(shard.name)
        for n, row in enumerate(read(self, shard, notes)):
            if len(seen) == 3 and n == 1:
                raise DataError("the connection is gone")
            yield row

    monkeypatch.setattr(StreamedSets, "read", breaks)
    with pytest.raises(DataError, match="the connection is gone"):
        mmtune.embed("tiny:clip", packed, tmp_path / "out", quiet=True, read="stream", batch_size=1)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part-*.parquet")}
    assert len(written) == 4 and not list((tmp_path / "out").rglob("*.tmp*"))
    (tmp_path / "out" / "text" / "part-99999.parquet").write_bytes(b"of other data")
    mmtune.embed("tiny:clip", packed, tmp_path / "out", quiet=True, read="stream")
    assert {p: p.stat().st_mtime_ns for p in written} == written and len(seen) == len(set(seen)) + 1
    mmtune.embed("tiny:clip", packed, tmp_path / "index", quiet=True)
    same(tmp_path / "out", tmp_path / "index")
    with pytest.raises(DataError, match="another model"):
        mmtune.embed("tiny:clip@5", packed, tmp_path / "out", quiet=True, read="stream")


def test_values_that_cannot_be_decoded(tmp_path):
    folder = shards(tmp_path / "rows", [6, 9], bad=[2, 7])
    with pytest.raises(DataError, match=r"row 'rows-2': image: not a readable picture.*--skip-bad"):
        mmtune.embed("tiny:clip", folder, tmp_path / "out", quiet=True, read="stream")
    with pytest.warns(DataWarning, match="1 values of image cannot be decoded and count as missing"):
        done = mmtune.embed("tiny:clip", folder, tmp_path / "out", quiet=True, read="stream", skip_bad=True)
    assert (done.counts["image"].rows, done.counts["image"].missing, done.counts["text"].rows) == (13, 2, 15)
    again = mmtune.embed("tiny:clip", folder, tmp_path / "out", quiet=True, read="stream", skip_bad=True)
    assert again.counts == done.counts


def test_what_is_no_name_is_refused_and_a_shard_without_rows_is_a_part_without_rows(tmp_path, packed):
    with pytest.raises(DataError, match="--read stream: give the packed data by name"):
        mmtune.embed("tiny:clip", mmtune.open_data(packed), tmp_path / "out", read="stream")
    folder = shards(tmp_path / "rows", [3, 0, 2])
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    mmtune.embed("tiny:clip", folder, tmp_path / "out", quiet=True, read="stream")
    assert [len(t["id"]) for t in tables(tmp_path / "out", "text")] == [3, 0, 2]
