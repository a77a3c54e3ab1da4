"""Servers that cannot be reached, that go away, that ask for a login, and that cannot be trusted: one clear line, soon."""

import datetime
import ipaddress
import json
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.data.remote import file_systems
from mmtune.data.remote import retry as retry_module
from mmtune.data.remote.remote_files import download, file_info, info_if_exists
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError, DataWarning, ServerUnreachable
from tests.support.data_helpers import catalog, write_csv
from tests.support.http_server import FileServer, fresh_cache_fixture, http_server, server_fixture  # noqa: F401


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(autouse=True)
def s3_without_a_past() -> Iterator[None]:
    """s3fs keeps file systems, which have read the address of the server from the environment."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a port on which nothing listens, also that of all object storage; retries take as long as they do for users."""
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.5)
    monkeypatch.setattr(retry_module, "_SERVERS", type(retry_module._SERVERS)(retry_module._Server))
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": address}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    return address


@pytest.mark.parametrize("read", ["index", "stream"])
@pytest.mark.parametrize("folder", ["{nowhere}/d", "s3://bucket/d", "gs://bucket/d"])
def test_a_refused_connection_is_one_line_about_what_the_user_named_after_seconds(nowhere, monkeypatch, read, folder):
    import fsspec

    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}.get(folder[:2], "aiohttp"))
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    data = folder.replace("{nowhere}", nowhere) + "/shards-{000000..000003}.tar"
    begin = time.monotonic()
    with pytest.raises(ServerUnreachable) as error:
        mmtune.evaluate("tiny:clip", data, read=read)
    assert time.monotonic() - begin < 10
    host = nowhere.removeprefix("http://")
    assert str(error.value).startswith(f"{data}: the server {host} cannot be reached: connection refused, after 4 attempts in ")
    assert str(error.value).endswith("s; check the address and the port, and whether the server runs")


def test_a_hub_that_is_down_is_one_line(nowhere, monkeypatch):
    import huggingface_hub
    from huggingface_hub import HfFileSystem

    from mmtune.data.remote.request_failures import GaveUp, describe
    from mmtune.data.remote.retry import retry

    url = "hf://datasets/a/b/c.tar"
    with pytest.raises(DataError, match=r"^hf://datasets/a/b/c\.tar: .*offline.*HF_HUB_OFFLINE"):
        open_data(url)  # at once: nothing is repeated
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = HfFileSystem(endpoint=nowhere, skip_instance_cache=True)
    with pytest.raises(GaveUp) as error:
        retry(lambda: hub.info("datasets/a/b/c.tar"), url)
    line = describe(error.value, url)
    assert line.startswith(f"the server {nowhere[7:]} cannot be reached: connection refused, after 4 attempts")


def test_an_unknown_host_and_no_connection_in_time_are_told_apart(monkeypatch):
    with pytest.raises(
        ServerUnreachable, match=r"^http://none\.invalid/a\.tar: the server none\.invalid cannot be reached: "
    ) as error:
        open_data("http://user:secret@none.invalid/a.tar")
    assert "its name cannot be resolved, after 4 attempts" in str(error.value) and "secret" not in str(error.value)
    monkeypatch.setattr(file_systems, "CONNECT_SECONDS", 0.4)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # more than wait in the queue of a socket that nobody accepts from
        for s in waiting:
            s.setblocking(False)
            s.connect_ex(full.getsockname())
        with pytest.raises(
            ServerUnreachable, match=r"cannot be reached: no connection in time, after 4 attempts in 2 s; check"
        ):
            open_data(f"http://127.0.0.1:{full.getsockname()[1]}/a.tar")
        for s in waiting:
            s.close()


