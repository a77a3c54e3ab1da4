"""Sources of `pack`: well-formed and malformed tables, Parquet, folders."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.pack.columns import PackRow, assign_columns
from mmtune.data.pack.pack import pack
from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.errors import DataError, DataWarning
from tests.support.data_helpers import picture, sound, write_csv


def rows(path: Path, wanted: set[str] | None = None) -> list[Any]:
    source = open_source(path)
    found = list(source.rows(wanted or set(source.columns)))
    assert [n for n, _ in found] == list(range(1, len(found) + 1))
    return [c.reason if isinstance(c, InvalidRow) else c for _, c in found]


def pack_rows(path: Path, columns: dict[str, str] | None = None, **roles: str | None) -> list[PackRow]:
    source = open_source(path)
    found = assign_columns(source, columns or {}, *(roles.get(r) for r in ("id", "group", "split")))
    return [row for n, c in source.rows(set(source.columns)) for row in found.rows(n, c, n)]


def test_csv_with_mark_quotes_newlines_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfimage,text\r\na.png,"two\r\nlines, ""quoted"""\r\n\r\nb.png,plain\r\n   \r\nc.png,')
    assert rows(path) == [
        {"image": "a.png", "text": 'two\r\nlines, "quoted"'},
        {"image": "b.png", "text": "plain"},
        {"image": "c.png", "text": ""},
    ]


def test_ragged_rows_cost_themselves_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('image,text\na,1\nb\nc,2,3\nd,4,,\ne,"5\nf,6\ng,"7"x\nh,"8"\n')
    got = rows(path)
    assert [r if isinstance(r, dict) else r.split(":")[0] for r in got] == [
        {"image": "a", "text": "1"},
        "line 3",
        "line 4",
        {"image": "d", "text": "4"},
        "line 6",  # its quote is never closed: the lines after it are rows all the same
        {"image": "f", "text": "6"},
        "line 8",
        {"image": "h", "text": "8"},
    ]
    assert got[1] == "line 3: wrong number of cells (1, the header has 2)" and "quot" in got[4]


def test_a_quote_closed_rows_later_does_not_swallow_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('image,text\na,"open\nb,2\nc,3\nd,"fine"\ne,5\n')
    got = rows(path)
    assert [r["image"] for r in got if isinstance(r, dict)] == ["b", "c", "d", "e"] and len(got) == 5


def test_tsv_semicolons_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('image\ttext\nx\t"to be", he said\ny\t5" bolt\nz\t"q"\n')
    assert [r["text"] for r in rows(tmp_path / "a.tsv")] == ['"to be", he said', '5" bolt', "q"]
    (tmp_path / "b.csv").write_bytes("image;text\nä.png;grün – fünf €\n".encode("cp1252") + "ö.png;größer\n".encode())
    assert rows(tmp_path / "b.csv") == [{"image": "ä.png", "text": "grün – fünf €"}, {"image": "ö.png", "text": "größer"}]
    (tmp_path / "c.csv").write_text("image,text\na,日本\n", encoding="utf-16")
    assert rows(tmp_path / "c.csv") == [{"image": "a", "text": "日本"}]
    (tmp_path / "d.csv").write_text("image,text\na,nul\0inside\n")
    assert rows(tmp_path / "d.csv") == [{"image": "a", "text": "nul\0inside"}]


def test_huge_cells_and_endless_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"image,text\na,{'x' * 500_000}\n" + 'b,"never\n' + "c,row\n" * 3000)
    got = rows(tmp_path / "a.csv")
    assert len(got[0]["text"]) == 500_000 and "never closed" in got[1] and len(got) == 3002


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"image": "a", "n": 1}\n\n{bad\n[1]\n{"text": "a\\u2028b", "new": [1, null]}\n'
        + b'{"image": "\xff"}\n{"a":'
    )
    got = rows(path)
    assert got[0] == {"image": "a", "n": 1} and got[3] == {"text": "a\u2028b", "new": [1, None]} and got[4] == {"image": "ÿ"}
    assert "line 3: not valid JSON" in got[1] and got[2] == "line 4: not a JSON object but a list" and "line 7" in got[5]
    assert open_source(path).columns == ["image", "n", "text", "new"]


