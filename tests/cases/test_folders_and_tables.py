"""Folders and tables from public bug reports of other tools that were once read wrongly here."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.data.shards import open_data
from tests.cases.conftest import Verb
from tests.support.public_reports import png


def test_line_separators_in_names_and_reasons_do_not_break_a_journal(verb: Verb, tmp_path: Path) -> None:
    """OpenViking #3984, datalad #3523: raw U+0085 and U+2028 in JSON lines that are read back with str.splitlines()."""
    (tmp_path / "img").mkdir()
    rows = ["image,text"]
    for i in range(4):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
        rows.append(f"img/{i}.png,boot {i}")
    (tmp_path / "img" / "Stiefel\u0085.png").write_bytes(b"no picture")
    rows.append("img/Stiefel\u0085.png,boot")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    pack = ("pack", tmp_path / "t.csv", "--out", tmp_path / "d", "--shard-size", "5KB", "--max-rejected", "0.5")
    assert verb(*pack)[0] == 0
    assert verb(*pack)[0] == 0
    assert verb("index", "build", tmp_path / "s", "--model", "tiny:clip", "--data", tmp_path / "d", "--quiet")[0] == 0
    assert verb("index", "promote", tmp_path / "s", "v1", "--why", "first\u2028go")[0] == 0
    status, out, _ = verb("index", "journal", tmp_path / "s", "--json")
    assert status == 0 and "first\\u2028go" in out or "first\u2028go" in out


def test_a_symlink_loop_is_walked_once(verb: Verb, tmp_path: Path) -> None:
    """transifex-client #72: boots/up -> .. ; six pictures are six rows."""
    for name in ("boots", "shoes"):
        (tmp_path / "b" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "b" / name / f"{i}.png").write_bytes(png(i + 10 * (name == "boots")))
    (tmp_path / "b" / "boots" / "up").symlink_to("..")
    assert verb("pack", tmp_path / "b", "--out", tmp_path / "d")[0] == 0
    assert json.loads((tmp_path / "d" / "index.json").read_text())["packed"] == 6


def test_files_that_begin_with_an_underscore_are_no_data(verb: Verb, tmp_path: Path) -> None:
    """polars #14377: a folder as Spark writes it, Parquet parts and an empty _SUCCESS."""
    (tmp_path / "table").mkdir()
    for part in range(2):
        rows = {"image": [png(3 * part + i) for i in range(3)], "text": [f"boot {3 * part + i}" for i in range(3)]}
        pq.write_table(pa.table(rows), tmp_path / "table" / f"part-{part}.parquet")
    (tmp_path / "table" / "_SUCCESS").write_bytes(b"")
    status, out, _ = verb("pack", tmp_path / "table", "--out", tmp_path / "d")
    assert status == 0 and "6 of 6 rows" in out


def test_columns_of_hive_partitions_travel(verb: Verb, tmp_path: Path) -> None:
    """polars #12903: the column is in the folders' names only (category=boots/)."""
    for category in ("boots", "shoes"):
        (tmp_path / "table" / f"category={category}").mkdir(parents=True)
        rows = {"image": [png(i + 5 * (category == "boots")) for i in range(3)], "text": [f"{category} {i}" for i in range(3)]}
        pq.write_table(pa.table(rows), tmp_path / "table" / f"category={category}" / "part-0.parquet")
    status, out, err = verb("pack", tmp_path / "table", "--out", tmp_path / "d")
    assert status == 0, err
    assert sorted(open_data(str(tmp_path / "d")).column("category")) == ["boots"] * 3 + ["shoes"] * 3


def test_rejections_name_no_memory_address(verb: Verb, tmp_path: Path) -> None:
    """A shop page saved as .jpg: two packs of one source write the same rejected.jsonl."""
    (tmp_path / "page.jpg").write_bytes(b"<html>no picture</html>")
    (tmp_path / "ok.png").write_bytes(png())
    (tmp_path / "t.csv").write_text("image,text\npage.jpg,boot\nok.png,boot\n")
    texts = []
    for name in ("d1", "d2"):
        assert verb("pack", tmp_path / "t.csv", "--out", tmp_path / name, "--max-rejected", "1")[0] == 0
        texts.append((tmp_path / name / "rejected.jsonl").read_bytes())
    assert texts[0] == texts[1] and b"0x" not in texts[0] and b"page.jpg" in texts[0]


def test_numbers_of_a_csv_are_numbers_in_filters(verb: Verb, tmp_path: Path) -> None:
    """llama_index #19152: numbers stored as strings, so that `price < 3` finds nothing."""
    (tmp_path / "img").mkdir()
    rows = ["image,text,category,price"]
    for i in range(8):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
        rows.append(f"img/{i}.png,apple {i},Apple,{i + 1.5}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    assert verb("pack", tmp_path / "t.csv", "--out", tmp_path / "d")[0] == 0
    assert verb("index", "build", tmp_path / "s", "--model", "tiny:clip", "--data", tmp_path / "d", "--quiet")[0] == 0
    assert verb("index", "promote", tmp_path / "s", "v1")[0] == 0
    search = ("index", "search", tmp_path / "s", "--text", "apple", "-k", "8", "--json", "--filter")
    status, out, _ = verb(*search, "category = 'Apple' and price < 3")
    assert status == 0 and sorted(r["id"] for r in json.loads(out)["results"]) == ["img/0.png", "img/1.png"]
    status, out, _ = verb(*search, "price >= 8")
    assert status == 0 and [r["id"] for r in json.loads(out)["results"]] == ["img/7.png"]


def test_a_table_in_the_place_of_shards_is_to_be_packed_first(verb: Verb, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text\nboot\n")
    status, _, err = verb("doctor", tmp_path / "x.csv")
    assert status == 2 and len(err.strip().splitlines()) == 1 and "pack it first: mmtune pack" in err
