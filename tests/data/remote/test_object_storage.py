"""Streams from object storage: a real S3 server (moto) behind a proxy that fails, a small Hugging Face hub, and what is denied."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError
from mmtune.training.loop import Trainer
from tests.support import corpora
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.http_server import fresh_cache_fixture  # noqa: F401
from tests.support.hub_server import running_hub
from tests.training.test_dist_train import weights

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """48 rows in several shards."""
    root = tmp_path_factory.mktemp("object-storage")
    pack(corpora.source(root / "source", 48, 0, ("image", "text")), root / "packed", shard_size="40KB")
    assert len(list((root / "packed").glob("*.tar"))) > 3
    return root / "packed"


@pytest.fixture
def storage(packed, monkeypatch):
    """The packed files in s3://shop/packed; the proxy in front of the server."""
    import boto3

    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with fault_proxy(f"{host}:{port}") as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            client = boto3.client("s3")
            client.create_bucket(Bucket="shop")
            for path in packed.iterdir():
                if path.is_file():
                    client.upload_file(str(path), "shop", f"packed/{path.name}")
            s3fs.S3FileSystem.clear_instance_cache()
            yield proxy
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def recipe(train: str, run: Path) -> dict:
    return {
        "model": "tiny:clip",
        "data": {"train": train, "read": "stream", "shuffle_buffer": 16, "workers": 1},
        "train": {"epochs": 2, "batch_size": 7, "lr": 1e-3, "precision": "fp32", "checkpoint_every": 2},
        "run": {"dir": str(run)},
    }


def test_training_interrupted_and_resumed_on_s3_is_that_of_the_local_files(packed, storage: FaultProxy, tmp_path, monkeypatch):
    mmtune.train(recipe(str(packed), tmp_path / "local"), quiet=True)
    storage.failures = 0.1
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 9:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(recipe("s3://shop/packed", tmp_path / "s3"), quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    mmtune.train(recipe("s3://shop/packed", tmp_path / "s3"), resume=True, quiet=True)
    assert storage.failed > 0
    assert weights(tmp_path / "s3") == weights(tmp_path / "local")


def test_eval_and_embed_of_streams_on_s3(packed, storage: FaultProxy, tmp_path):
    storage.failures = 0.1
    brace = f"s3://shop/packed/shard-{{000000..{len(list(packed.glob('*.tar'))) - 1:06d}}}.tar"
    there = mmtune.evaluate("tiny:clip", brace, read="stream").to_dict()
    assert there == mmtune.evaluate("tiny:clip", str(packed)).to_dict()
    done = [
        mmtune.embed("tiny:clip", d, tmp_path / n, quiet=True, read="stream") for n, d in (("s3", brace), ("here", str(packed)))
    ]
    assert done[0].counts == done[1].counts and storage.failed > 0
    for part in (tmp_path / "here").rglob("part-*.parquet"):
        a, b = (pq.read_table(tmp_path / n / part.relative_to(tmp_path / "here")).to_pydict() for n in ("s3", "here"))
        assert a["id"] == b["id"] and np.allclose(a["vector"], b["vector"], atol=1e-6)


def test_denied_and_missing_on_s3_are_one_line_at_once(storage: FaultProxy, monkeypatch):
    for url, words in (
        ("s3://shop/packed/none.tar", r"missing, but|not in index|no such file"),
        ("s3://nothing/a.tar", r"^s3://nothing/a\.tar: no such bucket: nothing; check its name"),
        ("s3://No_Bucket!/a.tar", r'^s3://No_Bucket!/a\.tar: cannot be read \(Invalid bucket name "No_Bucket!"\)'),
    ):
        with pytest.raises(DataError, match=words) as error:
            read_all(url)
        assert "\n" not in str(error.value)
    storage.failures, storage.status = 1.0, 403
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"s3://shop/packed/shard-000000\.tar: access denied.*; check the AWS credentials"
    ) as error:
        read_all("s3://shop/packed/shard-000000.tar")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"no valid credentials \(.*\); set AWS_ACCESS_KEY_ID") as error:
        read_all("s3://shop/packed/shard-000000.tar")
    assert "\n" not in str(error.value) and time.monotonic() - begin < 10


def test_shards_that_were_written_again_are_seen_by_the_same_process(packed, storage: FaultProxy, tmp_path):
    import boto3

    pack(corpora.source(tmp_path / "source", 12, 1, ("image", "text")), tmp_path / "packed", shard_size="40KB")
    for folder in (packed, tmp_path / "packed"):
        for path in folder.glob("*.tar"):
            boto3.client("s3").upload_file(str(path), "shop", f"raw/{path.name}")
        assert open_data("s3://shop/raw").ids[:2] == open_data(str(folder)).ids[:2]


def read_all(spec: str) -> int:
    sets = StreamedSets([spec], [1.0], ShardCache(0))
    return sum(1 for shard in sets.sets[0] for _ in sets.read(shard, sets.notes))


def test_streams_from_a_hub(packed, tmp_path, monkeypatch):
    """hf:// goes through huggingface_hub's file system, which asks a server for listings, sizes and ranges of bytes."""
    from huggingface_hub import HfFileSystem

    with running_hub(monkeypatch, tmp_path / "hub") as hub:
        HfFileSystem.clear_instance_cache()
        hub.files["shop/photos"] = {"a" * 40: {f"packed/{p.name}": p.read_bytes() for p in packed.iterdir() if p.is_file()}}
        assert read_all("hf://datasets/shop/photos/packed") == 48
        streamed = mmtune.evaluate("tiny:clip", "hf://datasets/shop/photos/packed", read="stream").to_dict()
        assert streamed == mmtune.evaluate("tiny:clip", str(packed)).to_dict()
        hub.closed.add("shop/photos")
        HfFileSystem.clear_instance_cache()
        with pytest.raises(DataError, match=r"^hf://datasets/shop/photos/packed/shard-000000\.tar: access denied") as error:
            read_all("hf://datasets/shop/photos/packed/shard-000000.tar")
        assert "\n" not in str(error.value)
    HfFileSystem.clear_instance_cache()


def test_protocols_are_those_of_fsspec_and_a_missing_library_is_one_line():
    code = (
        "import sys; sys.modules['gcsfs'] = sys.modules['adlfs'] = None\n"
        "from mmtune.data.shards.streamed_sets import StreamedSets\n"
        "from mmtune.data.shards.shard_lru import ShardCache\n"
        "for url in ('gs://b/a.tar', 'abfs://b/a.tar', 'nonsense://b/a.tar'):\n"
        "    try: StreamedSets([url], [1.0], ShardCache(0))\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().split("\n")
    assert out[0] == 'MissingExtra gs://b/a.tar: gs:// URLs need a library that is not installed: pip install "mmtune[gcs]"'
    assert re.match(r"MissingExtra abfs://b/a\.tar: abfs:// URLs need a library .*adlfs", out[1])
    assert re.match(r"DataError nonsense://b/a\.tar: cannot be read \(Protocol not known", out[2])
    assert len(out) == 3
