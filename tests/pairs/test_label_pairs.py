"""Labels of several levels: groups, grades against a naive loop, siblings, and the files that evaluation and training read."""

import csv
import itertools
import json

import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.label_pairs import pairs_from_labels
from mmtune.relevance.judgments import read_qrels
from tests.support.pairs_helpers import dropped, pictures, rows_of

ROWS = [
    ("shoes", "boots", "B1"),
    ("shoes", "boots", "B1"),
    ("shoes", "boots", "B2"),
    ("shoes", "clogs", "C1"),
    ("bags", "", "G1"),
    ("bags", "", "G2"),
    ("hats", "caps", ""),
    ("hats", "caps", "B1"),
]


@pytest.fixture
def photos(tmp_path):
    names = pictures(tmp_path, len(ROWS))
    with open(tmp_path / "photos.csv", "w", newline="") as f:
        rows = [(f"r{n}", name, *labels) for n, (name, labels) in enumerate(zip(names, ROWS, strict=True))]
        csv.writer(f).writerows([("id", "image", "category", "type", "sku"), *rows])
    return tmp_path / "photos.csv"


def levels_in_common(a, b):
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] and pair[0] == pair[1], zip(a, b, strict=True)))


def test_grades_are_the_number_of_common_levels(tmp_path, photos):
    result = pairs_from_labels(photos, tmp_path / "out", levels=["category", "type", "sku"], quiet=True)
    naive = {
        f"r{i}": {f"r{j}": grade for j, b in enumerate(ROWS) if b[2] and (grade := levels_in_common(a, b) if i != j else 3)}
        for i, a in enumerate(ROWS)
        if a[2]
    }
    assert {q: dict(items) for q, items in read_qrels(tmp_path / "out/judgments.jsonl").items()} == naive
    assert naive["r0"] == {"r0": 3, "r1": 3, "r2": 2, "r3": 1} and naive["r4"] == {"r4": 3, "r5": 1}
    assert dropped(tmp_path / "out") == {"no label": 1} and result.pairs == 7


def test_groups_have_the_finest_label_or_the_whole_path_where_it_is_ambiguous(tmp_path, photos):
    pairs_from_labels(photos, tmp_path / "out", levels=["category", "type", "sku"], quiet=True)
    rows = {r["id"]: r for r in rows_of(tmp_path / "out")}
    assert rows["r0"]["group"] == rows["r1"]["group"] == "shoes > boots > B1"
    assert rows["r7"]["group"] == "hats > caps > B1" and rows["r2"]["group"] == "B2"
    assert rows["r2"]["text"] == "B2" and rows["r2"]["type"] == "boots"


def test_siblings_share_most_levels_and_never_the_label(tmp_path, photos):
    pairs_from_labels(photos, tmp_path / "out", levels=["category", "type", "sku"], negatives=2, quiet=True)
    table = pq.read_table(tmp_path / "out/negatives.parquet").to_pylist()
    found = {}
    for row in table:
        found.setdefault(row["query_id"], []).append((row["negative_id"], row["common_levels"]))
    assert found["r0"] == [("r2", 2), ("r3", 1)] and found["r4"] == [("r5", 1)] and "r7" not in found
    assert {n for n, _ in found["r2"]} == {"r0", "r1"} and len(found["r3"]) == 2


def test_training_and_evaluation_read_the_files(tmp_path, photos):
    out = tmp_path / "out"
    pairs_from_labels(photos, out, levels=["category", "type", "sku"], caption="a {type} of {category}", quiet=True)
    mmtune.pack(out / "pairs.parquet", tmp_path / "packed")
    scores = mmtune.evaluate("tiny:clip", tmp_path / "packed", qrels=out / "judgments.jsonl").to_dict()
    assert "ndcg" in json.dumps(scores)
    from mmtune.mining.given_negatives import load_given

    given = load_given(mmtune.open_data(tmp_path / "packed"), [out / "negatives.parquet"], [("image", "text")])
    assert given is not None and given.unknown == 0 and sum(given.counts.values()) > 0


def test_a_taxonomy_column_and_folders(tmp_path):
    for folder in ("Shoes/Boots/B1", "Shoes/Boots/B2", "Bags/G1"):
        pictures(tmp_path / "tree" / folder, 2, first=len(list(tmp_path.rglob("*.png"))))
    pairs_from_labels(tmp_path / "tree", tmp_path / "a", taxonomy="folders", quiet=True)
    rows = rows_of(tmp_path / "a")
    assert sorted({r["group"] for r in rows}) == ["B1", "B2", "G1"]
    grades = read_qrels(tmp_path / "a/judgments.jsonl")
    assert sorted(grades["Shoes/Boots/B1/" + next(p.name for p in (tmp_path / "tree/Shoes/Boots/B1").iterdir())].values()) == [
        2,
        2,
        3,
        3,
    ]
    pictures(tmp_path, 2)
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"image": f"{n}.png", "path": p}) + "\n" for n, p in enumerate(["Shoes > Boots", "Shoes > Clogs"]))
    )
    pairs_from_labels(tmp_path / "t.jsonl", tmp_path / "b", taxonomy="path", quiet=True)
    assert [r["group"] for r in rows_of(tmp_path / "b")] == ["Boots", "Clogs"]
    assert read_qrels(tmp_path / "b/judgments.jsonl")["0.png"] == {"0.png": 2, "1.png": 1}


@pytest.mark.parametrize("source", ["photos.csv", "./photos.csv"])
def test_a_source_by_a_relative_path(tmp_path, photos, monkeypatch, source):
    (tmp_path / "here").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "here")
    pairs_from_labels(source, "made/out", levels=["category", "sku"], quiet=True)
    rows = rows_of(tmp_path / "made/out")
    assert len(rows) == 7 and all((tmp_path / "made/out" / r["image"]).is_file() for r in rows)


def test_a_limit_of_judgments_for_each_grade(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("mmtune.pairs.label_pairs.MAX_JUDGMENTS", 10)
    with pytest.raises(DataError, match=r"21 pairs of rows share a label .* --judgments-per-grade N"):
        pairs_from_labels(photos, tmp_path / "out", levels=["category", "type", "sku"], quiet=True)
    pairs_from_labels(photos, tmp_path / "out", levels=["category", "sku"], judgments_per_grade=1, quiet=True)
    grades = read_qrels(tmp_path / "out/judgments.jsonl")
    assert sorted(grades["r0"].values()) == [1, 2, 2]


def test_broken_twins_of_labels(tmp_path, photos, capsys):
    command = ["pairs", "labels", str(photos), "--out", str(tmp_path / "o"), "--quiet"]
    for options, message in (
        ([], "no labels; give --level COLUMN"),
        (["--level", "categry"], "no column 'categry' (--level); did you mean 'category'?"),
        (["--level", "sku", "--caption", "{tipe}"], "no column 'tipe'"),
    ):
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    (tmp_path / "twice.csv").write_text("id,image,sku\na,0.png,X\na,1.png,X\nb,gone.png,X\nc,2.png,Y\nd,3\n")
    pairs_from_labels(tmp_path / "twice.csv", tmp_path / "out", levels=["sku"], quiet=True)
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["a", "c"]
    assert dropped(tmp_path / "out")["the id of an earlier row"] == 1 and dropped(tmp_path / "out")["no such file"] == 1
