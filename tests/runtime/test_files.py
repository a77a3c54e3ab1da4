"""Files appear whole or not at all, whenever Ctrl-C falls; logs of JSON lines survive killed writers and odd characters."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmtune.errors import DataError
from mmtune.runtime import files
from tests.support.interrupts import interrupted_at_every_point

EXECUTED = [files, tempfile, contextlib]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # hundreds of calls


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_on_success_and_untouched_on_an_error(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), files.atomic_open(tmp_path / "a") as f:
        f.write(b"half")
        raise RuntimeError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with files.atomic_open(tmp_path / "deep" / "a") as f:
        f.write(b"new")
    assert (tmp_path / "deep" / "a").read_text() == "new"
    umask = os.umask(0o027)
    files.write_text(tmp_path / "b", "")
    os.umask(umask)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


def test_ctrl_c_at_any_instruction_leaves_no_temporary_file(tmp_path):
    def work():
        with files.atomic_open(tmp_path / "a.tar") as f:
            f.write(b"new")

    files.write_text(tmp_path / "a.tar", "old")
    points = 0
    for points in interrupted_at_every_point(work, EXECUTED):
        assert names(tmp_path) == ["a.tar"], f"interrupted before instruction {points}"
        assert (tmp_path / "a.tar").read_text() in ("old", "new")
    assert points > 50 and (tmp_path / "a.tar").read_text() == "new"


def test_ctrl_c_at_any_instruction_leaves_one_whole_directory(tmp_path):
    def work():
        with files.atomic_dir(tmp_path / "d") as d:
            (d / "x").write_text("new")
            (d / "y").write_text("new")

    points = 0
    for existed in (False, True):
        for points in interrupted_at_every_point(work, EXECUTED):
            found = names(tmp_path)
            assert found == ["d"] or (found == [] and not existed), f"interrupted before instruction {points}"
            if found:
                assert names(tmp_path / "d") == ["x", "y"]
                if not existed:
                    files.shutil.rmtree(tmp_path / "d")
        assert points > 50
        assert names(tmp_path / "d") == ["x", "y"]


def test_a_forked_child_does_not_remove_its_parents_file(tmp_path):
    with files.atomic_open(tmp_path / "a") as f:
        f.write(b"1")
        child = multiprocessing.get_context("fork").Process(target=lambda: None)
        child.start()
        child.join()
        f.write(b"2")
    assert (tmp_path / "a").read_bytes() == b"12"


def test_only_newlines_end_a_line(tmp_path):
    rows = [{"x": "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"}, {"y": [1, None]}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows
    for row in rows:
        files.append_jsonl(tmp_path / "log.jsonl", row)
    assert files.read_jsonl_log(tmp_path / "log.jsonl") == rows
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_line_costs_itself_only(tmp_path, cut):
    log = tmp_path / "log.jsonl"
    files.append_jsonl(log, {"n": 1})
    files.append_jsonl(log, {"name": "ü"})
    log.write_bytes(log.read_bytes()[:-cut])
    rest = [{"n": 1}, {"name": "ü"}] if cut == 1 else [{"n": 1}]  # only the newline is missing
    assert files.read_jsonl_log(log) == rest
    files.append_jsonl(log, {"n": 3})
    files.append_jsonl(log, {"n": 4})
    assert files.read_jsonl_log(log) == [*rest, {"n": 3}, {"n": 4}]


@pytest.mark.parametrize("last_bytes", range(0, 40))
def test_the_end_of_a_log_is_its_last_whole_lines(tmp_path, last_bytes):
    log = tmp_path / "log.jsonl"
    for n in range(5):
        files.append_jsonl(log, {"n": n})  # 9 bytes each
    assert files.read_jsonl_log(log, last_bytes) == [{"n": n} for n in range(5)][5 - min(5, last_bytes // 9) :]


@pytest.mark.parametrize("room", range(0, 24, 3))
def test_a_full_disk_is_an_error_and_costs_that_line_only(tmp_path, room):
    """RLIMIT_FSIZE stops a write where a full disk would, in the middle of a line."""
    log = tmp_path / "log.jsonl"
    files.append_jsonl(log, {"n": 1, "x": "before"})
    code = (
        "import resource, signal, sys; from mmtune.runtime.files import append_jsonl\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({log.stat().st_size + room},) * 2)\n"
        f"try: append_jsonl({str(log)!r}, {{'n': 2, 'x': 'while it is full'}})\n"
        "except OSError: sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 7
    assert files.read_jsonl_log(log) == [{"n": 1, "x": "before"}]
    files.append_jsonl(log, {"n": 3})
    files.append_jsonl(log, {"n": 4})
    assert [line["n"] for line in files.read_jsonl_log(log)] == [1, 3, 4]


def test_a_torn_line_is_cut_off_under_a_lock(tmp_path):
    log = tmp_path / "log.jsonl"
    files.truncate_torn_line(log)
    log.write_bytes(b'{"n": 1}\n{"n": ')
    files.truncate_torn_line(log)
    files.append_jsonl(log, {"n": 2})
    assert [json.loads(line) for line in log.read_text().split("\n")[:-1]] == [{"n": 1}, {"n": 2}]


def test_other_damage_names_its_line(tmp_path):
    path = tmp_path / "log.jsonl"
    assert files.read_jsonl_log(path) == []
    path.write_bytes(b'{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(DataError, match="log.jsonl line 2: not valid JSON"):
        files.read_jsonl_log(path)
    path.write_bytes(b'{"n": 1}\n{"n": ')
    with pytest.raises(DataError, match="log.jsonl line 2: not valid JSON"):
        files.read_jsonl(path)
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": 2}')  # as an editor may save it
    assert files.read_jsonl(path) == [{"n": 1}, {"n": 2}]


def test_reading_at_an_offset_works_without_pread(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    fd = files.open_for_read_at(tmp_path / "a")
    want = [files.read_at(fd, 3, at) for at in (97, 0, 50, 99)]
    monkeypatch.delattr(os, "pread")
    assert [files.read_at(fd, 3, at) for at in (97, 0, 50, 99)] == want == [b"abc", bytes(range(3)), b"234", b"c"]
    os.close(fd)


def test_a_full_disk_is_recognised_in_every_librarys_words(tmp_path):
    import sqlite3

    from mmtune.runtime.files import is_disk_full

    db = sqlite3.connect(tmp_path / "a.sqlite")
    db.execute("pragma max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as full:
        db.execute("create table t(x)")
        db.execute("insert into t values (zeroblob(100000))")
    assert is_disk_full(full.value)
    if Path("/dev/full").exists():
        with pytest.raises(OSError) as device, open("/dev/full", "wb", buffering=0) as f:
            f.write(b"x")
        assert is_disk_full(device.value)
        with pytest.raises(RuntimeError) as chained:
            try:
                raise device.value
            except OSError as e:
                raise RuntimeError("unexpected pos 64 vs 0") from e
        assert is_disk_full(chained.value)
    assert not is_disk_full(RuntimeError("unexpected pos")) and not is_disk_full(FileNotFoundError("a"))
