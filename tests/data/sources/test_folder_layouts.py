"""Folders of media files: metadata tables, captions of a few files, splits, files of one stem, and names in other encodings."""

import json
import os
import unicodedata
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.pack.pack import PackResult, pack
from mmtune.data.shards import open_data
from mmtune.data.shards.dataset import Data
from mmtune.errors import DataWarning
from tests.support.data_helpers import picture, sound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def packed(folder: Path, **options: object) -> tuple[PackResult, Data]:
    out = folder.parent / f"{folder.name}-packed"
    result = pack(folder, out, max_rejected=1.0, overwrite=True, **options)  # type: ignore[arg-type]
    return result, open_data(str(out))


def texts(data: Data) -> dict[str, str | None]:
    has = data.present.get("text")
    return {id: data.read(i, "text").decode() if has is not None and has[i] else None for i, id in enumerate(data.ids)}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_table_names_the_files_and_has_their_captions(kind: str, tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "caption": f"boot {i}", "price": i + 0.5} for i in range(3)]
    folder = fill(tmp_path / "x", {f"train/{i}.png": picture(i) for i in range(3)} | {"test/9.png": picture(9)})
    for split, of_split in (("train", rows), ("test", [{"file_name": "9.png", "caption": "boot 9", "price": 9.5}])):
        if kind == "csv":
            lines = ["file_name,caption,price", *(",".join(map(str, r.values())) for r in of_split)]
            (folder / split / "metadata.csv").write_text("\n".join(lines))
        elif kind == "jsonl":
            (folder / split / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in of_split))
        else:
            pq.write_table(pa.Table.from_pylist(of_split), folder / split / "metadata.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result, data = packed(folder)
    assert result.rows == result.packed == 4
    assert texts(data) == {"test/9.png": "boot 9"} | {f"train/{i}.png": f"boot {i}" for i in range(3)}
    assert data.column("price") == [9.5, 0.5, 1.5, 2.5] and data.column("split") == ["test", *["train"] * 3]
    assert data.groups == [None] * 4
    splits, _ = packed(folder, split="split")
    assert {n: s.packed for n, s in splits.splits.items()} == {"train": 3, "test": 1}


def test_metadata_of_lists_and_of_two_modalities(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"{i}.png": picture(i) for i in range(4)} | {"a/0.wav": sound(0)})
    lines = [
        {"image_file_name": "0.png", "audio_file_name": "a/0.wav", "text": "both"},
        {"file_names": ["1.png", "2.png"], "text": "two views"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "3.xyz", "text": "x"},
        {"text": "no file"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    with pytest.warns(DataWarning, match=r"1 files are not named in metadata\.jsonl.*first: 3\.png"):
        result, data = packed(folder)
    assert (result.rows, result.packed, result.rejected) == (7, 4, 3)
    row = data.row(data.ids.index("0.png"))
    assert row.values == {"image": picture(0), "audio": sound(0), "text": b"both"}
    views = [i for i, t in enumerate(texts(data).values()) if t == "two views"]
    assert len(views) == 2 and len({data.groups[i] for i in views}) == 1
    assert texts(data)["3.png"] is None
    reasons = [json.loads(r)["reason"] for r in Path(result.rejected_file).read_text().split("\n") if r]
    assert [r.split(": ", 1)[1] for r in reasons] == ["missing file", "no modality reads .xyz files"] + [
        "the row names no file (image_file_name, audio_file_name, file_names, file_name empty)"
    ]


def test_a_changed_metadata_table_is_another_source(tmp_path: Path) -> None:
    from mmtune.data.sources.row_source import open_source

    folder = fill(tmp_path / "x", {"0.png": picture(0), "metadata.csv": "file_name,text\n0.png,boot a\n"})
    before = open_source(folder).sha256
    fill(folder, {"metadata.csv": "file_name,text\n0.png,boot b\n"})
    assert open_source(folder).sha256 != before


def test_a_table_without_names_of_files_is_a_rejected_row_that_says_what_to_do(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {"0.png": picture(0), "metadata.csv": "a,b\n1,2\n", "rows.csv": "a\n1\n"})
    result, _ = packed(folder)
    assert (result.packed, result.rejected) == (1, 2)
    assert Path(result.rejected_file).read_text().count("call it metadata.csv and name files in a column file_name") == 2


def test_one_caption_beside_class_folders_does_not_change_the_layout(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": picture(3 * j + i) for j, c in enumerate(["boots", "red_shoes"]) for i in range(3)}
    folder = fill(tmp_path / "x", {**files, "boots/1.txt": "a caption of its own"})
    with pytest.warns(DataWarning, match="1 of 6 media files have a caption file beside them.*the name of their folder"):
        result, data = packed(folder)
    assert result.packed == result.rows == 6
    assert texts(data)["boots/1.png"] == "a caption of its own" and texts(data)["boots/0.png"] == "boots"
    assert texts(data)["red_shoes/2.png"] == "red shoes" and set(data.groups) == {"boots", "red_shoes"}


def test_one_missing_caption_is_said(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"a/{i}.png": picture(i) for i in range(3)} | {f"a/{i}.txt": f"boot {i}" for i in range(2)})
    with pytest.warns(DataWarning, match="2 of 3 media files .* the others get none"):
        _, data = packed(folder)
    assert texts(data) == {"a/0.png": "boot 0", "a/1.png": "boot 1", "a/2.png": None} and set(data.groups) == {None}


def test_folders_called_like_splits_are_no_classes(tmp_path: Path) -> None:
    deep = fill(tmp_path / "x", {f"{s}/{c}/0.png": picture(len(s + c)) for s in ("train", "test") for c in ("boot", "bag")})
    _, data = packed(deep)
    assert sorted(zip(data.column("split"), data.groups, strict=True)) == [
        ("test", "bag"),
        ("test", "boot"),
        ("train", "bag"),
        ("train", "boot"),
    ]
    flat = fill(tmp_path / "y", {f"{s}/0.png": picture(len(s)) for s in ("train", "val")})
    _, data = packed(flat)
    assert data.column("split") == ["train", "val"] and data.groups == [None, None] and "text" not in data.modalities


def test_captions_named_after_the_whole_file_belong_to_that_file(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "x", {"0.jpg": picture(0, "JPEG"), "0.png": picture(1), "0.jpg.txt": "a jpeg", "0.png.txt": "a png"}
    )
    _, data = packed(folder)
    assert texts(data) == {"0.jpg": "a jpeg", "0.png": "a png"}


def test_a_picture_and_a_sound_of_one_name_are_one_row(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "x", {"hum/0.png": picture(0), "hum/0.wav": sound(0), "hum/1.wav": sound(1), "hum/1.flac": sound(2, "FLAC")}
    )
    result, data = packed(folder)
    assert result.rows == result.packed == 3 and sorted(data.ids) == ["hum/0.png", "hum/1.flac", "hum/1.wav"]
    assert data.row(data.ids.index("hum/0.png")).values == {"image": picture(0), "audio": sound(0), "text": b"hum"}


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for number, name in enumerate([b"Stiefel \xfc.png", b"Stiefel \xf6.png", "grün/Stiefel ä.png".encode(), b"gr\xfcn/b.png"]):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(picture(number))
    with open(os.path.join(os.fsencode(folder), b"bad \xfc.png"), "wb") as f:
        f.write(b"no picture")
    result, data = packed(folder)
    assert (result.packed, result.rejected) == (4, 1)
    assert sorted(data.ids) == ["Stiefel ö.png", "Stiefel ü.png", "grün/Stiefel ä.png", "grün/b.png"]
    assert data.read(data.ids.index("Stiefel ü.png"), "image") == picture(0)
    assert json.loads(Path(result.rejected_file).read_text())["file"] == "bad ü.png"


@pytest.mark.parametrize("on_disk", ["NFC", "NFD", "cp1252"])
def test_a_table_finds_files_in_other_spellings(on_disk: str, tmp_path: Path) -> None:
    name = "Stiefel grün.png"
    raw = name.encode("cp1252") if on_disk == "cp1252" else unicodedata.normalize(on_disk, name).encode()
    with open(os.path.join(os.fsencode(tmp_path), raw), "wb") as f:
        f.write(picture(1))
    for form in ("NFC", "NFD"):
        (tmp_path / "t.csv").write_text(f"image,text\n{unicodedata.normalize(form, name)},boot\n")
        result = pack(tmp_path / "t.csv", tmp_path / form)
        assert result.packed == 1 and open_data(str(tmp_path / form)).ids == [name]
        assert pack(tmp_path / "t.csv", tmp_path / form).packed == 1  # checked again: unchanged


def test_an_excluded_modality_is_not_warned_about(tmp_path: Path) -> None:
    fill(tmp_path, {"0.wav": sound(0), "t.csv": "audio,text\n0.wav,boot\n"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = pack(tmp_path / "t.csv", tmp_path / "d", columns={"audio": ""})
    assert result.modalities == ["text"] and open_data(str(tmp_path / "d")).meta(0) == {"audio": "0.wav"}
