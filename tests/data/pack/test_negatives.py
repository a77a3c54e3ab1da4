"""Tables with explicit pairs, negatives and scores: rows, groups, negatives.parquet and judgments.jsonl."""

import json
import shutil
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, DataWarning
from tests.support.data_helpers import picture, sound, tree, write_csv


def table(folder):
    return pq.read_table(folder / "negatives.parquet").to_pylist()


def pairs(folder):
    return [(r["direction"], r["query_id"], r["negative_id"]) for r in table(folder)]


def values(folder, modality):
    data = open_data(str(folder))
    return {data.ids[i]: data.read(i, modality) for i in range(len(data)) if data.present[modality][i]}


def test_text_triples_become_two_rows_of_a_group_and_negatives_are_stored_once(tmp_path):
    triples = [
        {"anchor": "red boot", "positive": "boot in red", "negative": "blue boot", "negative_2": "green hat"},
        {"anchor": "blue boot", "positive": "boot in blue", "negative": "green hat", "negative_2": ""},
        {"anchor": "red boot", "positive": "boot in red", "negative": "white sock", "negative_2": "blue boot"},
    ]
    result = pack(write_csv(tmp_path / "t.csv", triples), tmp_path / "out")
    assert values(tmp_path / "out", "text") == {
        "00000001": b"red boot",
        "00000001~positive": b"boot in red",
        "00000001~negative_2": b"green hat",
        "00000002": b"blue boot",
        "00000002~positive": b"boot in blue",
        "00000003~negative": b"white sock",
    }
    data = open_data(str(tmp_path / "out"))
    group = dict(zip(data.ids, data.groups, strict=True))
    assert group["00000001"] == group["00000001~positive"] != group["00000002"] and group["00000003~negative"] is None
    assert pairs(tmp_path / "out") == [
        ("text->text", "00000001", "00000002"),
        ("text->text", "00000001", "00000001~negative_2"),
        ("text->text", "00000002", "00000001~negative_2"),
        ("text->text", "00000001", "00000003~negative"),
    ]
    assert result.repeated == 1 and result.negatives.pairs == {"text->text": 4} and result.rows == result.packed == 6


