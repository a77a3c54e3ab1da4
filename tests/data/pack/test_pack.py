"""`pack`: its shards and counts; every row is accounted for, and the bytes depend on the source alone."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from mmtune import modalities
from mmtune.cli import main
from mmtune.data.pack.pack import SplitCounts, pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_jsonl
from tests.support.data_helpers import Trace, catalog, picture, png_bomb, sound, tree, write_csv


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def mixed(folder: Path) -> Path:
    """A source of three modalities where rows 3, 5, 6, 7, 9, 10 and 11 cannot be packed."""
    files: dict[str, bytes] = {
        "1.png": picture(1),
        "1.wav": sound(1),
        "cmyk.jpg": picture(2, "JPEG", mode="CMYK"),
        "big.png": picture(3, size=90),
    }
    files |= {
        "long.wav": sound(4, seconds=3),
        "bad.png": picture(5)[:200],
        "empty.png": b"",
        "alpha.png": picture(6, mode="RGBA"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dir.png").mkdir(exist_ok=True)
    table = [
        ("1.png", "1.wav", "all three", "a", "g1"),
        ("cmyk.jpg", "", "no sound", "b", "g1"),
        ("big.png", "", "too many pixels", "c", ""),
        ("", "", "words only", "d", "g2"),
        ("1.png", "long.wav", "too many seconds", "e", "g2"),
        ("bad.png", "1.wav", "broken", "f", ""),
        ("empty.png", "", "", "g", ""),
        ("alpha.png", "1.wav", "", "h", ""),
        ("gone.png", "1.wav", "missing", "i", ""),
        ("1.png", "", "an id again", "a", ""),
        ("", "", "", "k", ""),
        ("bad.png", "", "rejected, so its id is free", "l", ""),
        ("1.png", "", "takes it", "l", ""),
        ("dir.png", "", "a folder", "m", ""),
    ]
    return write_csv(folder / "rows.csv", [dict(zip("image audio text id group".split(), r, strict=True)) for r in table])


def test_every_row_is_packed_or_listed_with_its_reason(tmp_path: Path) -> None:
    source, out = mixed(tmp_path / "src"), tmp_path / "out"
    got = pack(source, out, max_rejected=0.9, options={"max_pixels": 5000, "max_seconds": 2.0})
    assert (got.rows, got.packed, got.rejected, got.shards) == (14, 5, 9, 1) and got.modalities == [
        "image",
        "audio",
        "text",
    ]
    rejected = read_jsonl(out / "rejected.jsonl")
    assert [r["row"] for r in rejected] == [3, 5, 6, 7, 9, 10, 11, 12, 14] and all(
        set(r) == {"row", "file", "reason"} for r in rejected
    )
    by_row = {r["row"]: (r["file"], r["reason"]) for r in rejected}
    assert by_row[3] == ("big.png", "image: too large: 90 x 90 pixels, limit 5000 (--max-pixels)")
    assert by_row[5] == ("long.wav", "audio: too long: 3 s, limit 2 (--max-seconds)")
    assert by_row[6][0] == "bad.png" and by_row[6][1].startswith("image: not a readable picture")
    assert by_row[7] == ("empty.png", "image: empty file") and by_row[9] == ("gone.png", "image: missing file")
    assert by_row[10] == ("1.png", "duplicate id 'a' (row 1 has it)") and by_row[11] == (
        None,
        "no value: image and audio and text empty",
    )
    assert by_row[14] == ("dir.png", "image: not a file but a folder")
    assert got.reasons["image: not a readable picture"] == 2 and sum(got.reasons.values()) == 9

    data = open_data(str(out))
    assert data.ids == ["a", "b", "d", "h", "l"] and data.groups == ["g1", "g1", "g2", None, None]
    assert data.labels["group"][0] == data.labels["group"][1] != 0 == data.labels["group"][3]
    assert {n: data.present[n].tolist() for n in data.modalities} == {
        "image": [True, True, False, True, True],
        "audio": [True, False, False, True, False],
        "text": [True, True, True, False, True],
    }
    assert data.read(1, "image") == (tmp_path / "src/cmyk.jpg").read_bytes()  # the original, not a copy of its pixels
    assert data.labels["image"][0] == data.labels["image"][4] and data.labels["audio"][0] == data.labels["audio"][3]

    index = json.loads((out / "index.json").read_text())
    assert (index["kind"], index["schema"], index["rows"], index["packed"], index["rejected"]) == ("mmtune-shards", 1, 14, 5, 9)
    assert index["present"] == {"audio": 2, "image": 4, "text": 4} and index["options"]["image"] == {"max_pixels": 5000}
    (shard,) = index["shards"]
    assert shard["rows"] == 5 and shard["bytes"] == os.path.getsize(out / shard["name"])


def test_too_many_rejected_fails_after_everything_is_written(tmp_path: Path) -> None:
    source, out = mixed(tmp_path / "src"), tmp_path / "out"
    for _ in range(2):  # a second run has nothing to do, and must not turn the failure into a success
        with pytest.raises(
            DataError,
            match=r"8 of 14 rows rejected, more than --max-rejected 0.05 \(2 x image: not a readable picture; .*rejected.jsonl",
        ):
            pack(source, out, options={"max_pixels": 5000})
        assert len(open_data(str(out))) == 6 and len(read_jsonl(out / "rejected.jsonl")) == 8
    assert pack(source, out, options={"max_pixels": 5000}, max_rejected=0.6).rejected == 8
    write_csv(tmp_path / "none.csv", [{"image": "gone.png"}])
    with pytest.raises(DataError, match="1 of 1 rows rejected"):
        pack(tmp_path / "none.csv", tmp_path / "none", max_rejected=0.99)
    assert pack(tmp_path / "none.csv", tmp_path / "none", max_rejected=1.0).packed == 0
    with pytest.raises(DataError, match="none: nothing was packed here"):
        open_data(str(tmp_path / "none"))
    (tmp_path / "zero.csv").write_text("image,text\n")
    with pytest.raises(DataError, match="zero.csv: no rows"):
        pack(tmp_path / "zero.csv", tmp_path / "zero")
    assert not (tmp_path / "zero").exists()


def test_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    pack(catalog(tmp_path / "src"), tmp_path / "out", group="sku", shard_size="8KB")
    shards = sorted(str(p) for p in (tmp_path / "out").glob("*.tar"))
    assert len(shards) > 3 and all(os.path.getsize(s) <= 20_480 for s in shards)
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    assert len(samples) == 12 and all("." not in s["__key__"] for s in samples) and len({s["__key__"] for s in samples}) == 12
    assert samples[4]["txt"] == "thing 4" and samples[4]["png"].size == (24, 24)
    assert samples[4]["json"] == {"id": "img/0004.png", "group": "sku-1", "meta": {"colour": "red"}}
    with tarfile.open(shards[0]) as f:
        assert {(m.mtime, m.mode, m.uid, m.gid, m.uname) for m in f.getmembers()} == {(0, 0o644, 0, 0, "")}
    data = open_data(str(tmp_path / "out"))
    assert (
        data.column("colour") == ["red", "blue"] * 6
        and data.column("sku") == data.groups
        and data.meta(1) == {"colour": "blue"}
    )


def test_shards_are_as_full_as_the_size_limit_allows(tmp_path: Path) -> None:
    pack(catalog(tmp_path / "src", 40), tmp_path / "out", shard_size="20KB")
    index = json.loads((tmp_path / "out/index.json").read_text())
    sizes = [sum(m.size + 512 + -m.size % 512 for m in tarfile.open(p)) for p in sorted((tmp_path / "out").glob("*.tar"))]
    row = max(sizes) // max(s["rows"] for s in index["shards"])
    assert all(20_000 - 2 * row < s <= 20_000 for s in sizes[:-1])
    pack(catalog(tmp_path / "src", 40), tmp_path / "one", shard_size="1B")
    assert [s["rows"] for s in json.loads((tmp_path / "one/index.json").read_text())["shards"]] == [1] * 40
    for bad in ("0", "big", "-1MB", "3 XB"):
        with pytest.raises(DataError, match="--shard-size: .* is not a size"):
            pack(tmp_path / "src" / "rows.csv", tmp_path / "bad", shard_size=bad)


def test_bytes_depend_on_the_source_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": "8KB", "max_rejected": 0.9}
    pack(mixed(tmp_path / "src"), tmp_path / "zero", workers=0, **options)
    pack(mixed(tmp_path / "src"), tmp_path / "three", workers=3, **options)
    shutil.copytree(tmp_path / "src", tmp_path / "elsewhere", copy_function=shutil.copy)  # other times
    os.utime(tmp_path / "elsewhere" / "1.png", (1, 1))
    pack(tmp_path / "elsewhere" / "rows.csv", tmp_path / "four", workers=2, **options)
    assert tree(tmp_path / "zero") == tree(tmp_path / "three") == tree(tmp_path / "four")
    assert len(list((tmp_path / "zero").glob("*.tar"))) > 1


def test_order_is_kept_however_long_a_row_takes(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    table = []
    for i in range(120):
        (tmp_path / "src" / f"{i}.png").write_bytes(picture(i, size=8) if i % 40 else png_bomb(3000 + i, 3000, True))
        table.append({"image": f"{i}.png"})
    pack(write_csv(tmp_path / "src" / "rows.csv", table), tmp_path / "out", workers=3)
    assert open_data(str(tmp_path / "out")).ids == [f"{i}.png" for i in range(120)]


def test_splits_become_folders(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture(i) if i != 3 else b"")
    where = ["train", "val", "train", "val", "", "train", "../up", "val"]
    source = write_csv(tmp_path / "rows.csv", [{"image": f"{i}.png", "part": w, "id": i % 7} for i, w in enumerate(where)])
    source.write_text(source.read_text() + "ragged\n")
    out = tmp_path / "out"
    got = pack(source, out, split="part", max_rejected=0.9)
    assert (got.rows, got.packed, got.rejected) == (9, 4, 5) and list(got.splits) == ["train", "val"]
    assert got.splits["val"] == SplitCounts(str(out / "val"), rows=3, packed=1, rejected=2, shards=1)
    assert open_data(str(out / "train")).ids == ["0", "2", "5"] and open_data(str(out / "val")).ids == ["1"]
    assert open_data(str(out / "val")).column("part") == ["val"]
    reasons = {r["row"]: r["reason"] for r in read_jsonl(out / "rejected.jsonl")}
    assert (
        reasons[4] == "image: empty file" and reasons[5] == "part: empty" and reasons[7] == "part: '../up' cannot be a folder"
    )
    assert reasons[8] == "duplicate id '0' (row 1 has it)" and "wrong number of cells" in reasons[9]
    assert open_data(str(out)).ids == ["0", "2", "5", "1"]  # opened as a whole
    assert pack(source, out, split="part", max_rejected=0.9) == got


def test_limits_of_bytes_and_odd_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1, size=64))
    os.mkfifo(tmp_path / "pipe.png")
    cells = [
        "a.png",
        "pipe.png",
        "nul\0.png",
        "x" * 5000 + ".png",
        str(tmp_path / "a.png"),
        "memory://no/such.png",
        "/dev/zero",
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"image": c}) + "\n" for c in cells))
    got = pack(tmp_path / "rows.jsonl", tmp_path / "out", max_rejected=1.0, timeout=20)
    assert got.packed == 2 and open_data(str(tmp_path / "out")).ids == ["a.png", str(tmp_path / "a.png")]
    reasons = [r["reason"] for r in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert reasons[0] == "image: not a file" == reasons[4] and "not a path" in reasons[1] and "too long" in reasons[2]
    assert reasons[3] == "image: missing file"
    with pytest.raises(DataError, match=r"2 x image: too large"):
        pack(tmp_path / "rows.jsonl", tmp_path / "small", max_bytes="1KB")


def test_a_file_url_and_parquet_bytes_are_stored_as_they_are(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.png").write_bytes(picture(1))
    image = [{"bytes": picture(2, "JPEG"), "path": "b.jpg"}, {"bytes": None, "path": f"file://{tmp_path}/a.png"}]
    image += [{"bytes": b"no picture", "path": "c.jpg"}]
    pq.write_table(pa.table({"image": image, "audio": [sound(1, "FLAC"), None, None]}), tmp_path / "t.parquet")
    pack(tmp_path / "t.parquet", tmp_path / "out", max_rejected=0.5, workers=2)
    data = open_data(str(tmp_path / "out"))
    assert (
        data.read(0, "image") == picture(2, "JPEG")
        and data.read(1, "image") == picture(1)
        and data.read(0, "audio") == sound(1, "FLAC")
    )
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as f:
        assert f.getnames() == ["00000001.jpg", "00000001.json", "00000001.wav", "00000002.json", "00000002.png"]


def test_folders_pack(tmp_path: Path) -> None:
    for i, name in enumerate(("red_apple/1.png", "red_apple/2.png", "pear/3.png")):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(picture(i))
    assert pack(tmp_path / "f", tmp_path / "out").packed == 3
    data = open_data(str(tmp_path / "out"))
    assert data.ids == ["pear/3.png", "red_apple/1.png", "red_apple/2.png"] and data.groups == [
        "pear",
        "red_apple",
        "red_apple",
    ]
    assert data.read(2, "text") == b"red apple" and data.meta(0) == {}


def test_a_folder_of_one_modality_says_what_training_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes(picture(0))
    assert main(["pack", str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "Only image: enough to embed, index and predict. To train across modalities, pack a table" in capsys.readouterr().out


def test_an_out_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    source, out = catalog(tmp_path / "src"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="contains other files .thesis.doc."):
            pack(source, out, overwrite=overwrite)
    with pytest.raises(DataError, match="is inside the source"):
        pack(source.parent, source.parent / "shards")
    with pytest.raises(DataError, match="a file; --out must be"):
        pack(source, out / "thesis.doc")
    assert tree(out) == {"thesis.doc": b"years of work"}


def test_another_job_in_the_same_place_is_refused_and_overwrite_is_not(tmp_path: Path) -> None:
    source, out = catalog(tmp_path / "src"), tmp_path / "out"
    first = pack(source, out, group="sku")
    before = tree(out)
    assert pack(source, out, group="sku", workers=2, max_rejected=0.5) == first and tree(out) == before  # nothing to do
    with pytest.raises(DataError, match="begun with another columns .*--overwrite"):
        pack(source, out)
    with pytest.raises(DataError, match=r"another shard size \(256000000, now 8000\)"):
        pack(source, out, group="sku", shard_size="8KB")
    with pytest.raises(DataError, match="another options"):
        pack(source, out, group="sku", options={"max_pixels": 7})
    assert tree(out) == before
    source.write_text(source.read_text() + "img/0000.png,again,sku-9,green\n")
    with pytest.raises(DataError, match="another source"):
        pack(source, out, group="sku")
    (out / "notes.txt").write_text("mine")
    assert pack(source, out, group="sku", overwrite=True).packed == 13 and len(open_data(str(out))) == 13
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(DataError, match="max_bananas: no option of image, text; they have max_pixels, max_chars"):
        pack(source, tmp_path / "o", options={"max_bananas": 3})


def test_files_replaced_since_the_pack_are_detected(tmp_path: Path) -> None:
    source, out = catalog(tmp_path / "src"), tmp_path / "out"
    (tmp_path / "src/img/0011.png").unlink()
    pack(source, out, max_rejected=0.5, shard_size="8KB")
    (tmp_path / "src/img/0011.png").write_bytes(picture(11))
    with pytest.raises(DataError, match="files of rows up to 12 have changed.*--overwrite"):
        pack(source, out, max_rejected=0.5, shard_size="8KB")
    assert pack(source, out, max_rejected=0.5, shard_size="8KB", overwrite=True).packed == 12
    (tmp_path / "src/img/0001.png").write_bytes(picture(99))
    with pytest.raises(DataError, match="have changed"):
        pack(source, out, max_rejected=0.5, shard_size="8KB")


def test_a_deleted_shard_is_packed_again(tmp_path: Path) -> None:
    source, out = catalog(tmp_path / "src", 30), tmp_path / "out"
    pack(source, out, shard_size="8KB")
    before = tree(out, hidden=True)
    (out / "shard-000003.tar").unlink()
    (out / "shard-000004.tar").write_bytes(b"short")
    pack(source, out, shard_size="8KB")
    assert tree(out, hidden=True) == before


def test_a_fourth_modality_is_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modalities, "TABLE", dict(modalities.TABLE))
    modalities.register("trace", f"{Trace.__module__}:Trace")
    for i in range(4):
        (tmp_path / f"{i}.f32").write_bytes(bytes(4 * (i + 1)) if i != 2 else b"odd")
    source = write_csv(tmp_path / "rows.csv", [{"vibration": f"{i}.f32", "text": f"run {i}"} for i in range(4)])
    assert (
        main(["pack", str(source), "--out", str(tmp_path / "out"), "--max-samples", "3", "--max-rejected", "0.5", "--json"])
        == 0
    )
    got = json.loads(capsys.readouterr().out)
    assert got["modalities"] == ["text", "trace"] and got["rejected"] == 2
    assert got["reasons"] == {"trace: not a whole number of floats": 1, "trace: too long": 1}
    data = open_data(str(tmp_path / "out"))
    assert data.modalities == ["text", "trace"] and data.read(1, "trace") == bytes(8) and data.ids == ["0.f32", "1.f32"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = catalog(tmp_path / "src"), tmp_path / "out"
    argv = ["pack", str(source), "--out", str(out), "--group", "sku", "--text", "colour", "--workers", "1"]
    assert main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert {k: got[k] for k in ("out", "rows", "packed", "rejected", "shards", "modalities", "splits")} == {
        "out": str(out),
        "rows": 12,
        "packed": 12,
        "rejected": 0,
        "shards": 1,
        "modalities": ["image", "text"],
        "splits": {},
    }
    assert open_data(str(out)).read(0, "text") == b"red" and open_data(str(out)).column("text")[0] == "thing 0"
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "12 of 12 rows in 1 shard:" in text and "Only" not in text
    assert main([*argv, "--image", "imgae"]) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.count("\n") == 1
        and "no column 'imgae' (--image); did you mean 'image'?" in captured.err
    )
    (tmp_path / "src/img/0003.png").write_bytes(b"")
    assert main([*argv, "--overwrite"]) == 2 and "1 of 12 rows rejected" in capsys.readouterr().err
    assert len(open_data(str(out))) == 11


def test_two_packs_reject_with_the_same_bytes(tmp_path: Path) -> None:
    """A reason holds no address of an object, which would be another one in each process."""
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    source = write_csv(tmp_path / "rows.csv", [{"image": "page.jpg", "text": "a"}])
    for out in ("a", "b"):
        pack(source, tmp_path / out, max_rejected=1.0)
    rejected = (tmp_path / "a" / "rejected.jsonl").read_bytes()
    assert (
        rejected == (tmp_path / "b" / "rejected.jsonl").read_bytes() and b"not a readable" in rejected and b"0x" not in rejected
    )


def test_the_result_counts_the_rows_of_lists(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": ["a", "b", "c"]}\n{"text": "d"}\n')
    got = pack(tmp_path / "t.jsonl", tmp_path / "out")
    assert (got.packed, got.list_rows) == (4, 2) and got["packed"] == 4
    assert pack(tmp_path / "t.jsonl", tmp_path / "out") == got


def test_lists_pair_up_and_never_cross(tmp_path: Path) -> None:
    """One caption with several pictures, lists of equal length, and lists that do not fit; a list of numbers is no list of paths."""
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "page.png").write_bytes(b"<html>")
    rows = [
        {"id": 10.0, "image": ["0.png", "1.png", "2.png"], "text": "boot"},
        {"id": "B", "image": ["3.png", "page.png", None], "text": ["three", "four", "five"], "sku": "s1"},
        {"id": "C", "image": ["0.png", "1.png"], "text": ["a", "b", "c"]},
        {"id": "D", "image": [0.5, 0.25], "text": "numbers"},
        {"id": "E", "image": ["5.png"], "text": ["x", "y"]},
        {"id": "F", "image": "5.png", "text": []},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    got = pack(tmp_path / "t.jsonl", tmp_path / "out", group="sku", max_rejected=1.0, shard_size="5KB")
    assert (got.rows, got.packed, got.rejected, got.list_rows) == (11, 8, 3, 5)
    data = open_data(str(tmp_path / "out"))
    assert data.ids == ["10", "10#2", "10#3", "B", "B#3", "E", "E#2", "F"]
    assert [data.read(i, "image") for i in range(4)] == [picture(i) for i in range(4)]
    assert data.groups[3:5] == ["s1", "s1"] and data.groups[7] is None
    assert len(set(data.groups[:3])) == len(set(data.groups[5:7])) == 1 and len(set(data.groups)) == 4
    assert [data.read(i, "text") for i in (3, 4, 5, 6)] == [b"three", b"five", b"x", b"y"] and not data.present["image"][4]
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(r["row"], r.get("item")) for r in lines] == [(2, 2), (3, None), (4, None)]
    assert lines[0]["reason"].startswith("image: not a readable picture")
    assert lines[2]["reason"] == "image: neither paths nor bytes but a list of float"
    assert (
        lines[1]["reason"] == "lists of different lengths (2 image, 3 text); give lists of equal length, or one value"
        and lines[0]["file"] == "page.png"
    )
    assert pack(tmp_path / "t.jsonl", tmp_path / "out", group="sku", max_rejected=1.0, shard_size="5KB") == got


def test_captions_in_windows_1252_are_packed_and_counted(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"src{i}.png").write_bytes(picture(i))
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / f"src{i}.png").rename(tmp_path / "src" / f"{i}.png")
        (tmp_path / "src" / f"{i}.txt").write_bytes(f"für {i} €".encode("cp1252" if i else "utf-8"))
    with pytest.warns(DataWarning, match="2 text values not in UTF-8, read as Windows-1252"):
        pack(tmp_path / "src", tmp_path / "out")
    data = open_data(str(tmp_path / "out"))
    assert sorted(data.read(i, "text").decode() for i in range(3)) == [f"für {i} €" for i in range(3)]


def test_ids_and_groups_of_pandas_and_of_two_unicode_spellings(tmp_path: Path) -> None:
    """A column of integers with gaps is written as 10.0; NFC and NFD of one name are one group."""
    (tmp_path / "t.csv").write_text("id,text,sku\n10.0,a,Gr\u00f6\u00dfe\n11.0,b,Gro\u0308\u00dfe\n,c,7.0\nv1.0,d,1.05\n")
    pack(tmp_path / "t.csv", tmp_path / "out", group="sku")
    data = open_data(str(tmp_path / "out"))
    assert data.ids == ["10", "11", "00000003", "v1.0"] and data.groups == ["Gr\u00f6\u00dfe", "Gr\u00f6\u00dfe", "7", "1.05"]


def test_a_group_among_the_modalities_is_told_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,sku\na,1\nb,2\n")
    with pytest.raises(DataError, match="columns: 'group' is no modality; write group='sku' beside columns"):
        pack(tmp_path / "a.csv", tmp_path / "out", columns={"text": "text", "group": "sku"})