def test_the_command_line_says_it_in_one_line_with_quiet(nowhere, tmp_path, capsys):
    shards = f"{nowhere}/shards-{{000000..000003}}.tar"
    recipe = {"model": "tiny:clip", "data": {"train": shards, "read": "stream"}, "run": {"dir": str(tmp_path / "run")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    verbs = (
        ["eval", "tiny:clip", shards],
        ["embed", "tiny:clip", shards, "--out", str(tmp_path / "vectors")],
        ["train", str(tmp_path / "recipe.yaml")],
    )
    for verb in verbs:
        assert main([*verb, "--quiet"]) == 2
        out = capsys.readouterr()
        assert out.err.count("\n") == 1 and out.err.startswith(f"mmtune {verb[0]}: ") and out.out == ""
        assert f"{shards}: the server" in out.err and "connection refused" in out.err


def test_packing_addresses_of_a_server_that_is_down_rejects_their_rows_with_the_reason(nowhere, tmp_path):
    rows = [{"id": str(i), "image": f"{nowhere}/{i}.png", "text": f"t {i}"} for i in range(3)]
    table = write_csv(tmp_path / "t.csv", rows)
    begin = time.monotonic()
    with pytest.raises(DataError):
        pack(table, tmp_path / "out", workers=1, max_rejected=0.5)
    assert time.monotonic() - begin < 20
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().strip().split("\n")}
    assert len(reasons) == 1 and "cannot be reached: connection refused; check the address" in reasons.pop()


def test_a_server_that_has_answered_is_waited_for_and_the_wait_is_said_once(tmp_path, monkeypatch, capsys):
    """A server that restarts while a stream is read: one warning for all threads, and every row."""
    www = tmp_path / "www"
    pack(catalog(tmp_path / "src"), www / "packed", shard_size="8KB")
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.2)
    monkeypatch.setattr(retry_module, "WARN_SECONDS", 0.5)
    with http_server(www) as server:
        port = int(server.url.rpartition(":")[2])
        sets = StreamedSets([f"{server.url}/packed"], [1.0], ShardCache(0))
    assert len(sets.sets[0]) >= 3
    rows: list[list[str]] = []
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))

    def read(shard) -> None:
        rows.append([r.id for r in sets.read(shard, sets.notes)])

    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        threads = [threading.Thread(target=read, args=(s,)) for s in sets.sets[0]]
        for t in threads:
            t.start()
        time.sleep(2.0)
        assert not rows and len(shown) == 1  # more attempts than at the first contact
        assert "the server 127.0.0.1" in shown[0] and "connection refused; trying again for up to" in shown[0]
        with http_server(www, port=port):
            for t in threads:
                t.join(30)
    assert sorted(i for part in rows for i in part) == sorted(open_data(str(www / "packed")).ids)
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.01)
    with pytest.raises(ServerUnreachable, match=r"connection refused, after 7 attempts"):
        read(sets.sets[0][0])


def test_a_file_of_a_server_that_is_down_is_not_called_missing(nowhere, monkeypatch):
    """fsspec's `info` raises FileNotFoundError whatever the reason: given negatives beside shards would be left out without a word."""
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.01)
    for look in (file_info, info_if_exists):
        with pytest.raises(ServerUnreachable):
            look(f"{nowhere}/negatives.parquet")


@pytest.mark.parametrize("read", ["index", "stream"])
@pytest.mark.parametrize(("status", "words"), [(403, "access denied (HTTP 403); check the credentials"), (404, "no such file")])
def test_denied_and_missing_shards_are_one_line_at_once(server: FileServer, status, words, read):
    server.failures, server.status = 1.0, status
    with pytest.raises(DataError) as error:
        mmtune.evaluate("tiny:clip", f"{server.url}/shards-{{0..3}}.tar", read=read)
    assert str(error.value).startswith(f"{server.url}/shards-0.tar: {words}") and "\n" not in str(error.value)
    assert server.count(status, "shards-0.tar") <= 2


@pytest.mark.parametrize("read", ["index", "stream"])
def test_a_login_page_instead_of_the_data_is_named(server: FileServer, tmp_path, read):
    server.login = True
    for data, words in (
        (
            "shards-{0..3}.tar",
            f"/shards-0.tar: the server sends an HTML page, from {server.url}/login, not the file; if it asks",
        ),
        (
            "packed",
            f"/packed: the server shows the page {server.url}/login instead, which names no shard; if it asks for a login",
        ),
    ):
        with pytest.raises(DataError) as error:
            mmtune.evaluate("tiny:clip", f"{server.url}/{data}", read=read)
        assert str(error.value).startswith(f"{server.url}{words}") and "next=" not in str(error.value)
    with pytest.raises(DataError, match="an HTML page"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", 1000)
    assert not list(tmp_path.glob("*a.tar"))


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - datetime.timedelta(1), now + datetime.timedelta(1))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    yield path


def test_tls_that_fails_is_one_line_at_once(tmp_path, certificate, monkeypatch, server: FileServer):
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 5.0)  # nothing is repeated
    with http_server(tmp_path, certificate) as secure:
        with pytest.raises(ServerUnreachable, match=r"its certificate is not valid: self-signed certificate; .*SSL_CERT_FILE"):
            open_data(f"{secure.url}/shards-{{0..3}}.tar")
        monkeypatch.setenv("AWS_ENDPOINT_URL", secure.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(ServerUnreachable, match=r"^s3://tls/\{0\.\.3\}\.tar: .* its certificate is not valid: self-signed"):
            open_data("s3://tls/{0..3}.tar")
    with pytest.raises(ServerUnreachable, match=r"no TLS connection \(WRONG_VERSION_NUMBER\); check the port, and whether"):
        open_data(f"{server.url.replace('http:', 'https:')}/a.tar")


def test_addresses_that_are_none_are_one_line_at_once(monkeypatch):
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 5.0)
    for url, words in (
        ("http:///a.tar", "not a valid address"),
        ("http://127.0.0.1:99999/a.tar", "Port out of range 0-65535"),
        ("http://[::1/a.tar", "Invalid IPv6 URL"),
    ):
        with pytest.raises(DataError) as error:
            open_data(url)
        assert str(error.value) == f"{url}: cannot be read ({words})"
