"""gs:// through gcsfs against a server of its JSON API, whose requests fail now and then."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmtune
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.data.pack.pack import pack
from mmtune.data.remote import file_systems
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError
from tests.data.loader.test_stream_loader import Length
from tests.support import corpora
from tests.support.data_helpers import picture, write_csv
from tests.support.fault_proxy import FaultProxy
from tests.support.gcs_server import gcs_server
from tests.support.http_server import fresh_cache_fixture  # noqa: F401

GCSFileSystem = pytest.importorskip("gcsfs.core").GCSFileSystem


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """48 rows in several shards."""
    root = tmp_path_factory.mktemp("google-storage")
    pack(corpora.source(root / "source", 48, 0, ("image", "text")), root / "packed", shard_size="40KB")
    assert len(list((root / "packed").glob("*.tar"))) > 3
    return root / "packed"


@pytest.fixture
def storage(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The packed files in gs://shop/packed; the proxy in front of the server."""
    with gcs_server(monkeypatch, "shop") as proxy:
        upload({f"packed/{p.name}": p.read_bytes() for p in packed.iterdir() if p.is_file()})
        yield proxy


def upload(objects: dict[str, bytes]) -> None:
    """Write objects to the bucket, by gcsfs without what it asks over gRPC."""
    fs = GCSFileSystem(token="anon", skip_instance_cache=True)
    for name, data in objects.items():
        fs.pipe_file(f"shop/{name}", data)


def test_random_access_is_that_of_the_local_files(packed, storage: FaultProxy):
    storage.failures = 0.1
    here = open_data(str(packed))
    count = len(list(packed.glob("*.tar")))
    for spec in ("gs://shop/packed", f"gcs://shop/packed/shard-{{000000..{count - 1:06d}}}.tar"):
        there = open_data(spec)
        assert list(there.ids) == list(here.ids) and [s.name for s in there.shards] == [s.name for s in here.shards]
        for row in (0, 17, 47):
            assert all(there.read(row, m) == here.read(row, m) for m in ("image", "text"))
    assert storage.failed > 0
    assert mmtune.evaluate("tiny:clip", "gs://shop/packed").to_dict() == mmtune.evaluate("tiny:clip", str(packed)).to_dict()


def test_a_streamed_epoch_has_every_row_once_and_resumes(packed, storage: FaultProxy):
    storage.failures = 0.1

    def loader(spec: str) -> StreamLoader:
        options = {"pairs": [("image", "text")], "batch_size": 7, "shuffle_buffer": 16}
        return StreamLoader(StreamedSets([spec], [1.0], ShardCache(0)), {"image": Length(), "text": Length()}, {}, **options)

    stream = loader("gs://shop/packed")
    iterator = stream.epoch(0)
    begun = [next(iterator).ids for _ in range(3)]
    state = stream.state(3)
    iterator.close()
    batches = begun + [b.ids for b in loader("gs://shop/packed").epoch(0, 3, state)]
    assert Counter(i for ids in batches for i in ids) == Counter(open_data(str(packed)).ids)
    assert batches == [b.ids for b in loader(str(packed)).epoch(0)] and storage.failed > 0


def test_packing_addresses_of_google_storage(storage: FaultProxy, tmp_path):
    upload({f"photos/{i}.png": picture(i) for i in range(6)})
    storage.failures = 0.1
    rows = [{"id": str(i), "image": f"gs://shop/photos/{i}.png", "text": f"t {i}"} for i in range(7)]
    result = pack(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", workers=1, max_rejected=0.5)
    assert (result.packed, result.rejected) == (6, 1)
    data = open_data(str(tmp_path / "out"))
    assert [data.read(i, "image") for i in range(6)] == [picture(i) for i in range(6)]
    assert "missing file" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_what_is_missing_or_denied_is_one_line_at_once(storage: FaultProxy, monkeypatch):
    begin = time.monotonic()
    for read in ("index", "stream"):
        for url, words in (
            ("gs://shop/packed/none.tar", "not in index.json|missing|no such file or directory"),
            ("gs://shop/other/a.tar", "^gs://shop/other/a.tar: no such file or directory"),
            ("gs://nothing/a.tar", "^gs://nothing/a.tar: no such bucket: nothing; check its name"),
        ):
            with pytest.raises(DataError, match=words) as error:
                mmtune.evaluate("tiny:clip", url, read=read)
            assert "\n" not in str(error.value)
    storage.failures = 1.0
    for status in (403, 401):
        storage.status = status
        with pytest.raises(DataError, match=rf"shard-000000\.tar: access denied \(HTTP {status}\); run `gcloud auth") as error:
            mmtune.evaluate("tiny:clip", "gs://shop/packed/shard-000000.tar", read="stream")
        assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error.value) and "FSSPEC_GS_TOKEN=anon" in str(error.value)
    assert time.monotonic() - begin < 10


def test_a_server_that_always_fails_is_one_line(storage: FaultProxy):
    storage.failures = 1.0
    with pytest.raises(
        DataError, match=r"^gs://shop/packed: cannot be read \(HTTP 503 for index\.json, after 7 attempts in \d+ s\)"
    ):
        open_data("gs://shop/packed")
    storage.status = 502
    with pytest.raises(
        DataError, match=r"^gs://shop/packed: cannot be read \(HTTP 502 for index\.json, after 7 attempts in \d+ s\)"
    ):
        open_data("gs://shop/packed")


@pytest.mark.parametrize("at_google", [True, False])
def test_gcsfs_itself_repeats_nothing(at_google):
    """Its own repeats of a request last half a minute without a word."""
    kind = file_systems._gcs_class(at_google)
    after = list(kind.__mro__)
    for name in file_systems.GCS_REQUESTS:
        found = [c.__dict__[name] for c in after if name in c.__dict__]
        core = GCSFileSystem.__dict__[name]
        assert hasattr(core, "__wrapped__") and found[-1] is core and found[-2] is core.__wrapped__
        assert not any(hasattr(method, "__wrapped__") for method in found[:-1])


def test_shards_that_were_written_again_are_seen_by_the_same_process(packed, storage: FaultProxy, tmp_path):
    upload({f"raw/{p.name}": p.read_bytes() for p in packed.glob("*.tar")})
    assert len(open_data("gs://shop/raw")) == 48
    pack(corpora.source(tmp_path / "source", 12, 1, ("image", "text")), tmp_path / "packed", shard_size="40KB")
    upload({f"raw/{p.name}": p.read_bytes() for p in (tmp_path / "packed").glob("*.tar")})
    assert open_data("gs://shop/raw").ids[:2] == open_data(str(tmp_path / "packed")).ids[:2]


def test_the_command_line_takes_server_and_token_from_the_environment(packed, storage: FaultProxy, tmp_path):
    command = [sys.executable, "-m", "mmtune", "embed", "tiny:clip", "gs://shop/packed", "--read", "stream", "--quiet"]
    done = subprocess.run([*command, "--out", str(tmp_path / "v")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and len(list((tmp_path / "v" / "image").glob("*.parquet"))) > 3