def test_parquet_with_bytes_and_huggingface_structs(tmp_path: Path) -> None:
    image = [{"bytes": picture(1), "path": "x/one.png"}, {"bytes": None, "path": "two.png"}, None]
    table = pa.table(
        {"image": image, "audio": [sound(1), b"", None], "text": ["a", None, "c"], "n": [1, 2, 3], "blob": [b"x"] * 3}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    got = pack_rows(tmp_path / "a.parquet")
    assert got[0].values == {"image": picture(1), "audio": sound(1), "text": b"a"} and got[0].extensions["image"] == "png"
    assert got[1].values == {"image": str(tmp_path / "two.png"), "audio": b""} and got[2].values == {"text": b"c"}
    assert [j.id for j in got] == ["x/one.png", "two.png", "00000003"] and got[0].meta == {"n": 1}
    assert "blob" not in next(iter(open_source(tmp_path / "a.parquet").rows({"text"})))[1]
    (tmp_path / "many").mkdir()
    for k in range(2):
        pq.write_table(table.slice(k, 1), tmp_path / "many" / f"{k}.parquet")
    assert len(pack_rows(tmp_path / "many")) == 2
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="bad.parquet: not a readable Parquet file"):
        open_source(tmp_path / "bad.parquet")


def test_usual_columns_are_found_in_upper_or_lower_case(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"Photo": "a.png", " TITLE": "t", "ID": "7", "Group": "g", "price": "3"}])
    (row,) = pack_rows(path)
    assert (row.id, row.group, row.meta, row.values["text"]) == ("7", "g", {"price": 3}, b"t")
    assert row.values["image"] == str(tmp_path / "a.png")
    (row,) = pack_rows(path, {"text": "price"}, id="photo", group=" title")
    assert (row.id, row.group, row.values["text"]) == ("a.png", "t", b"3")
    assert row.meta == {"ID": "7", "Group": "g"}


def test_missing_columns_name_those_there_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"picutre": "a", "words": "b"}])
    with pytest.raises(DataError, match="no column to pack; columns: picutre, words; name them with --image, --audio, --text"):
        pack_rows(path)
    with pytest.raises(DataError, match=r"no column 'picture' \(--image\); did you mean 'picutre'\? columns: picutre, words"):
        pack_rows(path, {"image": "picture"})
    with pytest.raises(DataError, match="'sku'.*--group"):
        pack_rows(path, {"image": "picutre"}, group="sku")
    (tmp_path / "d.csv").write_text("a,text,a\n1,2,3\n")
    with pytest.raises(DataError, match="there are two columns 'a'"):
        pack_rows(tmp_path / "d.csv")
    for name, match in (
        ("none.csv", "no such file"),
        ("e.csv", "empty"),
        ("x.xlsx", "not a kind of source"),
        ("x.tar", "not a tar file"),
    ):
        if name != "none.csv":
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=match):
            open_source(tmp_path / name)


def test_ids_do_not_change_when_rows_are_added(tmp_path: Path) -> None:
    table = [{"image": f"{i // 2}.png", "text": str(i)} for i in range(4)] + [{"image": "", "text": "no path"}]
    before = [j.id for j in pack_rows(write_csv(tmp_path / "a.csv", table))]
    assert before == ["0.png", "0.png#2", "1.png", "1.png#2", "00000005"]
    after = [j.id for j in pack_rows(write_csv(tmp_path / "a.csv", [*table, {"image": "0.png", "text": "x"}]))]
    assert after == [*before, "0.png#3"]