def test_pictures_by_path_and_by_content_and_a_missing_file(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    shutil.copy(tmp_path / "3.png", tmp_path / "copy.png")
    (tmp_path / "4.png").write_bytes(picture(9))
    images = [("0.png", "1.png"), ("1.png", "4.png"), ("2.png", "copy.png"), ("3.png", "none.png")]
    rows = [{"query": f"thing in {a[0]}", "image": a, "negative_image": b} for a, b in images]
    with pytest.warns(DataWarning, match="1 negatives are not used, because their row .* was not packed .first: row 4."):
        result = pack(write_csv(tmp_path / "q.csv", rows), tmp_path / "out", max_rejected=1)
    assert pairs(tmp_path / "out") == [
        ("text->image", "0.png", "1.png"),
        ("text->image", "1.png", "1.png~negative_image"),
        ("text->image", "2.png", "3.png"),  # copy.png has the content of 3.png
    ]
    assert set(values(tmp_path / "out", "image")) == {"0.png", "1.png", "2.png", "3.png", "1.png~negative_image"}
    assert result.rejected == 1 and result.negatives.lost == 1
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert rejected == [{"row": 4, "file": "none.png", "reason": "image: missing file", "item": 2}]
    again = pack(tmp_path / "q.csv", tmp_path / "again", max_rejected=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "again") and again.negatives == result.negatives


def test_a_pack_that_was_interrupted_ends_with_the_same_files(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    rows = [{"text": f"thing {i}", "image": f"{i}.png", "negative_image": f"{(i + 4) % 8}.png"} for i in range(6)]
    for i in (6, 7):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    source = write_csv(tmp_path / "q.csv", rows)
    pack(source, tmp_path / "whole", shard_size=4000)

    def stop(done, *_):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", shard_size=4000, progress=stop)
    assert not (tmp_path / "out" / "negatives.parquet").exists()
    pack(source, tmp_path / "out", shard_size=4000)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {d for d, _, _ in pairs(tmp_path / "out")} == {"text->image"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_negatives_bytes_and_a_named_modality(tmp_path, kind):
    rows = [
        {"a": {"bytes": sound(1), "path": None}, "p": "a hum", "n": ["a bang", "a hiss"], "sku": "x"},
        {"a": {"bytes": sound(2), "path": None}, "p": "a bang", "n": ["a hum"], "sku": "y"},
    ]
    if kind == "jsonl":
        for i, row in enumerate(rows):
            (tmp_path / f"{i}.wav").write_bytes(row["a"]["bytes"])
            row["a"] = f"{i}.wav"
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    pack(tmp_path / f"t.{kind}", tmp_path / "out", query="a", positive="p", negatives=["n:text"], group="sku")
    ids = ["0.wav", "1.wav"] if kind == "jsonl" else ["00000001", "00000002"]
    assert pairs(tmp_path / "out") == [
        ("audio->text", ids[0], ids[1]),
        ("audio->text", ids[0], f"{ids[0]}~n#2"),
        ("audio->text", ids[1], ids[0]),
    ]
    data = open_data(str(tmp_path / "out"))
    assert data.modalities == ["audio", "text"] and data.groups == ["x", None, "y"]


def test_splits_have_tables_of_their_own_and_user_ids_stay(tmp_path):
    rows = [
        {"id": 7, "split": "train", "anchor": "a", "positive": "b", "negative": "c"},
        {"id": 8, "split": "val", "anchor": "c", "positive": "d", "negative": "a"},
    ]
    pack(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", split="split")
    assert pairs(tmp_path / "out" / "train") == [("text->text", "7", "7~negative")]  # c is stored in val only
    assert pairs(tmp_path / "out" / "val") == [("text->text", "8", "8~negative")]


def test_a_column_of_mixed_modalities_must_be_named_and_other_tables_stay_as_they_are(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    mixed = [{"anchor": "a", "positive": "b", "negative": "0.png"}, {"anchor": "c", "positive": "d", "negative": "e"}]
    with pytest.raises(DataError, match=r"'negative' has image \(1 values\) and text \(1 values\).*--negative negative:image"):
        pack(write_csv(tmp_path / "m.csv", mixed), tmp_path / "m")
    with pytest.raises(DataError, match="no column 'negativ' .--negative.; did you mean 'negative'"):
        pack(tmp_path / "m.csv", tmp_path / "m", negatives=["negativ"])
    plain = [{"text": "nice", "positive": 1, "negative": 0}, {"text": "bad", "positive": 0, "negative": 1}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(write_csv(tmp_path / "p.csv", plain), tmp_path / "p")
    assert not (tmp_path / "p" / "negatives.parquet").exists()
    assert open_data(str(tmp_path / "p")).column("negative") == [0, 1]


def test_scores_become_judgments_and_a_score_of_0_within_one_modality_a_negative(tmp_path):
    rows = [{"anchor": f"a{i}", "positive": f"b{i}", "score": s} for i, s in enumerate([3, 1, 0])]
    pack(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", score="score")
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()]
    assert [(j["query"], j["item"], j["grade"], j["direction"]) for j in lines] == [
        (f"{i:08d}", f"{i:08d}~positive", grade, "text->text") for i, grade in ((1, 3), (2, 1), (3, 0))
    ]
    assert pairs(tmp_path / "out") == [("text->text", "00000003", "00000003~positive")]
    assert open_data(str(tmp_path / "out")).groups[4:] == [None, None]
    rows = [{"text": "boots", "image": f"{i}.png", "relevance": s} for i, s in enumerate([0.5, 1, ""])]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    pack(write_csv(tmp_path / "g.csv", rows), tmp_path / "g", score="relevance")
    lines = [json.loads(line) for line in (tmp_path / "g" / "judgments.jsonl").read_text().splitlines()]
    assert [(j["query"], j["item"], j["grade"], j["score"]) for j in lines] == [
        ("0.png", "0.png", 500, 0.5),
        ("1.png", "1.png", 1000, 1.0),
    ]


def test_texts_that_end_like_files_are_not_taken_for_media_in_silence(tmp_path):
    rows = [{"anchor": f"query {i}", "positive": f"answer {i}", "negative": f"thing {i}.png"} for i in range(4)]
    says = r"of column 'negative' are paths of modality image, but no such file exists \(first: 'thing 0.png' in .*--negative negative:text"
    with pytest.raises(DataError, match=says):
        pack(write_csv(tmp_path / "t.csv", rows), tmp_path / "out")
    made = pack(tmp_path / "t.csv", tmp_path / "out", query="anchor", positive="positive", negatives=["negative:text"])
    assert made.negatives.pairs == {"text->text": 4} and b"thing 3.png" in values(tmp_path / "out", "text").values()
