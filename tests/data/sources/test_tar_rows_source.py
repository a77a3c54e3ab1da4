"""Tars as a source of `pack`: bad members are rejected with a reason, ids and groups come from fields of the JSON."""

import json
import random
import tarfile
from pathlib import Path

import pytest

from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, DataWarning
from tests.data.shards.test_dataset import tar
from tests.support.data_helpers import picture, sound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def test_a_tar_with_a_bad_member_is_repaired(tmp_path: Path) -> None:
    members = []
    for i in range(6):
        meta = {"sku": f"s{i // 2}", "nr": 100 + i, "image": "a.jpg"}
        members += [(f"{i}.jpg", b"<html>" if i == 3 else picture(i, "JPEG")), (f"{i}.txt", b"boot %d" % i)]
        members += [(f"{i}.json", json.dumps(meta).encode())]
    members += [("9.xyz", b"?")]
    source = tar(tmp_path / "x.tar", members)
    with pytest.warns(DataWarning, match="x: 1 samples without any known modality"):
        got = pack(source, tmp_path / "out", id="nr", group="sku", max_rejected=0.5)
    assert (got.rows, got.packed, got.rejected) == (6, 5, 1)
    data = open_data(str(tmp_path / "out"))
    assert data.ids == ["100", "101", "102", "104", "105"] and data.groups == ["s0", "s0", "s1", "s2", "s2"]
    assert data.read(3, "image") == picture(4, "JPEG") and data.read(3, "text") == b"boot 4"
    assert data.meta(0) == {"id": "0", "json.image": "a.jpg"}  # its key, which --id replaced
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == "3.jpg" and json.loads(line)["row"] == 4
    with pytest.raises(DataError, match="no column 'skuu' .--group.; did you mean 'sku'"):
        pack(source, tmp_path / "no", group="skuu")


def test_ids_of_several_tars(tmp_path: Path) -> None:
    """Keys that repeat between tars get the tar's name, as they do when the tars are opened; an id that is there twice costs its
    second row, not the pack."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000_stats.json").write_text("{}")
    for k in range(2):
        tar(tmp_path / "shards" / f"s{k}.tar", [("0.wav", sound(k)), ("1.json", b'{"caption": ["a", "b"], "id": "X"}')])
    got = pack(tmp_path / "shards", tmp_path / "out", max_rejected=0.5)
    assert (got.rows, got.packed, got.rejected) == (6, 4, 2) and got.reasons == {"duplicate id": 2}
    data = open_data(str(tmp_path / "out"))
    assert data.ids == ["s0/0", "X", "X#2", "s1/0"] and data.read(2, "text") == b"b"
    assert data.groups[1] == data.groups[2] is not None
    with pytest.raises(DataError, match="'X' is there twice"):
        open_data(str(tmp_path / "shards"))


def test_what_pack_wrote_packs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": ["a", "b"], "price": 2.5, "group": "g"}\n')
    pack(tmp_path / "t.jsonl", tmp_path / "one")
    assert main(["pack", str(tmp_path / "one"), "--out", str(tmp_path / "two")]) == 0
    assert "2 of 2 rows" in capsys.readouterr().out
    one, two = (open_data(str(tmp_path / n)) for n in ("one", "two"))
    assert [one.row(i) for i in range(2)] == [two.row(i) for i in range(2)]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "one" / "shard-000000.tar").read_bytes()[:1000])
    assert main(["pack", str(tmp_path / "cut.tar"), "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def whole_tar(path: Path, count: int = 8) -> bytes:
    rows = [m for i in range(count) for m in ((f"{i}.png", picture(i)), (f"{i}.txt", f"boot {i}".encode()))]
    return tar(path, rows).read_bytes()


def test_what_is_whole_of_a_truncated_tar_is_packed(tmp_path: Path) -> None:
    data = whole_tar(tmp_path / "x.tar")
    members = [m for m in tarfile.open(tmp_path / "x.tar")]
    for cut in (members[9].offset_data + 3, members[10].offset_data + 100, members[10].offset + 40, members[12].offset):
        (tmp_path / "x.tar").write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"truncated.*what is whole: mmtune pack .*x\.tar --out DIR"):
            open_data(str(tmp_path / "x.tar"))
        whole = sum(1 for m in members if m.offset_data + m.size <= cut) // 2
        cut_samples = sum(1 for m in members if m.offset_data < cut < m.offset_data + m.size)
        with pytest.warns(DataWarning, match=rf"x: truncated or damaged at byte \d+.*: {whole} rows"):
            result = pack(tmp_path / "x.tar", tmp_path / f"d{cut}", max_rejected=1)
        assert (result.packed, result.rejected) == (whole, cut_samples)
        saved = open_data(str(tmp_path / f"d{cut}"))
        assert [saved.read(i, "image") for i in range(whole)] == [picture(i) for i in range(whole)]
        assert [saved.read(i, "text") for i in range(whole)] == [f"boot {i}".encode() for i in range(whole)]


def test_rows_after_a_damaged_header_are_found_again(tmp_path: Path) -> None:
    data = bytearray(whole_tar(tmp_path / "x.tar"))
    members = [m for m in tarfile.open(tmp_path / "x.tar")]
    data[members[4].offset : members[4].offset + 512] = bytes(random.Random(0).randrange(256) for _ in range(512))
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.warns(DataWarning, match=rf"damaged at byte {members[4].offset}: "):
        result = pack(tmp_path / "x.tar", tmp_path / "d", max_rejected=1)
    saved = open_data(str(tmp_path / "d"))
    pictures = {saved.ids[i]: saved.read(i, "image") for i in range(len(saved)) if saved.present["image"][i]}
    assert pictures == {str(i): picture(i) for i in range(8) if i != 2}
    assert result.packed == 8  # of row 2 the caption is left


def test_a_tar_of_noise_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(random.Random(1).randbytes(5000))
    with pytest.raises(DataError, match="not a tar file|no sample with a known modality"):
        pack(tmp_path / "x.tar", tmp_path / "d")


def test_ids_and_groups_from_fields_within_the_json(tmp_path: Path) -> None:
    documents = [{"product": {"sku": f"s{i // 2}", "nr": i}, "view": "top"} for i in range(4)]
    rows = [m for i, d in enumerate(documents) for m in ((f"{i}.png", picture(i)), (f"{i}.json", json.dumps(d).encode()))]
    tar(tmp_path / "x.tar", rows)
    pack(tmp_path / "x.tar", tmp_path / "d", id="product.nr", group="product.sku")
    data = open_data(str(tmp_path / "d"))
    assert data.ids == ["0", "1", "2", "3"] and data.groups == ["s0", "s0", "s1", "s1"]
    assert data.meta(3) == {"product": {"sku": "s1", "nr": 3}, "view": "top", "id": "3"}  # the id it had in the tar
    with pytest.raises(DataError, match="no column 'produkt.sku'"):
        pack(tmp_path / "x.tar", tmp_path / "e", group="produkt.sku")
