"""The row table: tables beside packed shards, the combined table in the cache, and what is read when data are opened."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmtune.data.pack.pack import pack
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.dataset import Data, open_data
from mmtune.data.shards.row_table import StringColumn
from mmtune.data.shards.shard_table import decode_table, table_name
from mmtune.errors import DataError
from tests.support.data_helpers import catalog, tree
from tests.support.http_server import FileServer, http_server


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(catalog(tmp_path / "src"), tmp_path / "out", shard_size="8KB")
    return tmp_path / "out"


@pytest.fixture
def server(packed: Path) -> Iterator[FileServer]:
    with http_server(packed) as files:
        yield files


def contents(data: Data) -> list[object]:
    labels = {k: v.tolist() for k, v in data.labels.items()}
    present = {k: v.tolist() for k, v in data.present.items()}
    return [list(data.ids), list(data.groups), labels, present, [data.row(i) for i in range(len(data))], data.fingerprint]


def without_tables(folder: Path, copy: Path) -> Path:
    """A pack as older versions wrote it."""
    shutil.copytree(folder, copy)
    index = json.loads((copy / "index.json").read_text())
    for shard in index["shards"]:
        del shard["table_bytes"], shard["table_sha256"]
        (copy / table_name(shard["name"])).unlink()
    (copy / "index.json").write_text(json.dumps(index))
    return copy


def test_the_table_beside_a_shard_is_the_table_of_a_scan(packed: Path) -> None:
    index = json.loads((packed / "index.json").read_text())
    assert len(index["shards"]) > 2
    for entry in index["shards"]:
        data = (packed / table_name(entry["name"])).read_bytes()
        table = decode_table(data, entry)
        assert table is not None and len(data) == entry["table_bytes"]
        assert table.equals(tar_index.scan(str(packed / entry["name"])))
        assert decode_table(data[:-1], entry) is None and decode_table(data, {**entry, "rows": 1 + entry["rows"]}) is None


def test_opening_packed_data_reads_no_tar(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = contents(open_data(str(without_tables(packed, tmp_path / "old"))))
    monkeypatch.setattr(tar_index, "scan", lambda *_: pytest.fail("scanned"))
    for path in packed.glob("*.tar"):  # other bytes of the same size and time
        data, times = path.read_bytes(), os.stat(path)
        path.with_suffix(".kept").write_bytes(data)
        path.write_bytes(bytes(len(data)))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    opened = open_data(str(packed))
    assert opened.ids == want[0] and opened.column("id") == want[0]
    with pytest.raises(DataError, match="damaged or changed"):
        opened.row(0)
    for path in packed.glob("*.tar"):
        path.write_bytes(path.with_suffix(".kept").read_bytes())
    assert contents(opened) == want


def test_two_packs_are_byte_identical_with_their_tables(packed: Path, tmp_path: Path) -> None:
    pack(tmp_path / "src" / "rows.csv", tmp_path / "again", shard_size="8KB")
    assert tree(packed) == tree(tmp_path / "again") and any(name.endswith(".arrow") for name in tree(packed))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "of another shard"])
def test_a_table_that_is_not_the_shards_own_is_made_anew(packed: Path, damage: str) -> None:
    want = contents(open_data(str(packed)))
    shutil.rmtree(shard_cache.root())
    path, other = packed / "shard-000000.arrow", packed / "shard-000001.arrow"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 4
    path.write_bytes(
        other.read_bytes() if damage == "of another shard" else data[: len(data) // 2] if damage == "cut" else data
    )
    if damage == "missing":
        path.unlink()
    assert contents(open_data(str(packed))) == want


def test_a_table_of_other_modalities_is_made_anew(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = contents(open_data(str(packed)))
    monkeypatch.setattr(tar_index, "SCAN_VERSION", 10**6)
    scanned = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda *args: scanned.append(args) or scan(*args))
    assert contents(open_data(str(packed))) == want and len(scanned) == len(list(packed.glob("*.tar")))


def test_a_tar_that_was_changed_after_its_table_is_refused(packed: Path) -> None:
    open_data(str(packed))
    path = packed / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000001\.tar: its content differs from the SHA-256"):
        open_data(str(packed))


def test_a_combined_table_that_is_damaged_is_made_anew(packed: Path) -> None:
    want = contents(open_data(str(packed)))
    (path,) = (shard_cache.root() / "rows").glob("*.arrow")
    for data in (b"", b"torn", path.read_bytes()[:-100]):
        path.write_bytes(data)
        assert contents(open_data(str(packed))) == want
    assert len(list((shard_cache.root() / "rows").iterdir())) == 1


def test_an_interrupted_pack_makes_the_tables_again(packed: Path, tmp_path: Path) -> None:
    want = tree(packed)
    (packed / "shard-000001.arrow").write_bytes(b"torn")
    pack(tmp_path / "src" / "rows.csv", packed, shard_size="8KB")
    assert tree(packed) == want


def test_remote_packs_fetch_tables_first_and_shards_when_rows_are_read(server: FileServer, packed: Path) -> None:
    want = contents(open_data(str(packed)))
    data = open_data(server.url)
    assert list(data.ids) == want[0] and data.column("id") == want[0] and data.fingerprint == want[-1]
    shards = len(list(packed.glob("*.tar")))
    assert server.count(200, ".arrow") == shards and server.count(200, ".tar") == 0
    data.row(0)
    assert server.count(200, ".tar") == 1 and server.answers["/shard-000000.tar", 200] == 1
    assert contents(data) == want and server.count(200, ".tar") == shards
    before = server.answers.copy()
    assert contents(open_data(server.url)) == want
    assert {k: n - before[k] for k, n in server.answers.items() if n > before[k] and k[1] == 200} == {("/index.json", 200): 1}


def test_remote_tables_are_fetched_in_parallel(server: FileServer, packed: Path, tmp_path: Path) -> None:
    server.delay = 0.1
    assert len(open_data(server.url)) == 12
    assert server.most_at_once >= min(8, len(list(packed.glob("*.tar")))) and server.count(200, ".tar") == 0


def test_a_remote_table_that_is_damaged_costs_a_fetch_of_its_shard(server: FileServer, packed: Path, tmp_path: Path) -> None:
    want = contents(open_data(str(packed)))
    (packed / "shard-000000.arrow").write_bytes(b"damaged")
    (packed / "shard-000001.arrow").unlink()
    data = open_data(server.url)
    assert list(data.ids) == want[0] and server.count(200, ".tar") == 2
    assert contents(data) == want


def test_views_are_pickled_with_their_own_rows_only(packed: Path) -> None:
    data = open_data(str(packed))
    for rows in ([7, 2], [0], []):
        view = data.subset(rows).without_values({"text": np.array([0][: len(rows)], np.int64)})
        copy = pickle.loads(pickle.dumps(view))
        assert contents(copy) == contents(view) and copy.ids == [data.ids[i] for i in rows]
    assert len(pickle.dumps(data.subset([1]))) < len(pickle.dumps(data))


def test_string_columns_are_sequences_that_equal_lists() -> None:
    strings = ["a", "b", None, "d\u2028", ""]
    array = pa.array(strings, pa.large_string())
    rows = np.array([4, 2, 0, 0])
    for column, want in ((StringColumn(array), strings), (StringColumn(array, rows), [strings[i] for i in rows])):
        assert column == want and want == column and column != want[1:] and column != [*want[:-1], "x"]
        assert len(column) == len(want) and list(column) == want and column[1:3] == want[1:3] and column[::-1] == want[::-1]
        assert column[-1] == want[-1] and column[np.int64(1)] == want[1] and column.take([2, 0]) == [want[2], want[0]]
        assert pa.array(column, pa.string()).to_pylist() == want and "a" in column and "x" not in column
        with pytest.raises(IndexError):
            column[len(want)]
