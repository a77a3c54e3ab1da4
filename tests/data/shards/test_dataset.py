"""Opening DATA: tars of other programs and of `pack`, remote ones, subsets; errors for damaged ones."""

import io
import json
import os
import pickle
import random
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from mmtune.data.identity_labels import mix_labels, stable_label
from mmtune.data.pack.pack import pack
from mmtune.data.shards import shard_cache
from mmtune.data.shards.dataset import Data, open_data
from mmtune.errors import DataError, DataWarning
from tests.support.data_helpers import catalog, picture, sound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as f:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, start: int, n: int) -> Path:
    """An img2dataset-like shard written by webdataset's own writer."""
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(start, start + n):
            meta = {"caption": f"caption {i}", "url": f"http://x/{i}", "width": 24, "sha256": "ab"}
            writer.write({"__key__": f"{i:09d}", "jpg": picture(i, "JPEG"), "txt": f"caption {i}", "json": meta})
    return path


def test_img2dataset_shards_are_data_as_they_are(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"{k:05d}.tar", 10 * k, 4 + k)
    (tmp_path / "00000_stats.json").write_text("{}")
    data = open_data(str(tmp_path))
    assert len(data) == 15 and data.modalities == ["image", "text"] and data.notes == []
    assert data.ids[:5] == ["000000000", "000000001", "000000002", "000000003", "000000010"]
    assert data.groups == [None] * 15 and not data.labels["group"].any()
    assert [(s.name, s.start, s.count) for s in data.shards] == [("00000", 0, 4), ("00001", 4, 5), ("00002", 9, 6)]
    assert data.read(4, "image") == picture(10, "JPEG") and data.read(4, "text") == b"caption 10"
    assert data.meta(4) == {"caption": "caption 10", "url": "http://x/10", "width": 24, "sha256": "ab"}
    assert data.column("width") == [24] * 15 and data.column("id") == data.ids
    row = data.row(14)
    assert (row.id, row.group, row.values["text"], row.meta["url"]) == ("000000025", None, b"caption 25", "http://x/25")
    with pytest.raises(DataError, match="'widht'; did you mean 'width'"):
        data.column("widht")
    with pytest.raises(IndexError):
        data.read(15, "image")


def test_brace_pattern_glob_list_single_tar(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"s-{k:03d}.tar", 10 * k, 3)
    assert len(open_data(str(tmp_path / "s-{000..001}.tar"))) == 6
    assert len(open_data(str(tmp_path / "{s-000,s-002}.tar"))) == 6
    assert len(open_data(str(tmp_path / "s-*.tar"))) == 9
    assert len(open_data(str(tmp_path / "s-001.tar"))) == 3
    assert len(open_data(f"file://{tmp_path}/s-001.tar")) == 3
    assert len(open_data([str(tmp_path / "s-002.tar"), str(tmp_path / "s-000.tar")])) == 6
    with pytest.raises(DataError, match=r"s-003\.tar: no such file"):
        open_data(str(tmp_path / "s-{000..003}.tar"))
    with pytest.raises(DataError, match="named twice"):
        open_data([str(tmp_path / "s-000.tar")] * 2)


