"""Broken twins of click logs: one clear message, and what was good is kept."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError

NAMES = {"query": "q", "item": "sku", "position": "rank", "clicked": "clicked", "time": "ts", "session": "s"}
OPTIONS = {"position_bias": "none", "min_clicks": 1, "min_impressions": 1}
HEAD = b"q,sku,rank,clicked,ts,s\n"


def lines(n=12):
    return [
        f"boot,B-{i % 3},{i % 3 + 1},{int(i % 3 == 0)},2026-05-{i // 3 + 1:02d}T10:00:00,s{i // 3}\n".encode() for i in range(n)
    ]


def run(tmp_path, data, name="log.csv", **options):
    (tmp_path / name).write_bytes(data)
    result = mmtune.pairs_from_logs(tmp_path / name, tmp_path / "out", **NAMES, **{**OPTIONS, **options})
    pairs = pq.read_table(tmp_path / "out/pairs.parquet").to_pylist()
    return result, {(p["query"], p["item"]): (p["impressions"], p["clicks"]) for p in pairs}


def test_a_whole_log(tmp_path):
    result, pairs = run(tmp_path, HEAD + b"".join(lines()))
    assert pairs == {("boot", "B-0"): (4, 4)} and result.rows == 12 and not [d for d in result.dropped if d["unit"] == "rows"]


@pytest.mark.parametrize(
    "bad, reason",
    [
        (b"b\xfct,B-0,1,1,2026-05-09,s9\n", "not UTF-8 (--encoding latin-1 may read it)"),
        (b"boot,B-0,1\n", "a line with too few columns (cut off?)"),
        (b"boot,B-0,1,1,2026-05-09,s9,x,y\n", "a line with too many columns"),
        (b",B-0,1,1,2026-05-09,s9\n", "no query"),
        (b"boot,,1,1,2026-05-09,s9\n", "no item"),
        (b"boot,B-0,first,1,2026-05-09,s9\n", "the position is no whole number"),
        (b"boot,B-0,1.5,1,2026-05-09,s9\n", "the position is no whole number"),
        (b"boot,B-0,1,1,yesterday,s9\n", "the time cannot be read"),
        (b"boot,B-0,1,maybe,2026-05-09,s9\n", "clicked, cart or order is neither yes nor no"),
        (lines()[0], "the same item again in one result list"),
    ],
)
def test_a_bad_line_is_counted_and_the_others_are_kept(tmp_path, bad, reason):
    result, pairs = run(tmp_path, HEAD + b"".join(lines()) + bad * 2)
    assert pairs == {("boot", "B-0"): (4, 4)} and result.rows == 14
    assert {d["reason"]: d["count"] for d in result.dropped if d["unit"] == "rows"} == {reason: 2}


def test_spellings_of_one_query_and_numbers_as_ids_are_put_together(tmp_path):
    spellings = ["Red  Boot", " red boot ", "red\tboot", "RED BOOT"]
    rows = [
        f"{q},{i},1,1,2026-05-0{n + 1},s{n}\n"
        for n, (q, i) in enumerate(zip(spellings, ("7", "7.0", "7", "7.00"), strict=True))
    ]
    _, pairs = run(tmp_path, HEAD + "".join(rows).encode())
    assert pairs == {("red boot", "7"): (4, 4)}


def test_a_log_cut_in_its_last_line(tmp_path):
    result, pairs = run(tmp_path, (HEAD + b"".join(lines()))[:-30])
    assert pairs == {("boot", "B-0"): (4, 4)} and [d["count"] for d in result.dropped if d["unit"] == "rows"] == [1]


def test_other_encodings(tmp_path):
    text = (HEAD + b"".join(lines())).decode().replace("boot", "stövel")
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / encoding).mkdir()
        options = {} if encoding == "utf-16" else {"encoding": encoding}  # UTF-16 begins with its mark
        _, pairs = run(tmp_path / encoding, text.encode(encoding), **options)
        assert pairs == {("stövel", "B-0"): (4, 4)}
    with pytest.raises(DataError, match="no row can be used: 12 x not UTF-8"):
        run(tmp_path, text.encode("latin-1"))


def test_unsorted_times_change_nothing(tmp_path):
    for name, order in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, HEAD + b"".join(lines(60)[::order]), eval_fraction=0.3)
    a, b = ((tmp_path / n / "out/pairs.parquet").read_bytes() for n in "ab")
    assert a == b


def test_json_lines_that_are_cut_or_no_json(tmp_path):
    rows = [
        dict(zip(("q", "sku", "rank", "clicked", "ts", "s"), line.decode().strip().split(","), strict=True)) for line in lines()
    ]
    data = "".join(json.dumps(r) + "\n" for r in rows) + "no json\n" + json.dumps(rows[0])[:20]
    result, pairs = run(tmp_path, data.encode(), "log.jsonl")
    assert pairs == {("boot", "B-0"): (4, 4)}
    assert [(d["reason"], d["count"]) for d in result.dropped if d["unit"] == "rows"] == [
        ("all columns are empty, or the line is not valid JSON", 2)
    ]


def test_a_half_written_part_of_a_parquet_log(tmp_path):
    names = ("q", "sku", "rank", "clicked", "ts", "s")
    rows = [dict(zip(names, line.decode().strip().split(","), strict=True)) for line in lines()]
    (tmp_path / "log").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log/a.parquet")
    whole = (tmp_path / "log/a.parquet").read_bytes()
    (tmp_path / "log/b.parquet").write_bytes(whole[: len(whole) // 2])
    result = mmtune.pairs_from_logs(tmp_path / "log", tmp_path / "out", **NAMES, **OPTIONS)
    assert result.pairs == 1 and result.rows == 12
    [cut] = [d for d in result.dropped if d["unit"] == "files"]
    assert (cut["reason"], cut["examples"]) == ("not a whole Parquet file", ["b.parquet"])
    with pytest.raises(DataError, match="not a whole Parquet file; was it written only in part"):
        mmtune.pairs_from_logs(tmp_path / "log/b.parquet", tmp_path / "other", **NAMES)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--query", "nothing"], "no column 'nothing' (--query); it has q, sku, rank, clicked, ts, s"),
        (["--clicked", ""], "name the column that says what was clicked"),
        (["--position-bias", "much"], "--position-bias much: must be estimate, none, or the exponent"),
        (["--position-bias", "estimate"], "no clicked item of a query was shown at two ranks; give it by --position-bias"),
        (["--split-time", "soon"], "--split-time soon: not a time such as"),
        (["--eval-fraction", "2"], "--eval-fraction 2.0: must be from 0 to below 1"),
        (["--memory", "plenty"], "--memory plenty: use a size"),
        (["--min-clicks", "0"], "--min-clicks 0: must be at least 1"),
        (["--catalog", "no.csv"], "no.csv: no such file"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, capsys, options, message):
    (tmp_path / "log.csv").write_bytes(HEAD + b"".join(lines()))
    given = {"--query": "q", "--item": "sku", "--position": "rank", "--clicked": "clicked", "--time": "ts", "--session": "s"}
    given |= {"--position-bias": "none", "--min-clicks": "1"} | dict([options])
    command = ["pairs", "logs", str(tmp_path / "log.csv"), *(x for pair in given.items() for x in pair)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "out").exists()


def test_no_log_at_all(tmp_path):
    for data, name, message in (
        (HEAD, "log.csv", "no row can be used: it has no rows"),
        (b"", "log.csv", "log.csv"),
        (b"x", "log.xlsx", "not a kind of log"),
    ):
        with pytest.raises(DataError, match=message):
            run(tmp_path, data, name)
    with pytest.raises(DataError, match="no such file"):
        mmtune.pairs_from_logs(tmp_path / "nothing", tmp_path / "out", **NAMES)
