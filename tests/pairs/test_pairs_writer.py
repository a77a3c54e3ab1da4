"""The directory that `mmtune pairs` writes: whole or not at all, and counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.errors import DataError
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.relevance.judgments import read_qrels


def write(out, source, arguments=None, **options):
    with PairsWriter(
        out, "labels", arguments or {}, [source_identity(source)], columns={"group": pa.string()}, **options
    ) as writer:
        if writer.finished is not None:
            return writer.finished
        writer.add("red boot", "B-17", 3, group="boots")
        writer.add("bag", "C-1", 1, 0.5)
        writer.judge("red boot", "B-17", 3)
        for line in range(7):
            writer.drops.add("no caption", f"line {line}")
        return writer.publish(9)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    return tmp_path / "s.csv"


def test_the_directory_has_pairs_judgments_and_counts(tmp_path, source):
    result = write(tmp_path / "out", source)
    assert (result.pairs, result.judgments, result.rows) == (2, 1, 9)
    assert pq.read_table(tmp_path / "out/pairs.parquet").to_pylist() == [
        {"query": "red boot", "item": "B-17", "grade": 3, "weight": 1.0, "group": "boots"},
        {"query": "bag", "item": "C-1", "grade": 1, "weight": 0.5, "group": None},
    ]
    assert read_qrels(tmp_path / "out/judgments.jsonl") == {"red boot": {"B-17": 3}}
    [dropped] = json.loads((tmp_path / "out/dropped.json").read_text())["dropped"]
    assert dropped == {
        "unit": "rows",
        "reason": "no caption",
        "count": 7,
        "examples": ["line 0", "line 1", "line 2", "line 3", "line 4"],
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == result.files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.csv"]


def test_the_same_command_again_finds_the_directory_complete_and_another_one_needs_overwrite(tmp_path, source):
    first = write(tmp_path / "out", source)
    stamp = (tmp_path / "out/pairs.json").stat().st_mtime_ns
    assert write(tmp_path / "out", source) == first and (tmp_path / "out/pairs.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="--overwrite"):
        write(tmp_path / "out", source, {"x": 1})
    source.write_text("other")
    with pytest.raises(DataError, match="--overwrite"):
        write(tmp_path / "out", source)
    assert write(tmp_path / "out", source, overwrite=True).pairs == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.csv"]


def test_a_foreign_directory_is_left_alone(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(DataError, match="choose another --out"):
        write(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "x"


def test_what_an_interrupted_command_left_is_used_by_the_same_command_alone(tmp_path, source):
    def interrupted(arguments):
        with PairsWriter(tmp_path / "out", "labels", arguments, [source_identity(source)]) as writer:
            seen = sorted(p.name for p in writer.work.iterdir())
            (writer.work / "cache").write_text("1")
            raise KeyboardInterrupt
        return seen

    for arguments, expected in (({}, []), ({}, ["cache"]), ({"x": 1}, [])):
        with PairsWriter(tmp_path / "out", "labels", arguments, [source_identity(source)]) as writer:
            assert sorted(p.name for p in writer.work.iterdir()) == expected
        with pytest.raises(KeyboardInterrupt):
            interrupted(arguments)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_write_one_directory(tmp_path, source):
    with PairsWriter(tmp_path / "out", "labels", {}, [source_identity(source)]):
        with pytest.raises(DataError, match="another process"):
            PairsWriter(tmp_path / "out", "labels", {}, []).__enter__()