def test_sounds_with_captions_in_json_and_groups(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write(
            {"__key__": "x1", "wav": sound(1), "json": {"caption": ["first", "second"], "id": 7, "group": 3, "rpm": 1750}}
        )
        writer.write({"__key__": "x2", "wav": sound(2), "json": {"text": "a hum", "caption": "not this"}, "cls": 5})
        writer.write({"__key__": "x3", "flac": sound(3, "FLAC"), "txt": "clicks", "npy": np.zeros(2)})
        writer.write({"__key__": "x4", "flac": sound(3, "FLAC"), "json": {"caption": "  "}})
    data = open_data(str(tmp_path / "a.tar"))
    assert data.modalities == ["audio", "text"] and data.ids == ["7", "7#2", "x2", "x3", "x4"]
    assert data.groups == ["3", "3", None, None, None]
    assert [data.read(i, "text") for i in range(4)] == [b"first", b"second", b"a hum", b"clicks"]
    assert data.read(0, "audio") == data.read(1, "audio") == sound(1)
    assert data.present["text"].tolist() == [True, True, True, True, False] and set(data.row(4).values) == {"audio"}
    with pytest.raises(KeyError, match="x4.*no text"):
        data.read(4, "text")
    assert data.meta(0) == data.meta(1) == {"rpm": 1750} and data.meta(2) == {"cls": 5, "caption": "not this"}
    assert data.column("rpm") == [1750, 1750, None, None, None] and data.column("cls") == [None, None, 5, None, None]
    assert data.labels["audio"][3] == data.labels["audio"][4] != data.labels["audio"][0] == data.labels["audio"][1]
    assert data.labels["text"][4] == 0 and data.labels["text"][0] == stable_label(b"first")


def test_odd_member_names(tmp_path: Path) -> None:
    jpg, png = picture(1, "JPEG"), picture(2)
    members = [
        ("./a/001.JPG", jpg),
        ("a/001.txt", b"one"),
        ("b.c/001.v2.jpg", jpg),  # the key is b.c/001, the extension v2.jpg
        ("b.c/001.txt", b"two"),
        ("c/003.seg.png", png),
        ("c/003.png", jpg),
        ("d/004.txt", b"four"),
        ("d/004.jpg", jpg),
        ("d/004.png", png),
        ("e/005.jpg", png),
        ("a/002.jpg", png),
        ("e/005.txt", b"five"),
        ("noextension", b"?"),
        ("._x.jpg", b"resource fork"),
        ("__meta__.json", b"{}"),
    ]
    data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.ids == ["a/001", "b.c/001", "c/003", "d/004", "e/005", "a/002"]
    assert [data.read(i, "image") for i in range(6)] == [jpg, jpg, jpg, jpg, png, png]
    assert data.present["text"].tolist() == [True, True, False, True, True, False]


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    long = "deep/" * 40 + "x" * 120
    members = [(f"{long}{i}.{e}", d) for i in range(5) for e, d in (("png", picture(i)), ("txt", b"t%d" % i))]
    tar(tmp_path / "x.tar", members)  # names too long for one header block
    theirs = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False))
    data = open_data(str(tmp_path / "x.tar"))
    assert data.ids == [s["__key__"] for s in theirs]
    assert [data.read(i, "image") for i in range(5)] == [s["png"] for s in theirs]


def test_keys_that_repeat_between_shards(tmp_path: Path) -> None:
    for k in range(2):
        shard(tmp_path / f"s{k}.tar", 0, 2)
    data = open_data(str(tmp_path))
    assert data.ids == ["s0/000000000", "s0/000000001", "s1/000000000", "s1/000000001"]
    assert len(set(data.labels["id"].tolist())) == 4
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "s1.tar", tmp_path / "other" / "s0.tar")
    data = open_data([str(tmp_path / "s0.tar"), str(tmp_path / "other")])
    assert len(set(data.ids)) == 4 and data.ids[3] == "other/s0/000000001"


