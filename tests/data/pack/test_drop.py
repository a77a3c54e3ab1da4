"""`pack --drop`: rows that are left out, and counted."""

import json
from pathlib import Path

import pytest

from mmtune.cli.dispatch import dispatch
from mmtune.data.pack.pack import pack
from mmtune.data.shards import open_data
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_json
from tests.support.data_helpers import write_csv


def table(folder: Path) -> Path:
    rows = [{"text": f"boot {i}", "id": f"b{i}", "fold": "train" if i % 2 else "val"} for i in range(10)]
    return write_csv(folder / "t.csv", [*rows, {"text": "", "id": "b10", "fold": "val"}])


def test_every_row_is_packed_rejected_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"code": "duplicate-text", "ids": ["b1", "b2", "b3"], "drop": ["b2", "b3"]},
        {"code": "cut-text", "ids": ["b7"], "drop": []},
        {"ids": ["b4"]},
        {"id": "b5"},
    ]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(d) + "\n" for d in lines) + "\nb6\n")
    arguments = [str(table(tmp_path)), "--out", str(tmp_path / "d"), "--drop", str(tmp_path / "f.jsonl"), "--max-rejected", "1"]
    for _ in range(2):  # finished: the same again
        assert dispatch("pack", [*arguments, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["rows"], result["packed"], result["rejected"], result["dropped"]) == (11, 5, 1, 5)
    assert open_data(str(tmp_path / "d")).ids == ["b0", "b1", "b7", "b8", "b9"]
    index = read_json(tmp_path / "d" / "index.json")
    assert (index["rows"], index["packed"], index["rejected"], index["dropped"]) == (11, 5, 1, 5)
    assert dispatch("pack", arguments) == 0 and "5 rows left out" in capsys.readouterr().out
    with pytest.raises(DataError, match="begun with another dropped ids"):
        pack(tmp_path / "t.csv", tmp_path / "d")


def test_splits_count_their_dropped_rows(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("b1\nb2\nb10\n")
    result = pack(table(tmp_path), tmp_path / "d", split="fold", drop=tmp_path / "ids.txt")
    assert {n: (s.rows, s.packed, s.rejected, s.dropped) for n, s in result.splits.items()} == {
        "train": (5, 4, 0, 1),
        "val": (6, 4, 0, 2),
    }


def test_a_killed_pack_with_dropped_rows_is_continued(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("b0\nb5\nb9\n")
    options = {"drop": tmp_path / "ids.txt", "shard_size": "2KB", "max_rejected": 1.0}
    pack(table(tmp_path), tmp_path / "whole", **options)
    pack(tmp_path / "t.csv", tmp_path / "d", **options)
    journal = (tmp_path / "d" / ".pack" / "journal.jsonl").read_bytes().split(b"\n")
    assert len(journal) > 5
    for keep in range(1, len(journal)):
        (tmp_path / "d" / "index.json").unlink()
        (tmp_path / "d" / ".pack" / "journal.jsonl").write_bytes(b"\n".join(journal[:keep]) + b"\n")
        assert pack(tmp_path / "t.csv", tmp_path / "d", **options).dropped == 3
        for name in ("index.json", "rejected.jsonl", ".pack/journal.jsonl"):
            assert (tmp_path / "d" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_names_unknown_ids_or_is_broken(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("b1\nzz\n")
    with pytest.warns(DataWarning, match=r"ids.txt: no row of .*t.csv has the id 'zz'"):
        pack(table(tmp_path), tmp_path / "d", drop=tmp_path / "ids.txt", max_rejected=1)
    for text, message in (
        ('{"ids": [', "line 1: not valid JSON"),
        ('b1\n{"code": "x"}', "line 2: has none of the keys 'drop'"),
        ('{"ids": "', "not valid"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            pack(tmp_path / "t.csv", tmp_path / "e", drop=tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read"):
        pack(tmp_path / "t.csv", tmp_path / "e", drop=tmp_path / "none.jsonl")
