"""Judgments of others: tables and Label Studio; agreement; broken twins."""

import json

import krippendorff
import numpy as np
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.agreement import agreement
from mmtune.relevance.judgments import read_qrels

TABLE = "query,item,grade,annotator\nboot,B-1,match,ann\nboot,B-1,match,bob\nboot,B-2,not,ann\nboot,B-2,match,bob\nboot,B-2,not,cem\nbag,C-1,unsure,ann\nbag,C-1,yes,bob\n"


def task(n, answers, **data):
    annotations = [
        {
            "completed_by": who,
            "was_cancelled": cancelled,
            "result": [{"from_name": "verdict", "type": "choices", "value": {"choices": [a]}}] if a else [],
        }
        for who, a, cancelled in answers
    ]
    return {"id": n, "data": data, "annotations": annotations}


def test_a_table_of_several_annotators(tmp_path):
    (tmp_path / "j.csv").write_text(TABLE)
    result = mmtune.pairs_from_judgments(tmp_path / "j.csv", tmp_path / "out")
    assert read_qrels(tmp_path / "out/judgments.jsonl") == {"boot": {"B-1": 1, "B-2": 0}, "bag": {"C-1": 1}}
    pairs = pq.read_table(tmp_path / "out/pairs.parquet").to_pylist()
    assert [(p["query"], p["item"], p["weight"], p["annotators"], p["negative_items"]) for p in pairs] == [
        ("boot", "B-1", 1.0, 2, ["B-2"]),
        ("bag", "C-1", 1.0, 1, []),
    ]
    measured = result.measures["agreement"]
    units = [[1, 0, np.nan], [1, 1, 1], [np.nan, 0, np.nan]]
    expected = krippendorff.alpha(reliability_data=units, level_of_measurement="nominal")
    assert measured["alpha"] == pytest.approx(expected) and measured["pairs"] == 2 and measured["same"] == 0.5
    assert measured["annotators"]["bob"] == {"judged": 3, "with_others": 2, "same": 0.5}
    assert [(d["reason"], d["count"]) for d in result.dropped] == [("the annotator was unsure", 1)]
    assert result.rows == 7 == result.judgments + 1


def test_label_studio(tmp_path):
    tasks = [
        task(1, [("a@x", "Match", False), ("b@x", "Match", False)], query="boot", sku="B-1"),
        task(
            2,
            [("a@x", "Part", False), ({"id": 7, "email": "b@x"}, "Match", False), ("c@x", "Part", True)],
            query="boot",
            sku="B-2",
        ),
        task(3, [], query="bag", sku="C-1"),
        task(4, [("a@x", None, False)], query="bag", sku="C-2"),
    ]
    (tmp_path / "e.json").write_text(json.dumps(tasks))
    (tmp_path / "min.json").write_text(
        json.dumps([{"id": 1, "query": "boot", "sku": "B-1", "label": "Match", "annotator": 3, "lead_time": 2}])
    )
    result = mmtune.pairs_from_judgments(tmp_path / "e.json", tmp_path / "out", item="sku", grades="match=3,part=1")
    lines = [json.loads(line) for line in (tmp_path / "out/judgments.jsonl").read_text().split("\n") if line]
    assert {(x["item"], x["judge"]): x["grade"] for x in lines} == {
        ("B-1", "a@x"): 3,
        ("B-1", "b@x"): 3,
        ("B-2", "a@x"): 1,
        ("B-2", "b@x"): 3,
    }
    assert {d["reason"] for d in result.dropped} == {"a task without answers", "skipped by the annotator", "no answer"}
    flat = mmtune.pairs_from_judgments(tmp_path / "min.json", tmp_path / "flat", item="sku")
    assert (flat.pairs, flat.judgments) == (1, 1)


def test_ordinal_agreement_and_the_case_without_any():
    grades = {n: {"a": n % 4, "b": (n % 4) if n % 5 else 0} for n in range(40)}
    table = [[g[who] for g in grades.values()] for who in "ab"]
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal")
    assert agreement(grades).alpha == pytest.approx(expected)
    assert agreement({1: {"a": 1}}).alpha is None and agreement({1: {"a": 1, "b": 1}}).alpha is None


def test_judged_pairs_join_a_catalog_and_go_through_pack(tmp_path):
    (tmp_path / "j.csv").write_text(TABLE)
    (tmp_path / "items.csv").write_text("id,title,licence\nB-1,brown boot,CC\nB-2,black boot,CC\nC-1,a bag,CC\n")
    mmtune.pairs_from_judgments(tmp_path / "j.csv", tmp_path / "out", catalog=tmp_path / "items.csv", candidate="title")
    first = pq.read_table(tmp_path / "out/pairs.parquet").to_pylist()[0]
    assert (first["positive"], first["negative"], first["licence"]) == ("brown boot", ["black boot"], "CC")
    packed = mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed", workers=1)
    assert not packed.rejected and packed.negatives.pairs == {"text->text": 1}


def test_bad_rows_are_counted_and_good_ones_are_kept(tmp_path):
    (tmp_path / "j.csv").write_bytes(
        TABLE.encode() + b"boot,B-9,lovely,ann\nboot,,match,ann\n,B-1,match,ann\nboot,B-1,1.5,ann\nboot,B-1,not,bob\nboot,B-"
    )
    result = mmtune.pairs_from_judgments(tmp_path / "j.csv", tmp_path / "out")
    reasons = {d["reason"]: d["count"] for d in result.dropped}
    assert reasons["an answer that is no grade; name it in --grades"] == 1 and reasons["no item"] == 1
    assert reasons["no query"] == 1 and reasons["a grade that is no whole number from 0"] == 1
    assert reasons["an earlier answer of the same annotator on the same pair"] == 1
    assert result.rows == 13 and result.judgments == 6


@pytest.mark.parametrize(
    "name, text, options, message",
    [
        ("j.csv", "a,b\n1,2\n", [], "no column is called query; name it by --query COL"),
        ("j.csv", TABLE, ["--query", "q"], "no column 'q' (--query)"),
        ("j.csv", TABLE, ["--grades", "match"], "--grades match: write ANSWER=GRADE"),
        ("j.csv", "query,item,grade\nboot,B-1,unsure\n", [], "no judgment can be used: 1 x the annotator was unsure"),
        ("j.json", '[{"id": 1, "da', [], "not valid JSON"),
        ("j.json", '{"tasks": []}', [], "not an export of Label Studio"),
        ("j.xml", "<x/>", [], "not a kind of source"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, capsys, name, text, options, message):
    (tmp_path / name).write_text(text)
    assert main(["pairs", "judgments", str(tmp_path / name), *options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "out").exists()


def test_the_command_prints_the_agreement(tmp_path, capsys):
    (tmp_path / "j.csv").write_text(TABLE)
    assert main(["pairs", "judgments", str(tmp_path / "j.csv"), "--out", str(tmp_path / "out")]) == 0
    assert "Krippendorff's alpha" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file"):
        mmtune.pairs_from_judgments(tmp_path / "no.csv", tmp_path / "x")
