"""Rows of tars as other programs write them: lists, dots in names, captions in other encodings, NaN, PAX and GNU names."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import PIL.Image
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataWarning
from tests.data.shards.test_dataset import tar
from tests.support.data_helpers import picture, sound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def document(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_every_caption_of_a_list_is_a_row_of_one_group(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("a.json", document(caption=["one", "", "three"], sku=7)), ("b.png", picture(2))]
    members += [("b.json", document(caption=["four"])), ("c.png", picture(3)), ("c.json", document(caption=[]))]
    data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.ids == ["a", "a#2", "b", "c"]
    assert [data.read(i, "text") for i in range(3)] == [b"one", b"three", b"four"]
    assert [data.read(i, "image") for i in range(4)] == [picture(1), picture(1), picture(2), picture(3)]
    assert data.groups[0] == data.groups[1] and data.groups[0].startswith("a~") and data.groups[2:] == [None, None]
    assert data.labels["group"][0] == data.labels["group"][1] != 0 and data.meta(1) == {"sku": 7}
    assert len(set(data.labels["id"].tolist())) == 4
    other = open_data(str(tar(tmp_path / "y.tar", [("a.png", picture(9)), ("a.json", document(caption=["x", "y"]))])))
    assert other.groups[0] != data.groups[0]  # another dataset's first row is not this one's


def test_keys_end_at_the_last_dot_where_all_have_the_same_suffixes(tmp_path: Path) -> None:
    members = []
    for sku in range(2):
        for view in range(3):
            key = f"p/s{sku}.v{view}"
            members += [(f"{key}.PNG", picture(10 * sku + view)), (f"{key}.txt", f"{sku} {view}".encode())]
            members += [(f"{key}.json", document(view=view))]
    data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.ids == [f"p/s{sku}.v{view}" for sku in range(2) for view in range(3)] and data.notes == []
    assert data.column("view") == [0, 1, 2] * 2 and data.read(4, "image") == picture(11) and data.read(4, "text") == b"1 1"
    # nothing is gained by the longer key: webdataset's stays
    data = open_data(str(tar(tmp_path / "y.tar", [("a.left.png", picture(1)), ("b.left.png", picture(2))])))
    assert data.ids == ["a", "b"]
    # the .json would be left out
    lone = [("a.left.png", picture(1)), ("a.left.json", document(view=1))]
    assert open_data(str(tar(tmp_path / "z.tar", lone))).column("view") == [1]


def test_captions_in_windows_1252_and_utf_16_are_read_and_counted(tmp_path: Path) -> None:
    members = [(f"{i}.txt", f"Stiefel für {i} €".encode("cp1252")) for i in range(3)]
    members += [("3.txt", "Größe".encode("utf-16")), ("4.txt", "Maß".encode()), ("5.txt", b"\x89PNG\x00\x01\xff")]
    with pytest.warns(DataWarning) as caught:
        data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert [data.read(i, "text").decode() for i in range(5)] == [*(f"Stiefel für {i} €" for i in range(3)), "Größe", "Maß"]
    said = [str(w.message) for w in caught]
    assert "x: 3 text values not in UTF-8, read as Windows-1252" in said
    assert "x: 1 text values not in UTF-8, read as UTF-16" in said
    assert any(s.startswith("x: 1 text values left out: not UTF-8 text") for s in said) and len(said) == 4


def test_suffixes_of_cameras_and_phones(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    PIL.Image.open(io.BytesIO(picture(1))).save(encoded, "AVIF")
    members = [("1.jfif", picture(1, "JPEG")), ("2.avif", encoded.getvalue()), ("3.m4a", sound(1))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.present["image"].tolist() == [True, True, False] and data.present["audio"].tolist() == [False, False, True]


def test_nan_in_json_is_null(tmp_path: Path) -> None:
    text = '{"caption": "a", "price": NaN, "low": [-Infinity, 1e999, 2.5], "id": 7.0, "group": "10.0"}'
    data = open_data(str(tar(tmp_path / "x.tar", [("1.json", text.encode())])))
    assert data.meta(0) == {"price": None, "low": [None, None, 2.5]} and data.notes == []
    assert data.ids == ["7"] and data.groups == ["10"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pax_and_gnu_names(format: int, tmp_path: Path) -> None:
    long = "produkt-" * 30 + "größe"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as f:
        for name, data in ((f"{long}/{'n' * 120}.png", picture(1)), (f"{long}/{'n' * 120}.txt", b"boot")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))
    data = open_data(str(tmp_path / "x.tar"))
    assert data.ids == [f"{long}/{'n' * 120}"] and data.read(0, "text") == b"boot"


def test_names_in_windows_1252_are_told_apart(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="cp1252") as f:
        for name in ("für.txt", "fär.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            f.addfile(info, io.BytesIO(b"boot"))
    assert open_data(str(tmp_path / "x.tar")).ids == ["für", "fär"]


def test_composed_and_decomposed_unicode_are_one(tmp_path: Path) -> None:
    composed, decomposed = "Stiefel Gr\u00f6\u00dfe", "Stiefel Gro\u0308\u00dfe"
    members = [(f"{i}.json", document(caption=c, group=c)) for i, c in enumerate((composed, decomposed))]
    data = open_data(str(tar(tmp_path / "x.tar", members)))
    assert data.groups == [composed] * 2 and len(set(data.labels["group"].tolist())) == 1
    assert len(set(data.labels["text"].tolist())) == 1 and data.read(1, "text").decode() == decomposed
