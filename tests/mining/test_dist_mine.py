"""`mine` under torchrun: the embedding is shared, one process writes, and the result is that of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from tests.support import corpora

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmtune"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("dist-verbs")
    pack(corpora.source(root / "source", 36), root / "data", shard_size="50KB")
    return str(root / "data")


def together(*arguments: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, *arguments, "--json"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # one document: only the first process speaks


@pytest.mark.parametrize("read", ["index", "stream"])
def test_mining(data, tmp_path, read):
    import pyarrow.parquet as pq

    one = mmtune.mine("tiny:all", data, tmp_path / "one.parquet", quiet=True)
    two = together("mine", "tiny:all", data, "--out", str(tmp_path / "two.parquet"), "--quiet", "--read", read)
    assert two["mined"] == one.mined > 0 and two["fingerprint"] == one.document["fingerprint"]
    a, b = (pq.read_table(tmp_path / f"{n}.parquet").to_pandas() for n in ("one", "two"))
    assert a["query_id"].tolist() == b["query_id"].tolist()
    assert np.mean(a["negative_id"] == b["negative_id"]) > 0.95  # near ties may fall the other way


def test_evaluation(data, tmp_path):
    """The figures of one process, and one writer."""
    one = mmtune.evaluate("tiny:all", data).to_dict()
    two = together("eval", "tiny:all", data, "--quiet", "--out", str(tmp_path / "out.json"), "--trec", str(tmp_path / "trec"))
    assert two == json.loads((tmp_path / "out.json").read_text()) and len(list((tmp_path / "trec").iterdir())) > 4
    assert two["directions"].keys() == one["directions"].keys()
    for name, direction in one["directions"].items():
        assert two["directions"][name]["metrics"] == pytest.approx(direction["metrics"], abs=0.05), name  # near ties


def test_a_task(data, tmp_path):
    options = ("--task", "knn", "--label", "group", "--only", "image", "--neighbours", "3")
    one = mmtune.evaluate("tiny:all", data, task="knn", label="group", modalities=["image"], neighbours=3).to_dict()
    two = together("eval", "tiny:all", data, "--quiet", *options)
    assert two["task"] == "knn" and two["settings"] == one["settings"]
    (a, b) = (d["results"]["image"] for d in (one, two))
    assert b["rows"] == a["rows"] > 0 and b["accuracy"] == pytest.approx(a["accuracy"], abs=0.05)  # near ties
