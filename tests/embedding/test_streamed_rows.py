"""Evaluation of streamed shards: the figures of the same shards with random access, without copies of them and with bounded memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.embedding import vector_file
from mmtune.embedding.embed_rows import embed_data
from mmtune.embedding.streamed_rows import open_streamed
from mmtune.errors import DataError, DataWarning
from tests.data.loader.test_stream_loader import shards
from tests.data.shards.test_tar_stream import tar
from tests.support import corpora
from tests.support.data_helpers import picture
from tests.support.http_server import http_server


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """60 rows in many shards; captions repeat, rows have a metadata column."""
    root = tmp_path_factory.mktemp("eval-stream")
    pack(corpora.source(root / "source", 60, 0, ("image", "text")), root / "packed", shard_size="20KB")
    assert len(list((root / "packed").glob("*.tar"))) > 5
    return root / "packed"


def figures(result: Any) -> dict:
    return json.loads(json.dumps(result.to_dict()))


@pytest.mark.parametrize("place", ["folder", "http", "pipe"])
def test_figures_are_those_of_the_same_shards_with_random_access(packed, tmp_path, monkeypatch, place):
    indexed = figures(mmtune.evaluate("tiny:clip", str(packed), queries=20))
    assert indexed["directions"]["image->text"]["sampled_from"] == 60 and indexed["directions"]["image->text"]["queries"] == 20
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    names = sorted(p.name for p in packed.glob("*.tar"))
    with http_server(packed) as server:
        spec = {
            "folder": str(packed),
            "http": f"{server.url}/shard-{{000000..{len(names) - 1:06d}}}.tar",
            "pipe": f"pipe:cat {packed}/shard-{{000000..{len(names) - 1:06d}}}.tar",
        }[place]
        read = None if place == "pipe" else "stream"
        streamed = figures(mmtune.evaluate("tiny:clip", spec, queries=20, read=read, batch_size=7))
        assert place != "http" or server.count(200, ".tar") == len(names) + min(
            4, len(names)
        )  # read once; some starts beforehand
    assert streamed == indexed
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_slices_pooling_and_a_task_use_the_metadata_of_streamed_rows(packed):
    column = next(iter(mmtune.open_data(str(packed)).meta(0)))
    options = {"slices": [column], "group_pooling": None, "exclude_same": column}
    a, b = (figures(mmtune.evaluate("tiny:clip", str(packed), read=r, **options)) for r in ("index", "stream"))
    assert a == b and a["slices"]
    options = {"task": "knn", "label": column, "modalities": ["image"]}
    a, b = (mmtune.evaluate("tiny:clip", str(packed), read=r, **options).to_dict() for r in ("index", "stream"))
    assert a["results"] == b["results"]


def test_vectors_are_mapped_from_a_file_when_they_are_many(packed, monkeypatch):
    monkeypatch.setattr(vector_file, "MEMORY_BYTES", 1000)
    model = mmtune.load("tiny:clip")
    data = open_streamed(StreamedSets([str(packed)], [1.0], ShardCache(0)))
    streamed, indexed = embed_data(model, data), embed_data(model, mmtune.open_data(str(packed)))
    for m, e in indexed.items():
        assert isinstance(streamed[m].vectors, np.memmap)
        assert np.allclose(streamed[m].vectors, e.vectors, atol=1e-6) and streamed[m].ids == e.ids
        assert all(np.array_equal(streamed[m].labels[k], v) for k, v in e.labels.items())
    some = np.array([3, 11, 40])
    assert np.allclose(embed_data(model, data.subset(some))["image"].vectors, indexed["image"].vectors[some], atol=1e-6)
    with pytest.raises(DataError, match=r"shard-000000\.tar: this needs single values, .*--read index"):
        data.read(0, "image")


def test_keys_that_repeat_in_other_shards_get_the_ids_of_random_access(tmp_path):
    (tmp_path / "both").mkdir()
    for start, name in ((0, "a"), (50, "b")):
        tar(tmp_path / "both" / f"{name}.tar", [(f"{i:03d}.png", picture(start + i)) for i in range(5)])
    data = open_streamed(StreamedSets([str(tmp_path / "both")], [1.0], ShardCache(0)))
    indexed = mmtune.open_data(str(tmp_path / "both"))
    assert list(data.ids) == list(indexed.ids) and data.ids[0].startswith("a/")
    assert all(np.array_equal(data.labels[k], v) for k, v in indexed.labels.items())


def test_bad_values_and_shards_that_change(tmp_path):
    folder = shards(tmp_path / "rows", [6, 9], bad=[2, 7])
    with pytest.raises(DataError, match=r"row 'rows-2': image: not a readable picture.*--skip-bad"):
        mmtune.evaluate("tiny:clip", folder, read="stream")
    with pytest.warns(DataWarning, match="2 of 15 image values cannot be decoded and are skipped"):
        streamed = figures(mmtune.evaluate("tiny:clip", folder, read="stream", skip_bad=True))
    with pytest.warns(DataWarning, match="2 of 15 image values"):
        assert streamed == figures(mmtune.evaluate("tiny:clip", folder, skip_bad=True))
    data = open_streamed(StreamedSets([folder], [1.0], ShardCache(0)), skip_bad=True, checked=["image"])
    model = mmtune.load("tiny:clip")
    assert len(embed_data(model, data)["image"].ids) == 13
    shards(tmp_path / "rows", [6, 8], bad=[2, 7])
    with pytest.raises(DataError, match="has other rows than when it was read first; start again"):
        embed_data(mmtune.load("tiny:clip@5"), data)


def test_the_command(packed, tmp_path):
    argv = [sys.executable, "-m", "mmtune", "eval", "tiny:clip", str(packed), "--json", "--quiet"]
    out = [subprocess.run([*argv, *more], capture_output=True, text=True) for more in ([], ["--read", "stream"])]
    indexed, streamed = (json.loads(done.stdout) for done in out)
    assert {k: v for k, v in indexed.items() if k != "note"} == streamed
    done = subprocess.run([*argv, "--read", "stream", "--cluster", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "--cluster: eval has intervals of tasks alone (--task)" in done.stderr


def test_intervals_of_tasks_resample_a_column_of_streamed_rows(packed, capsys):
    column = next(iter(mmtune.open_data(str(packed)).meta(0)))
    argv = ["eval", "tiny:clip", str(packed), "--json", "--quiet", "--task", "knn", "--label", "group", "--only", "image"]

    def intervals(*options):
        assert main([*argv, *options]) == 0
        return json.loads(capsys.readouterr().out)["intervals"]

    rows, clusters = intervals("--read", "stream"), intervals("--read", "stream", "--cluster", column)
    assert clusters == intervals("--cluster", column) and rows != clusters
    assert main([*argv, "--read", "stream", "--cluster", "no-such"]) == 2
    assert "no row has a column 'no-such'" in capsys.readouterr().err


@pytest.mark.dist
def test_processes_read_different_shards_and_get_the_same_figures(packed, tmp_path):
    argv = ["-m", "mmtune", "eval", "tiny:clip", str(packed), "--json", "--quiet", "--read", "stream", "--queries", "20"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
    two = subprocess.run([*torchrun, *argv], capture_output=True, text=True)
    assert two.returncode == 0, two.stderr[-2000:]
    assert json.loads(two.stdout) == json.loads(one.stdout)