def test_cells_of_every_kind(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"image": ["", "b.png"], "text": ["first"], "id": 5, "group": 2.5, "extra": {"a": [1, float("nan")]}},
        {"image": "/abs/c.JPEG", "text": 12, "id": True},
        {"image": "http://x/d.webp?size=3", "text": None},
        {"image": 3, "text": "t"},
        {"image": {"foo": 1}, "text": "t"},
        {"image": " ", "text": ""},
        {"image": "e.wav", "text": "half \ud800 pair"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in cells))
    got = pack_rows(path)
    assert got[0].values == {"image": str(tmp_path / "b.png"), "text": b"first"}
    assert (got[0].id, got[0].group, got[0].meta) == ("5", "2.5", {"extra": {"a": [1, None]}})
    assert (
        got[1].values == {"image": "/abs/c.JPEG", "text": b"12"}
        and got[1].id == "true"
        and got[1].extensions["image"] == "jpeg"
    )
    assert (
        got[2].values == {"image": "http://x/d.webp?size=3"}
        and got[2].extensions == {"image": "webp"}
        and got[2].reason is None
    )
    assert got[3].reason == "image: neither a path nor bytes but a int" and "object with foo" in (got[4].reason or "")
    assert got[5].reason == "no value: image and text empty"
    assert got[6].extensions["image"] == "jpg" and got[6].values["text"] == b"half ? pair"


def test_folder_with_a_class_per_subfolder(tmp_path: Path) -> None:
    for i, name in enumerate(
        ("red_apple/1.png", "red_apple/2.png", "green-pear/deep/3.PNG", "4.jpg", ".hidden/5.png", "red_apple/.x.png")
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(i))
    (tmp_path / "labels.pdf").write_bytes(b"")
    got = {j.id or j.file: j for j in pack_rows(tmp_path)}
    assert list(got) == ["4.jpg", "labels.pdf", "green-pear/deep/3.PNG", "red_apple/1.png", "red_apple/2.png"]
    assert got["red_apple/1.png"].values == {"image": str(tmp_path / "red_apple/1.png"), "text": b"red apple"}
    assert got["red_apple/1.png"].group == "red_apple" and got["green-pear/deep/3.PNG"].group == "deep"
    assert got["4.jpg"].values.keys() == {"image"} and got["4.jpg"].group is None
    assert got["labels.pdf"].reason == "no modality reads .pdf files"


def test_folder_with_side_cars(tmp_path: Path) -> None:
    for name, data in {
        "a/1.png": picture(1),
        "a/1.txt": b"one",
        "a/1.wav": sound(1),
        "a/2.png": picture(2),
        "a/3.jpg": picture(3, "JPEG"),
        "a/3.png": picture(3),
        "a/3.txt": b"three",
        "b/1.txt": b"alone",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    got = {j.id: j for j in pack_rows(tmp_path)}
    assert {k: sorted(j.values) for k, j in got.items()} == {
        "a/1.png": ["audio", "image", "text"],
        "a/2.png": ["image"],
        "a/3.jpg": ["image", "text"],
        "a/3.png": ["image"],
        "b/1.txt": ["text"],
    }
    assert got["a/1.png"].values["text"] == str(tmp_path / "a/1.txt") and all(j.group is None for j in got.values())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        open_source(tmp_path / "empty")


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "b" / "boots").mkdir(parents=True)
    (tmp_path / "b" / "boots" / "1.png").write_bytes(picture(1))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(picture(2))
    (tmp_path / "b" / "boots" / "up").symlink_to("..")
    (tmp_path / "b" / "shoes").symlink_to(tmp_path / "elsewhere")  # a link to a folder outside is followed, as before
    assert [row.id for row in pack_rows(tmp_path / "b")] == ["boots/1.png", "shoes/2.png"]


