"""Streamed shards give the rows of `open_data` and the samples of webdataset; damage is an error; the cache on disk."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset
import zstandard

from mmtune.data.pack.pack import pack
from mmtune.data.remote.remote_stream import decompressed
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.shard_lru import PART, ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow, stream_rows
from mmtune.errors import DataError
from tests.support.data_helpers import catalog, picture, sound
from tests.support.http_server import FileServer, fresh_cache_fixture, server_fixture  # noqa: F401


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as f:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))
    return path


def rows_of(spec: str, limit: int = 0) -> list[StreamedRow]:
    sets = StreamedSets([spec], [1.0], ShardCache(limit))
    return [row for shard in sets.sets[0] for row in sets.read(shard, sets.notes)]


def same_rows(spec: str, local: str) -> None:
    rows, data = rows_of(spec), open_data(local)
    assert [r.id for r in rows] == data.ids and [r.group for r in rows] == data.groups
    assert [r.values for r in rows] == [dict(data.row(i).values) for i in range(len(data))]
    assert all([r.labels[k] for r in rows] == labels.tolist() for k, labels in data.labels.items())


def many_kinds(folder: Path) -> Path:
    """Captions in lists, JSON fields, ids and groups, two modalities, long names, folders."""
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        writer.write({"__key__": "x1", "wav": sound(1), "json": {"caption": ["first", "second"], "id": 7, "group": 3}})
        writer.write({"__key__": "x2", "wav": sound(2), "json": {"text": "a hum", "caption": "not this"}, "cls": 5})
        writer.write({"__key__": "deep/" * 40 + "x" * 120, "png": picture(3), "txt": "far away"})
        writer.write({"__key__": "x4", "png": picture(3), "json": {"caption": "  "}})
    return folder


def test_rows_ids_groups_and_labels_are_those_of_open_data(tmp_path: Path) -> None:
    folder = many_kinds(tmp_path / "d")
    same_rows(str(folder), str(folder))
    pack(catalog(tmp_path / "src"), tmp_path / "packed", shard_size="8KB", group="sku")
    same_rows(str(tmp_path / "packed"), str(tmp_path / "packed"))


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar", [(f"d/{i}.{e}", d) for i in range(50) for e, d in (("png", picture(i)), ("txt", b"t%d" % i))]
    )
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    rows = rows_of(str(path))
    assert [(r.id, r.values["image"], r.values["text"]) for r in rows] == [(s["__key__"], s["png"], s["txt"]) for s in theirs]


def test_addresses_pipes_and_compressed_files(server: FileServer, tmp_path: Path) -> None:
    plain = (many_kinds(tmp_path / "d") / "a.tar").read_bytes()
    encodings = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress, "tar": bytes}
    for name, compress in encodings.items():
        folder = server.root / name
        folder.mkdir()
        suffix = "" if name == "tar" else f".{name}"
        (folder / f"a.tar{suffix}").write_bytes(compress(plain))
        same_rows(f"{server.url}/{name}/a.tar{suffix}", str(tmp_path / "d"))
        same_rows(str(folder), str(tmp_path / "d"))
        same_rows(f"pipe:cat {folder}/a.tar{suffix}", str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"pipe:cat .*nothing\.tar: the command failed with exit status 1"):
        rows_of(f"pipe:cat {tmp_path}/nothing.tar")
    import fsspec

    fsspec.filesystem("memory").pipe_file("/b/a.tar", plain)
    same_rows("memory://b/a.tar", str(tmp_path / "d"))


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_continued_at_the_same_byte(server: FileServer, tmp_path: Path, ranges: bool) -> None:
    path = tar(server.root / "a.tar", [(f"{i}.png", picture(i, size=64)) for i in range(60)])
    server.ranges, server.cuts, server.failures = ranges, 0.5, 0.2
    same_rows(f"{server.url}/a.tar", str(path))
    assert server.count(206) == 0 or ranges


def test_damage_is_an_error_and_a_shard_that_differs_from_its_index(tmp_path: Path) -> None:
    whole = tar(tmp_path / "w.tar", [(f"{i}.png", picture(i)) for i in range(3)]).read_bytes()
    for size in (512, 1000, 1024, 3000, 4096):
        with pytest.raises(DataError, match=r"t\.tar: .*(truncated|damaged|not a tar)"):
            list(stream_rows(io.BytesIO(whole[:size]), "t.tar", Counter()))
    with tarfile.open(fileobj=io.BytesIO(whole)) as f:
        middle = f.getmembers()[1].offset
    flipped = bytearray(whole)
    flipped[middle + 150] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        list(stream_rows(io.BytesIO(bytes(flipped)), "t.tar", Counter()))
    with pytest.raises(DataError, match="another archive follows"):
        list(stream_rows(io.BytesIO(whole + whole), "t.tar", Counter()))
    pack(catalog(tmp_path / "src"), tmp_path / "packed", shard_size="8KB")
    tar(tmp_path / "packed" / "shard-000000.tar", [("0.png", picture(0)), ("0.txt", b"x")])
    sets = StreamedSets([str(tmp_path / "packed" / "shard-000001.tar")], [1.0], ShardCache(0))
    first = ShardFile("s", "shard-000000.tar", str(tmp_path / "packed" / "shard-000000.tar"), {"rows": 5})
    with pytest.raises(DataError, match=r"shard-000000\.tar: 1 rows, index.json says 5"):
        list(sets.read(first, Counter()))


def test_modalities_of_later_shards_are_found(tmp_path: Path) -> None:
    for i in range(10):
        member = ("png", picture(i)) if i < 9 else ("wav", sound(1))
        tar(tmp_path / f"{i}.tar", [(f"{i}-{k}.{e}", d) for k in range(3) for e, d in (member, ("txt", b"words %d" % k))])
    sets = StreamedSets([str(tmp_path)], [1.0], ShardCache(0))
    assert sets.modalities == ["image", "audio", "text"] and sets.present["audio"].sum() == 3


@pytest.mark.parametrize("name", ["gz", "bz2", "xz", "zst"])
def test_damage_of_compressed_shards_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}[name]
    rng = random.Random(0)
    whole = compress(tar(tmp_path / "w.tar", [(f"{i}.png", rng.randbytes(5000)) for i in range(60)]).read_bytes())
    file = tmp_path / f"a.tar.{name}"

    def found() -> None:
        with pytest.raises(DataError, match=rf"a\.tar\.{name}: .*(damaged|truncated|not a tar)") as error:
            for _ in stream_rows(decompressed(io.BytesIO(data), str(file)), str(file), Counter()):
                pass
        assert "\n" not in str(error.value)

    for share in (0.01, 0.3, 0.9):
        at = int(share * len(whole))
        data = whole[:at]
        found()
        data = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        if name != "zst":  # zstandard writes no checksum by default: a flipped byte of stored data is a flipped byte of the tar
            found()


def test_the_cache_on_disk_keeps_its_size_and_the_last_used(server: FileServer, tmp_path: Path) -> None:
    for i in range(4):
        tar(server.root / f"{i}.tar", [(f"{i}-{k}.png", picture(10 * i + k)) for k in range(3)])
    size = (server.root / "0.tar").stat().st_size
    folder = tmp_path / "lru"
    cache = ShardCache(2 * size + 10, folder)
    shards = [ShardFile(str(i), f"{i}.tar", "", remote=f"{server.url}/{i}.tar") for i in range(4)]

    def read(i: int) -> bytes:
        with cache.open(shards[i]) as f:
            return f.read()

    def kept() -> set[str]:
        return {p.name[-5:] for p in folder.glob("*.tar")}

    for i in (0, 1, 0, 2):
        assert read(i) == (server.root / f"{i}.tar").read_bytes()
    assert kept() == {"0.tar", "2.tar"} and (cache.hits, cache.misses) == (1, 3)
    assert sum(p.stat().st_size for p in folder.iterdir()) <= cache.limit
    with cache.open(shards[3]) as f:  # closed in the middle: no copy, nothing left behind
        f.read(700)
    assert "3.tar" not in kept() and not list(folder.glob(f"{PART}*"))
    tar(server.root / "2.tar", [("other.png", picture(99)), ("b.png", picture(98)), ("c.png", picture(97))])
    assert read(2) == (server.root / "2.tar").read_bytes()  # changed on the server
    small = ShardCache(size - 1, tmp_path / "small")
    with small.open(shards[0]) as f:
        assert f.read() == (server.root / "0.tar").read_bytes()
    assert not list((tmp_path / "small").glob("*")) if (tmp_path / "small").exists() else True
    stale = folder / f"{PART}1-1-x.tar"
    stale.write_bytes(bytes(2 * size))
    os.utime(stale, (1, 1))
    assert read(1) and not stale.exists()


def test_an_address_without_shards_is_one_line(server: FileServer) -> None:
    with pytest.raises(DataError, match=r"/none\.tar: no such file"):
        rows_of(f"{server.url}/none.tar")
    tar(server.root / "n.tar", [("a.bin", b"x")])
    with pytest.raises(DataError, match="no sample with a known modality"):
        rows_of(f"{server.url}/n.tar")


def two_dots(rows: int, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Members of `rows` samples; a name may contain {i}, the number of the sample."""
    contents = {
        "png": picture,
        "txt": lambda i: b"caption %d" % i,
        "json": lambda i: b'{"shade": %d}' % i,
        "cls": lambda i: b"%d" % i,
    }
    members = []
    for i in range(rows):
        for k, n in enumerate(names):
            members.append((n.format(i=i), contents[n.rpartition(".")[2]](2 * i + k // 2)))
    return members


@pytest.mark.parametrize(
    "names",
    [
        ("sku{i}.front.png", "sku{i}.front.txt", "sku{i}.back.png", "sku{i}.back.txt"),  # views: the last dot
        ("v1.{i}.png", "v1.{i}.json", "v1.{i}.txt"),  # documents beside values: the last dot
        ("{i}.seg.png", "{i}.png", "{i}.txt"),  # a compound extension of webdataset: the first dot
        ("{i}.left.png", "{i}.txt"),
        ("a.b/{i}.png", "a.b/{i}.txt"),  # dots of folders do not count
    ],
)
@pytest.mark.parametrize("plain_rows", [0, 3])
def test_keys_of_names_with_two_dots_end_where_random_access_ends_them(tmp_path: Path, names, plain_rows: int) -> None:
    extensions = dict.fromkeys(n.rpartition(".")[2] for n in names)
    plain = two_dots(plain_rows, tuple(f"plain{{i}}.{e}" for e in extensions))
    path = tar(tmp_path / "x.tar", plain + two_dots(200, names))
    same_rows(str(path), str(path))


def test_where_keys_end_must_show_in_time(tmp_path: Path) -> None:
    """Names like those of views after hundreds that are not; random access reads them all beforehand."""
    late = two_dots(300, ("{i}.v1.png", "{i}.v1.txt")) + two_dots(1, ("900.v1.png", "900.v1.txt", "900.v2.png", "900.v2.txt"))
    other = two_dots(300, ("sku{i}.front.png", "sku{i}.front.txt", "sku{i}.back.png", "sku{i}.back.txt"))
    for members in (late, [*other, ("last.front.png", picture(9000))]):
        with pytest.raises(DataError, match="keys of some names end at the first dot, of others at the last"):
            rows_of(str(tar(tmp_path / "x.tar", members)))
