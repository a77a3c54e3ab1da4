"""Lists, tars and tables of negatives from public bug reports of other tools that were once read wrongly here."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.shards import open_data
from tests.cases.conftest import Verb
from tests.support.public_reports import add, embedded, png


def test_dots_in_member_names_are_part_of_the_key(verb: Verb, tmp_path: Path) -> None:
    """webdataset #237: SKU.VIEW.png, SKU.VIEW.txt, SKU.VIEW.json; four products, three views each."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for sku in range(4):
            for view in range(3):
                key = f"s{sku}.v{view}"
                add(tar, f"{key}.json", json.dumps({"id": f"{sku}-{view}", "category": f"c{sku % 2}"}).encode())
                add(tar, f"{key}.png", png(10 * sku + view))
                add(tar, f"{key}.txt", f"product {sku} view {view}".encode())
    assert verb("embed", "tiny:clip", tmp_path / "shard.tar", "--out", tmp_path / "e")[0] == 0
    assert len(embedded(tmp_path / "e", "image")) == len(embedded(tmp_path / "e", "text")) == 12
    assert sorted(set(open_data(str(tmp_path / "shard.tar")).column("category"))) == ["c0", "c1"]


def test_windows_1252_captions_and_jfif_pictures_are_read_or_said(verb: Verb, tmp_path: Path) -> None:
    """ai-toolkit #792, img2dataset #347: captions in Windows-1252; pictures named .jfif."""
    with tarfile.open(tmp_path / "latin1.tar", "w") as tar:
        for i in range(3):
            add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.txt", f"Stiefel für {i} €".encode("cp1252"))
    jpeg = io.BytesIO()
    PIL.Image.open(io.BytesIO(png())).save(jpeg, "JPEG")
    with tarfile.open(tmp_path / "jfif.tar", "w") as tar:
        for i in range(3):
            add(tar, f"{i}.jfif", jpeg.getvalue())
            add(tar, f"{i}.txt", f"boot {i}".encode())
    assert open_data(str(tmp_path / "jfif.tar")).present["image"].all()
    status, out, err = verb("doctor", tmp_path / "latin1.tar")
    data = open_data(str(tmp_path / "latin1.tar"))
    assert [data.read(i, "text").decode() for i in range(3)] == [f"Stiefel für {i} €" for i in range(3)]
    assert "3 text values not in UTF-8, read as Windows-1252" in out and "Windows-1252" in err
    assert "left out or re-encoded when opened: nothing" in verb("doctor", tmp_path / "jfif.tar")[1]


def test_what_a_scan_leaves_out_is_said_by_the_verb_that_opens_the_data(verb: Verb, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.txt", f"boot {i}".encode())
        add(tar, "9.xyz", b"nobody knows")
    for arguments in (("doctor", tmp_path / "odd.tar"), ("embed", "tiny:clip", tmp_path / "odd.tar", "--out", tmp_path / "e")):
        _, out, err = verb(*arguments)
        assert "without any known modality" in out + err


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_captions_a_picture_are_several_rows_of_one_group(kind: str, verb: Verb, tmp_path: Path) -> None:
    """CLIP #464: {"image": ..., "caption": [five captions]}."""
    (tmp_path / "img").mkdir()
    rows = []
    for i in range(3):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
        rows.append({"image": f"img/{i}.png", "caption": [f"boot {i}, view {j}" for j in range(5)]})
    if kind == "jsonl":
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert verb("pack", tmp_path / f"t.{kind}", "--out", tmp_path / "d")[0] == 0
    data = open_data(str(tmp_path / "d"))
    assert len(data) == 15
    captions = sorted(data.read(i, "text").decode() for i in range(15))
    assert captions == sorted(c for r in rows for c in r["caption"])
    assert len(set(data.groups)) == 3 and None not in data.groups


def test_concatenated_tars_are_read_whole(verb: Verb, tmp_path: Path) -> None:
    """borg #7432: `cat a.tar b.tar`; `tar -i` reads all nine."""
    whole = b""
    for part, rows in enumerate((5, 4)):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for i in range(rows):
                add(tar, f"{part}{i}.png", png(10 * part + i))
                add(tar, f"{part}{i}.txt", f"boot {part}{i}".encode())
        whole += (tmp_path / "x.tar").read_bytes()
    (tmp_path / "cat.tar").write_bytes(whole)
    assert len(open_data(str(tmp_path / "cat.tar"))) == 9


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_negatives_table_with_integer_ids_is_used(kind: "pa.DataType", verb: Verb, tmp_path: Path) -> None:
    """TorchEasyRec #249: query_id and negative_id are int64, as pandas writes them."""
    (tmp_path / "img").mkdir()
    rows = []
    for i in range(12):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
        rows.append({"id": 1000 + i, "image": f"img/{i}.png", "text": f"boot {i}", "sku": f"s{i // 2}"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ids = [1000 + i for i in range(12)]
    table = pa.table(
        {"query_id": ids, "negative_id": [1000 + (i + 4) % 12 for i in range(12)], "direction": ["text->image"] * 12}
    )
    for column in ("query_id", "negative_id"):
        table = table.set_column(table.schema.get_field_index(column), column, table[column].cast(kind))
    pq.write_table(table, tmp_path / "negatives.parquet")
    (tmp_path / "recipe.yaml").write_text(
        "model: tiny:clip\ndata: {train: '???'}\nmining: {table: '???', allow_stale: true}\ntrain: {epochs: 1, batch_size: 6}\n"
    )
    assert verb("pack", tmp_path / "t.jsonl", "--out", tmp_path / "d", "--group", "sku")[0] == 0
    arguments = (f"data.train={tmp_path / 'd'}", f"run.dir={tmp_path / 'r'}", f"mining.table={tmp_path / 'negatives.parquet'}")
    status, _, err = verb("train", tmp_path / "recipe.yaml", *arguments, "--quiet")
    assert status == 0, err


def test_hard_links_are_followed(verb: Verb, tmp_path: Path) -> None:
    """ratarmount #28: a deduplicator hard-linked equal photos; `tar -x` gives six."""
    with tarfile.open(tmp_path / "hard.tar", "w") as tar:
        for i in range(6):
            if i in (3, 5):
                link = tarfile.TarInfo(f"{i}.png")
                link.type, link.linkname = tarfile.LNKTYPE, f"{i - 1}.png"
                tar.addfile(link)
            else:
                add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.txt", f"boot {i}".encode())
    data = open_data(str(tmp_path / "hard.tar"))
    assert data.present["image"].sum() == 6
    assert verb("embed", "tiny:clip", tmp_path / "hard.tar", "--out", tmp_path / "e", "--quiet")[0] == 0
    vectors = embedded(tmp_path / "e", "image")
    assert np.array_equal(vectors["2"], vectors["3"]) and not np.array_equal(vectors["3"], vectors["4"])