def test_partitions_and_markers_of_spark_and_hive(tmp_path: Path) -> None:
    for i, part in enumerate(("category=boots", "category=rain%20coats", "category=__HIVE_DEFAULT_PARTITION__")):
        (tmp_path / "t" / part).mkdir(parents=True)
        pq.write_table(pa.table({"text": [f"caption {i}"]}), tmp_path / "t" / part / "part-0.parquet")
    (tmp_path / "t" / "_SUCCESS").touch()
    got = pack_rows(tmp_path / "t")
    assert [row.meta for row in got] == [{}, {"category": "boots"}, {"category": "rain coats"}]
    assert [row.values for row in got] == [{"text": f"caption {i}".encode()} for i in (2, 0, 1)]
    (row,) = rows(tmp_path / "t" / "category=boots" / "part-0.parquet")
    assert row == {"text": "caption 0"}  # a single file has no partition


def test_every_value_of_a_list_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": ["a", "", "b", "c"]}\n{"text": "d"}\n{"text": []}\n{"text": [null, "e"]}\n')
    source = open_source(path)
    roles = assign_columns(source, {}, None, None, None)
    got = [row for n, c in source.rows(set(source.columns)) for row in roles.rows(n, c, 1)]
    assert [row.values.get("text") for row in got] == [b"a", b"b", b"c", b"d", None, b"e"] and roles.list_rows == 2
    assert [row.id for row in got] == [
        f"{i:08d}" if j == 1 else f"{i:08d}#{j}" for i, j in [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (4, 1)]
    ]
    assert len({row.group for row in got[:3]}) == 1 and got[0].group and {row.group for row in got[3:]} == {None}


def test_reading_a_table_changes_no_limit_of_the_process(tmp_path: Path) -> None:
    limit = csv.field_size_limit(1000)
    try:
        write_csv(tmp_path / "a.csv", [{"image": "a", "text": "x" * 5000}, {"image": "b", "text": "y"}])
        assert [len(row["text"]) for row in rows(tmp_path / "a.csv")] == [5000, 1]
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(limit)


def test_whole_numbers_written_as_floats_are_ids_of_whole_numbers(tmp_path: Path) -> None:
    """pandas makes a column of integers with a gap a column of floats: id 10, not "10.0"."""
    pq.write_table(
        pa.table({"id": [10.0, None, 2.5], "group": [7.0, 7.0, None], "text": ["a", "b", "c"]}), tmp_path / "a.parquet"
    )
    got = pack_rows(tmp_path / "a.parquet")
    assert [(row.id, row.group) for row in got] == [("10", "7"), ("00000002", "7"), ("2.5", None)]


def test_a_modality_can_be_left_out(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"image": "a.png", "audio": "a.wav", "text": "t"}])
    (row,) = pack_rows(path, {"audio": ""})
    assert row.values.keys() == {"image", "text"} and row.meta == {"audio": "a.wav"}


def test_names_of_media_files_in_a_metadata_column_are_counted(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv",
        [{"picture_file": f"{i}.JPG", "text": f"see {i}.txt", "note": "v1.2"} for i in range(5)],
    )
    source = open_source(path)
    roles = assign_columns(source, {}, None, None, None)
    for n, c in source.rows(set(source.columns)):
        roles.rows(n, c, n)
    assert roles.media_names == {"picture_file": 5}
    with pytest.warns(
        DataWarning, match="5 rows have the name of a media file in the column 'picture_file'.*--image picture_file"
    ):
        assert pack(path, tmp_path / "out").packed == 5


def test_sidecars_named_after_the_whole_file(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i, "JPEG"))
        (tmp_path / f"{i}.jpg.txt").write_text(f"caption {i}")
    got = pack_rows(tmp_path)
    assert [(row.id, sorted(row.values)) for row in got] == [("0.jpg", ["image", "text"]), ("1.jpg", ["image", "text"])]


def test_lines_of_jsonl_end_at_newlines_alone(tmp_path: Path) -> None:
    captions = ["a\u2028b", "c\u0085d", "e\u2029f", "g\x1ch"]
    lines = [json.dumps({"text": c}, ensure_ascii=False) for c in captions] + ['{"text":\r "white space"}']
    (tmp_path / "t.jsonl").write_bytes("\n".join(lines).encode())
    assert [r["text"] for r in rows(tmp_path / "t.jsonl")] == [*captions, "white space"]
