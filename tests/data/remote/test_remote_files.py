"""Remote files over a real HTTP server that fails, cuts, delays, and changes its files."""

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from mmtune.data.pack.pack import pack
from mmtune.data.remote import retry as retry_module
from mmtune.data.remote.remote_files import cache_identity, download, file_info, read_limited, stamp_of
from mmtune.data.remote.request_failures import GaveUp, describe, is_passing, public_url, without_secrets
from mmtune.data.remote.retry import retry
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from tests.support.data_helpers import catalog, picture, write_csv
from tests.support.http_server import FileServer, fresh_cache_fixture, server_fixture  # noqa: F401


def tar_of(path: Path, start: int, n: int) -> Path:
    with tarfile.open(path, "w") as f:
        for i in range(start, start + n):
            for extension, data in (("png", picture(i)), ("txt", b"caption %d" % i)):
                info = tarfile.TarInfo(f"{i:06d}.{extension}")
                info.size = len(data)
                f.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_failures_that_pass_are_repeated(server: FileServer, tmp_path: Path, status: int) -> None:
    tar_of(server.root / "a.tar", 0, 3)
    server.status = status
    server.fail_first["/a.tar"] = 3
    data = open_data(f"{server.url}/a.tar")
    assert data.ids == ["000000", "000001", "000002"] and data.read(1, "image") == picture(1)
    assert server.answers["/a.tar", status] == 3


def test_cut_connections_are_repeated_and_never_give_half_a_file(server: FileServer, tmp_path: Path) -> None:
    for k in range(8):
        tar_of(server.root / f"{k}.tar", 10 * k, 4)
    server.cuts, server.failures = 0.4, 0.2
    data = open_data(f"{server.url}/{{0..7}}.tar")
    assert data.ids == [f"{10 * k + i:06d}" for k in range(8) for i in range(4)]
    assert all(Path(s.path).read_bytes() == (server.root / f"{k}.tar").read_bytes() for k, s in enumerate(data.shards))
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file or directory"), (403, "access denied"), (401, "access denied")]
)
def test_failures_for_good_are_one_line_without_credentials(server: FileServer, status: int, words: str) -> None:
    server.failures, server.status = 1.0, status
    address = server.url.replace("http://", "http://user:secret@")
    with pytest.raises(DataError) as error:
        open_data(f"{address}/d/a.tar?X-Amz-Signature=abcdef")
    message = str(error.value)
    assert message.startswith(f"{server.url}/d/a.tar: ") and words in message and "\n" not in message
    assert "secret" not in message and "abcdef" not in message
    assert server.count(status, "a.tar") <= 2  # one HEAD, and one GET in its place; nothing is repeated


def test_a_server_that_stays_down_is_one_line(server: FileServer) -> None:
    tar_of(server.root / "a.tar", 0, 1)
    server.failures = 1.0
    with pytest.raises(DataError, match=r"/a\.tar: cannot be read \(HTTP 503 for index\.json, after 7 attempts in \d s\)"):
        open_data(f"{server.url}/a.tar")


def test_delays_grow_and_obey_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.5)
    monkeypatch.setattr(time, "sleep", waits.append)

    def fails() -> None:
        raise TimeoutError

    with pytest.raises(GaveUp) as error:
        retry(fails, "http://h/a")
    assert isinstance(error.value.__cause__, TimeoutError)
    assert len(waits) == 6 and all(0.25 * 2**n <= w <= 0.5 * 2**n for n, w in enumerate(waits))

    class Busy(Exception):
        status, headers = 429, {"Retry-After": "7"}

    def busy() -> None:
        raise Busy

    waits.clear()
    with pytest.raises(GaveUp):
        retry(busy, "http://h/a", attempts=2)
    assert waits == [7.0]
    for error in (FileNotFoundError("x"), PermissionError("x"), ValueError("x"), KeyError("x")):
        assert not is_passing(error)


@pytest.mark.parametrize("stamp", ["ETag", "Last-Modified"])
def test_a_changed_file_is_fetched_again_by_whatever_stamp_the_server_gives(server: FileServer, stamp: str) -> None:
    server.stamp = stamp
    tar_of(server.root / "a.tar", 0, 2)
    assert open_data(f"{server.url}/a.tar").ids == ["000000", "000001"]
    assert open_data(f"{server.url}/a.tar").ids == ["000000", "000001"] and server.answers["/a.tar", 200] == 1
    tar_of(server.root / "a.tar", 50, 2)  # the same size
    import os

    os.utime(server.root / "a.tar", (1e9, 1e9))
    assert open_data(f"{server.url}/a.tar").ids == ["000050", "000051"] and server.answers["/a.tar", 200] == 2


def test_signed_addresses_of_one_file_share_its_copy(server: FileServer) -> None:
    tar_of(server.root / "a.tar", 0, 2)
    for signature in ("one", "two"):
        data = open_data(f"{server.url}/a.tar?X-Amz-Signature={signature}")
        assert data.ids == ["000000", "000001"] and data.shards[0].url == f"{server.url}/a.tar"
    assert server.answers["/a.tar", 200] == 1
    assert cache_identity("https://h/a?id=5") == "https://h/a?id=5" != cache_identity("https://h/a?id=6")