def test_the_same_explicit_id_twice_is_an_error(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.txt", b"one"), ("1.json", b'{"id": "X9"}')])
    tar(tmp_path / "b.tar", [("1.txt", b"two"), ("1.json", b'{"id": "X9"}')])
    with pytest.raises(DataError, match="id 'X9' is there twice.*a.tar.*b.tar.*--id"):
        open_data(str(tmp_path))


def test_labels_are_comparable_between_datasets(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", 0, 3)
    shard(tmp_path / "b.tar", 2, 3)
    a, b = open_data(str(tmp_path / "a.tar")), open_data(str(tmp_path / "b.tar"))
    assert a.labels["image"][2] == b.labels["image"][0] and a.labels["id"][2] == b.labels["id"][0]
    tar(tmp_path / "c.tar", [("000000002.txt", b"another dataset")])
    assert open_data(str(tmp_path / "c.tar")).labels["id"][0] != a.labels["id"][2]  # same key, another thing
    assert all(v.dtype == np.int64 and (v >= 0).all() for v in a.labels.values())
    many = mix_labels(np.arange(1, 100_001), np.arange(100_001, 1, -1))
    assert len(np.unique(many)) == 100_000 and (many > 0).all()


def test_a_subset_keeps_ids_labels_and_metadata(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"{k}.tar", 10 * k, 4)
    data = open_data(str(tmp_path))
    rows = [9, 1, 2, 0, 5]
    view = data.subset(rows)
    assert view.ids == [data.ids[i] for i in rows] and len(view) == 5
    assert [view.row(i) for i in range(5)] == [data.row(i) for i in rows]
    assert all((view.labels[k] == data.labels[k][rows]).all() for k in data.labels)
    assert [(s.name, s.start, s.count) for s in view.shards] == [("2", 0, 1), ("0", 1, 3), ("1", 4, 1)]
    assert view.subset([2, 4]).ids == [data.ids[2], data.ids[5]]
    assert data.subset(np.arange(12) % 2 == 0).ids == data.ids[::2] and len(data.subset([])) == 0
    assert view.fingerprint != data.fingerprint == open_data(str(tmp_path)).fingerprint
    with pytest.raises(IndexError):
        data.subset([12])


def test_the_fingerprint_depends_on_content_not_on_the_path(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    shard(tmp_path / "a" / "s.tar", 0, 3)
    shutil.copy(tmp_path / "a" / "s.tar", tmp_path / "b" / "s.tar")
    shard(tmp_path / "c" / "s.tar", 1, 3)
    a, b, c = (open_data(str(tmp_path / n)).fingerprint for n in "abc")
    assert a == b != c


def test_remote_shards_are_fetched_once(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for k in range(2):
        fs.pipe_file(f"/bucket/d/s-{k}.tar", shard(tmp_path / f"{k}.tar", 10 * k, 3).read_bytes())
    data = open_data("memory://bucket/d")
    assert data.ids == open_data([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]).ids
    assert data.shards[1].url == "memory://bucket/d/s-1.tar" and data.shards[1].path.startswith(str(shard_cache.root()))
    before = [os.stat(s.path).st_ino for s in data.shards]
    assert [os.stat(s.path).st_ino for s in open_data("memory://bucket/d/s-{0..1}.tar").shards] == before
    fs.pipe_file("/bucket/d/s-1.tar", shard(tmp_path / "n.tar", 50, 3).read_bytes())
    assert open_data("memory://bucket/d").ids[3] == "000000050"  # another file of the same size is fetched again
    with pytest.raises(DataError, match="memory://bucket/none: no such"):
        open_data("memory://bucket/none")
    with pytest.raises(DataError, match="nosuch://x"):
        open_data("nosuch://x/y.tar")


def test_remote_packed_data_is_checked_against_its_index(tmp_path: Path) -> None:
    pack(catalog(tmp_path / "src"), tmp_path / "out", shard_size="8KB")
    fs = fsspec.filesystem("memory")
    for path in (tmp_path / "out").glob("[a-z]*.*"):
        fs.pipe_file(f"/packed/{path.name}", path.read_bytes())
    assert open_data("memory://packed").ids == open_data(str(tmp_path / "out")).ids
    fs.rm("/packed/shard-000001.tar")
    with pytest.raises(DataError, match=r"memory://packed/shard-000001\.tar: missing"):
        open_data("memory://packed")


def test_errors_for_what_is_not_data(tmp_path: Path) -> None:
    def fails(spec: str, match: str) -> None:
        with pytest.raises(DataError, match=match):
            open_data(spec)

    (tmp_path / "empty").mkdir()
    fails(str(tmp_path / "empty"), r"empty: no \*.tar in it; make shards with `mmtune pack")
    fails(str(tmp_path / "nothing"), "nothing: no such file or directory")
    tar(tmp_path / "z.tar.gz", [("a.txt", b"x")], "w:gz")
    fails(str(tmp_path), r"z.tar.gz: compressed.*plain .tar")
    shutil.copy(tmp_path / "z.tar.gz", tmp_path / "z.tar")
    fails(str(tmp_path / "z.tar"), r"z.tar: gzip-compressed.*decompress it")
    (tmp_path / "t.tar").write_bytes(b"not a tar at all" * 100)
    fails(str(tmp_path / "t.tar"), "t.tar: not a tar file")
    (tmp_path / "t.tar").write_bytes(b"")
    fails(str(tmp_path / "t.tar"), "t.tar: not a tar file")
    tar(tmp_path / "n.tar", [("a.bin", b"x")])
    fails(str(tmp_path / "n.tar"), "no sample with a known modality.*samples without any known modality")
    tar(tmp_path / "d.tar", [("a.txt", b"x"), ("a.txt", b"y")])
    fails(str(tmp_path / "d.tar"), "contains the member a.txt twice")
    fails("pipe:cat x", "pipes")


def test_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = shard(tmp_path / "w.tar", 0, 3).read_bytes()
    content = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(512, content, 512), content + 100, content - 200]:
        (tmp_path / "t.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"t\.tar: "):
            open_data(str(tmp_path / "t.tar"))


def test_a_broken_header_in_the_middle_is_an_error_not_the_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "w.tar", 0, 3)
    with tarfile.open(path) as f:
        middle = f.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[middle + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        open_data(str(path))


def test_bits_flipped_after_the_scan_are_detected_on_reading(tmp_path: Path) -> None:
    path = shard(tmp_path / "w.tar", 0, 3)
    data = open_data(str(path))
    with tarfile.open(path) as f:
        places = {m.name: m.offset_data for m in f.getmembers()}
    raw = bytearray(path.read_bytes())
    raw[places["000000001.jpg"] + 300] ^= 1
    path.write_bytes(raw)
    assert data.read(0, "image") == picture(0, "JPEG")
    with pytest.raises(DataError, match=r"w\.tar: image of row '000000001' is damaged"):
        data.read(1, "image")
    path.write_bytes(raw[:2000])
    with pytest.raises(DataError, match="row '000000002'"):
        data.read(2, "image")


def test_damage_to_packed_shards_is_found_on_opening(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(catalog(tmp_path / "src"), out, shard_size="8KB")
    index = json.loads((out / "index.json").read_text())
    assert len(index["shards"]) > 2
    first = out / "shard-000000.tar"
    good = first.read_bytes()
    rng = random.Random(0)
    for _ in range(10):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        first.write_bytes(bad)
        with pytest.raises(DataError, match=r"shard-000000\.tar"):
            open_data(str(out))
    first.write_bytes(good[:-512])
    with pytest.raises(DataError, match=r"shard-000000\.tar: .*index.json says"):
        open_data(str(out))
    with pytest.raises(DataError, match=r"shard-000000\.tar: .*index.json says"):
        open_data(str(first))
    first.unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar: missing"):
        open_data(str(out))
    first.write_bytes(good)
    shard(out / "zz.tar", 0, 1)
    with pytest.raises(DataError, match=r"zz\.tar: not in index.json"):
        open_data(str(out))
    (out / "zz.tar").unlink()
    (out / "index.json").unlink()
    with pytest.raises(DataError, match="has not finished here; run the same command again"):
        open_data(str(out))


def test_random_damage_never_raises_anything_but_data_errors(tmp_path: Path) -> None:
    good = shard(tmp_path / "g.tar", 0, 3).read_bytes()
    rng = random.Random(1)
    opened = 0
    for k in range(60):
        bad = bytearray(good[: rng.randrange(len(good))] if k % 3 == 0 else good)
        for _ in range(rng.choice([1, 5, 200])):
            if bad:
                bad[rng.randrange(len(bad))] = rng.randrange(256)
        (tmp_path / "b.tar").write_bytes(bad)
        try:
            data = open_data(str(tmp_path / "b.tar"))
            for i in range(len(data)):
                data.row(i)
            opened += 1
        except DataError as e:
            assert "b.tar" in str(e)
    assert 0 < opened < 60


def test_unusable_values_of_foreign_shards_are_absent_and_noted(tmp_path: Path) -> None:
    members = [
        ("1.jpg", picture(1)),
        ("1.txt", b"  "),
        ("2.jpg", b""),
        ("2.txt", b"ok"),
        ("3.jpg", picture(3)),
        ("3.json", b"{bad"),
    ]
    data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.present["text"].tolist() == [False, True, False] and data.present["image"].tolist() == [True, False, True]
    assert sorted(data.notes) == [
        "x: 1 .json members that are not JSON",
        "x: 1 image values left out: empty",
        "x: 1 text values left out: empty text",
    ]


def test_reopening_reads_the_table_not_the_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "s.tar", 0, 3)
    first = open_data(str(path))
    monkeypatch.setattr("mmtune.data.shards.tar_index.scan", lambda p: pytest.fail("scanned again"))
    again = open_data(str(path))
    assert again.ids == first.ids and again.row(2) == first.row(2)
    for torn in (shard_cache.root() / "tables").iterdir():
        torn.write_bytes(b"torn")
    monkeypatch.undo()
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    assert open_data(str(path)).ids == first.ids


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "file"))
    assert len(open_data(str(shard(tmp_path / "s.tar", 0, 3)))) == 3


def test_reading_in_threads_and_after_pickling_and_forking(tmp_path: Path) -> None:
    for k in range(4):
        shard(tmp_path / f"{k}.tar", 100 * k, 20)
    data = open_data(str(tmp_path))
    want = [data.read(i, "image") for i in range(80)]
    copy: Data = pickle.loads(pickle.dumps(data))  # as data workers of any framework do
    order = list(range(80)) * 20
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy.read(i, "image"), order)) == [want[i] for i in order]
    if (child := os.fork()) == 0:
        os._exit(0 if [data.read(i, "image") for i in range(80)] == want else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.data.shards.dataset.MAX_OPEN", 2)
    for k in range(5):
        shard(tmp_path / f"{k}.tar", 10 * k, 2)
    data = open_data(str(tmp_path))
    files = len(os.listdir("/proc/self/fd"))
    assert [data.read(i, "text") for i in range(10)] == [b"caption %d" % (10 * (i // 2) + i % 2) for i in range(10)]
    assert len(os.listdir("/proc/self/fd")) <= files + 2


@pytest.mark.slow
def test_ten_thousand_rows_open_in_a_second(tmp_path: Path) -> None:
    import time

    for k in range(4):
        members = [(f"{i:07d}.{e}", b"%d" % i) for i in range(2500 * k, 2500 * (k + 1)) for e in ("txt", "jpg")]
        tar(tmp_path / f"{k}.tar", members)
    open_data(str(tmp_path))
    started = time.monotonic()
    data = open_data(str(tmp_path))
    assert len(data) == 10_000 and time.monotonic() - started < 1


def test_files_are_closed_at_the_interpreters_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When modules may have lost their names already."""
    data = open_data(str(shard(tmp_path / "s.tar", 0, 3)))
    data.read(0, "image")
    (fd,) = data.reader.open.values()
    monkeypatch.setattr("mmtune.data.shards.dataset.os", None)
    data.reader.__del__()
    data.reader.open.clear()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_archives_written_one_after_the_other_are_all_read(tmp_path: Path) -> None:
    """`cat a.tar b.tar`: a reader that stops at the first end mark loses the second one's rows in silence."""
    parts = [tar(tmp_path / f"{k}.tar", [(f"{k}-{i}.png", picture(10 * k + i)) for i in range(3)]) for k in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(p.read_bytes() for p in parts))
    data = open_data(str(tmp_path / "all.tar"))
    assert data.ids == [f"{k}-{i}" for k in range(3) for i in range(3)]
    assert [data.read(i, "image") for i in range(9)] == [picture(10 * k + i) for k in range(3) for i in range(3)]
    (tmp_path / "bad.tar").write_bytes(parts[0].read_bytes() + b"no archive" * 200)
    with pytest.raises(DataError, match=r"bad\.tar: .*damaged|bad\.tar: .*where the end mark should be"):
        open_data(str(tmp_path / "bad.tar"))
    (tmp_path / "twice.tar").write_bytes(parts[0].read_bytes() * 2)
    with pytest.raises(DataError, match="contains the member .* twice"):
        open_data(str(tmp_path / "twice.tar"))


def test_links_are_the_member_that_they_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as f:
        first = tarfile.TarInfo("a/0.png")
        first.size = len(picture(0))
        f.addfile(first, io.BytesIO(picture(0)))
        for name, kind, target in (
            ("a/1.png", tarfile.LNKTYPE, "a/0.png"),
            ("a/2.png", tarfile.SYMTYPE, "0.png"),
            ("b/3.png", tarfile.SYMTYPE, "../a/2.png"),
            ("b/4.png", tarfile.SYMTYPE, "../gone.png"),
            ("b/5.png", tarfile.SYMTYPE, "5.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            f.addfile(link)
    with pytest.warns(DataWarning, match="links: 2 links to something that is not in the tar, left out"):
        data = open_data(str(tmp_path / "links.tar"))
    assert sorted(data.ids) == ["a/0", "a/1", "a/2", "b/3"]
    assert {data.read(i, "image") for i in range(4)} == {picture(0)} and len(set(data.labels["image"].tolist())) == 1


def test_a_sparse_member_is_left_out_not_read_from_elsewhere(tmp_path: Path) -> None:
    """Its bytes lie in pieces; read in one piece they would be the next member's."""
    hole = tarfile.TarInfo("0.wav")
    hole.size, hole.pax_headers = 512, {"GNU.sparse.map": "0,512", "GNU.sparse.size": "100000", "GNU.sparse.name": "0.wav"}
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as f:
        f.addfile(hole, io.BytesIO(bytes(512)))
        whole = tarfile.TarInfo("1.wav")
        whole.size = len(sound(1))
        f.addfile(whole, io.BytesIO(sound(1)))
    with pytest.warns(DataWarning, match="sparse: 1 sparse members, left out"):
        data = open_data(str(tmp_path / "sparse.tar"))
    assert data.ids == ["1"] and data.read(0, "audio") == sound(1)


def test_members_that_share_a_key_are_counted(tmp_path: Path) -> None:
    """webdataset's rule: a key ends at the first dot, so that left and right, which differ in their suffixes, are one sample."""
    members = [("IMG.left.jpg", picture(0, "JPEG")), ("IMG.right.jpg", picture(1, "JPEG")), ("IMG.right.json", b"{}")]
    path = tar(tmp_path / "dots.tar", members)
    with pytest.warns(DataWarning) as caught:
        data = open_data(str(path))
    assert sorted(str(w.message) for w in caught) == [
        "dots: 1 .json members left out: a key ends at the first dot, and their name has two",
        "dots: 1 members left out: their sample (a key ends at the first dot) has another of that kind",
    ]
    assert data.ids == ["IMG"] and data.read(0, "image") == picture(0, "JPEG")


def test_a_set_packed_with_splits_opens_as_a_whole_from_a_url(tmp_path: Path) -> None:
    import fsspec

    rows = "text,split\n" + "".join(f"boot {i},{'train' if i < 3 else 'val'}\n" for i in range(5))
    (tmp_path / "t.csv").write_text(rows)
    pack(tmp_path / "t.csv", tmp_path / "d", split="split")
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path / "d"), "/packed-with-splits", recursive=True)
    whole = open_data("memory://packed-with-splits")
    assert whole.ids == open_data(str(tmp_path / "d")).ids and len(whole) == 5
    assert len(open_data("memory://packed-with-splits/val")) == 2
