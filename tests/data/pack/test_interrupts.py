"""Ctrl-C at any instruction of writing shards leaves no temporary file, and the next run ends with the same bytes."""

import os
from pathlib import Path

import pytest

from mmtune.data.pack import shard_writer, split_writer
from mmtune.data.pack.columns import PackRow
from mmtune.data.pack.resume_journal import PackJournal
from mmtune.runtime import files
from tests.support.data_helpers import tree
from tests.support.interrupts import interrupted_at_every_point

IDENTITY = {"schema": 1}


def rows() -> list[PackRow]:
    return [
        PackRow(n, "", f"row {n}", values={"text": b"x" * 700}, extensions={"text": "txt"}, stamp="1:1") for n in range(1, 4)
    ]


def write_shards(out: Path) -> None:
    """Two shards; as `pack` does, on any exception the unfinished one is dropped."""
    with PackJournal(out, IDENTITY) as journal:
        writer = split_writer.SplitWriter(journal, "", shard_size=6000)
        try:
            for row in rows():
                row.settled = writer.is_settled(row.number)
                writer.add(row)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        journal.rewrite_sorted(writer.entries)


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_instruction_of_writing_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    write_shards(tmp_path / "whole")
    want = tree(tmp_path / "whole", hidden=True)
    assert sum(name.endswith(".tar") for name in want) == 2
    out, points = tmp_path / "out", 0
    for points in interrupted_at_every_point(lambda: write_shards(out), [files, shard_writer, split_writer]):
        left = [p.name for p in out.rglob("*.tar") if not p.name.startswith("shard-")]
        assert not left, f"interrupted before instruction {points}"
        if points % 25 == 0:  # from time to time resume what the interrupt left
            write_shards(out)
            assert tree(out, hidden=True) == want
        for path in [p for p in out.rglob("*") if p.is_file()]:
            path.unlink()
    assert points > 500
    assert tree(out, hidden=True) == want
