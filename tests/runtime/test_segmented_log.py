"""Logs in segments: bounded, complete, readable while other processes append and rename."""

import json
import multiprocessing

import pytest

from mmtune.runtime import segmented_log
from mmtune.runtime.files import append_jsonl
from mmtune.runtime.segmented_log import SegmentedLog, log_files, next_segment, read_segments


def test_a_full_file_becomes_a_segment_and_the_oldest_goes(tmp_path):
    dropped = []
    log = SegmentedLog(tmp_path / "x.jsonl", max_bytes=100, segments=2, dropping=lambda p: dropped.append(p.read_bytes()))
    for n in range(40):
        log.append({"n": n})
    files = log_files(tmp_path / "x.jsonl")
    assert len(files) <= 3 and sum(p.stat().st_size for p in files) <= 3 * 120
    kept = [x["n"] for x in log.read()]
    assert kept == list(range(kept[0], 40)) and kept[0] > 0
    gone = [json.loads(line)["n"] for part in dropped for line in part.split(b"\n") if line]
    assert gone + kept == list(range(40))  # nothing is lost in between, and the callback saw what was deleted


def test_the_last_bytes_are_read_across_segments(tmp_path):
    log = SegmentedLog(tmp_path / "x.jsonl", max_bytes=60, segments=100)
    for n in range(30):
        log.append({"n": 100 + n})  # 11 bytes a line
    assert [x["n"] for x in log.read(55)] == list(range(125, 130))
    assert [x["n"] for x in log.read(10**6)] == list(range(100, 130))
    assert log.read(1) == []


def test_other_files_are_no_segments(tmp_path):
    path = tmp_path / "shadow.jsonl"
    for name in ("shadow.old.jsonl", "shadow.jsonl.000001", "shadow.12.jsonl", "shadow2.000001.jsonl"):
        append_jsonl(tmp_path / name, {"n": 1})
    assert log_files(path) == [] and next_segment(path).name == "shadow.000001.jsonl"
    append_jsonl(tmp_path / "shadow.999999.jsonl", {"n": 2})
    append_jsonl(tmp_path / "shadow.1000000.jsonl", {"n": 3})
    append_jsonl(path, {"n": 4})
    assert [x["n"] for x in read_segments(path)] == [2, 3, 4] and next_segment(path).name == "shadow.1000001.jsonl"


def write_lines(path, worker, count):
    log = SegmentedLog(path, max_bytes=2000, segments=1000)
    for n in range(count):
        log.append({"worker": worker, "n": n})


def test_several_processes_lose_no_line(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_lines, args=(tmp_path / "x.jsonl", w, 300)) for w in range(3)]
    for w in workers:
        w.start()
    while any(w.is_alive() for w in workers):
        read_segments(tmp_path / "x.jsonl")  # a reader meanwhile gets no error
    lines = read_segments(tmp_path / "x.jsonl")
    assert sorted((x["worker"], x["n"]) for x in lines) == [(w, n) for w in range(3) for n in range(300)]
    assert len(log_files(tmp_path / "x.jsonl")) > 5


def test_a_read_starts_again_when_the_file_is_renamed_under_it(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    append_jsonl(path, {"n": 1})
    real, calls = segmented_log.read_jsonl_log, []

    def renamed_under_it(file, last_bytes=None):
        rows = [] if not calls else real(file, last_bytes)  # the first read sees a new, empty file
        if not calls:
            path.rename(next_segment(path))
            append_jsonl(path, {"n": 2})
        calls.append(file)
        return rows

    monkeypatch.setattr(segmented_log, "read_jsonl_log", renamed_under_it)
    assert [x["n"] for x in read_segments(path)] == [1, 2]


def test_a_full_disk_keeps_the_file(tmp_path, monkeypatch):
    log = SegmentedLog(tmp_path / "x.jsonl", max_bytes=10, segments=2)
    monkeypatch.setattr(segmented_log.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for n in range(5):
        log.append({"n": n})
    assert [x["n"] for x in log.read()] == list(range(5))


@pytest.mark.parametrize("torn", [b'{"n": 1', b'{"n": 1}'])
def test_a_killed_writer_leaves_the_log_readable(tmp_path, torn):
    (tmp_path / "x.jsonl").write_bytes(b'{"n": 0}\n' + torn)
    log = SegmentedLog(tmp_path / "x.jsonl", max_bytes=20, segments=5)
    log.append({"n": 2})
    log.append({"n": 3})
    assert [x["n"] for x in log.read()] == ([0, 2, 3] if torn.endswith(b"1") else [0, 1, 2, 3])