def test_packed_directories_and_splits_open_as_a_whole(server: FileServer, tmp_path: Path) -> None:
    source = catalog(tmp_path / "src")
    pack(source, server.root / "plain", shard_size="8KB")
    pack(source, server.root / "split", split="colour", shard_size="8KB")
    assert open_data(f"{server.url}/plain").ids == open_data(str(server.root / "plain")).ids
    assert open_data(f"{server.url}/split/").ids == open_data(str(server.root / "split")).ids
    assert open_data(f"{server.url}/split/blue").ids == open_data(str(server.root / "split" / "blue")).ids
    (server.root / "plain" / "shard-000001.tar").unlink()
    import shutil

    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"plain/shard-000001\.tar: missing, but index.json lists it"):
        open_data(f"{server.url}/plain")


def test_media_addresses_in_tables_survive_failures(server: FileServer, tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        (server.root / f"{i}.png").write_bytes(picture(i))
        rows.append({"id": str(i), "image": f"{server.url}/{i}.png?sig=secret{i}", "text": f"t {i}"})
    rows.append({"id": "gone", "image": f"{server.url}/gone.png", "text": "x"})
    for i in range(0, 12, 3):
        server.fail_first[f"/{i}.png"] = 1
    result = pack(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", max_rejected=1.0)
    assert (result.packed, result.rejected) == (12, 1) and server.count(503) == 4
    data = open_data(str(tmp_path / "out"))
    assert [data.read(i, "image") for i in range(12)] == [picture(i) for i in range(12)]
    assert "missing file" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_media_addresses_in_tables_are_fetched_in_parallel(server: FileServer, tmp_path: Path) -> None:
    """The same bytes in the same order, also if one of them fails, and if two rows have the same address."""
    rows = [{"id": str(i), "image": f"{server.url}/{i % 20}.png", "text": f"t {i}"} for i in range(22)]
    for i in set(range(20)) - {7}:
        (server.root / f"{i}.png").write_bytes(picture(i))
    table = write_csv(tmp_path / "t.csv", rows)
    server.delay = 0.1
    result = pack(table, tmp_path / "out", workers=1, max_rejected=1.0)
    assert (result.packed, result.rejected) == (21, 1) and 4 <= server.most_at_once <= 8
    data = open_data(str(tmp_path / "out"))
    assert data.ids == [str(i) for i in range(22) if i != 7]
    assert [data.read(n, "image") for n in range(21)] == [picture(int(i) % 20) for i in data.ids]


def test_the_extra_is_named_when_its_library_is_missing() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = sys.modules['s3fs'] = None\n"
        "from mmtune.data.shards.dataset import open_data\n"
        "for url in ('https://h/a.tar', 's3://b/a.tar'):\n"
        "    try: open_data(url)\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [
        'MissingExtra https://h/a.tar: https:// URLs need a library that is not installed: pip install "mmtune[http]"',
        'MissingExtra s3://b/a.tar: s3:// URLs need a library that is not installed: pip install "mmtune[s3]"',
    ]


def test_thousands_of_shards_are_fetched_in_parallel(server: FileServer, tmp_path: Path) -> None:
    """10,000 shards at 50 ms in under a minute are 167 a second; one after another would be 7."""
    n = 240
    whole = tar_of(tmp_path / "one.tar", 0, 1).read_bytes()
    for i in range(n):
        (server.root / f"{i:05d}.tar").write_bytes(whole.replace(b"caption 0", b"caption%02d" % (i % 100)))
    server.delay = 0.05
    data = open_data(f"{server.url}/{{00000..{n - 1:05d}}}.tar")
    assert len(data) == n
    assert 12 < server.most_at_once <= 32  # sizes and files are two requests each, so over 12 at once are enough


def test_small_parts(server: FileServer, tmp_path: Path) -> None:
    (server.root / "x").write_bytes(bytes(range(200)))
    assert read_limited(f"{server.url}/x", 1000) == bytes(range(200)) and len(read_limited(f"{server.url}/x", 10)) == 11
    server.cuts = 1.0
    with pytest.raises(Exception) as error:
        read_limited(f"{server.url}/x", 1000)
    assert is_passing(error.value) and "after 7 attempts" in describe(error.value, server.url)
    server.cuts = 0.0
    download(f"{server.url}/x", tmp_path / "y", 200)
    assert (tmp_path / "y").read_bytes() == bytes(range(200))
    before = stamp_of(file_info(f"{server.url}/x"))
    (server.root / "x").write_bytes(bytes(200))
    assert stamp_of(file_info(f"{server.url}/x")) != before
    assert public_url("s3://key:secret@b/a.tar") == "s3://b/a.tar"
    assert without_secrets("GET 'http://u:p@h/a?sig=1' failed") == "GET 'http://h/a' failed"
