"""The history of the traffic: sums that several processes append, killed and on a full disk, in files of bounded size."""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter

import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.index.monitoring import traffic_history
from mmtune.index.monitoring.traffic_counts import (
    TrafficCounts,
    TrafficKey,
    latency_bin,
    latency_quantile,
    merge,
    score_bin,
    share_below,
)
from mmtune.index.monitoring.traffic_history import DAY, HOUR, TrafficHistory

NOON = 1_796_040_000 - 1_796_040_000 % DAY + DAY // 2
"""Noon of a day in UTC."""


def counts(start: float, version: str = "v1", by: str = "text", **values) -> TrafficCounts:
    return TrafficCounts(TrafficKey(int(start), version, by, values.pop("reference", "")), **values)


def test_bins_and_quantiles():
    assert [score_bin(s) for s in (0.29, 0.2899, -1.0, 1.0, 1.0001, 0.0, -0.001)] == [29, 28, -100, 99, 99, 0, -1]
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(-3, 0.7, 5000)
    histogram = Counter(latency_bin(s) for s in seconds.tolist())
    for q in (0.5, 0.95, 0.99):
        assert latency_quantile(histogram, q) == pytest.approx(1000 * np.quantile(seconds, q), rel=0.03)
    assert latency_quantile({}, 0.5) is None
    assert share_below({10: 3, 20: 1}, 20) == 0.75 and share_below({}, 20) == 0


def test_a_line_is_read_as_it_was_written():
    one = counts(NOON, searches=3, empty=1, scores=Counter({-5: 1, 31: 1}), latency=Counter({40: 3}))
    two = counts(NOON, reference="abc", embedded=7, features=np.array([1.5, -2.25]))
    for c in (one, two):
        back = TrafficCounts.from_line(json.loads(json.dumps(c.to_line())))
        assert back.to_line() == c.to_line() and back.key == c.key
    assert set(one.to_line()) == {"at", "version", "by", "searches", "empty", "scores", "ms"}


def test_merging_adds_up():
    parts = [counts(NOON + 300 * n, searches=n, scores=Counter({5: 1}), embedded=1, features=np.full(2, n)) for n in range(12)]
    (hour,) = merge(parts, HOUR)
    assert hour.searches == 66 and hour.scores == {5: 12} and hour.embedded == 12 and hour.features.tolist() == [66, 66]
    assert len(merge([*parts, counts(NOON, "v2")], HOUR)) == 2
    assert parts[0].features.tolist() == [0, 0]  # the parts are not changed


def append_many(path, worker, count):
    history = TrafficHistory(path, merge_bytes=3000)
    for n in range(count):
        history.append([counts(NOON + 300 * (n % 4), searches=1, scores=Counter({worker: 1}))], NOON)


def test_several_processes_append_without_loss_while_lines_are_merged(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(tmp_path, w, 120)) for w in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    merged = TrafficHistory(tmp_path).read()
    assert [c.key.start for c in merged] == [NOON + 300 * n for n in range(4)]
    assert sum((c.scores for c in merged), Counter()) == {w: 120 for w in range(4)} and sum(c.searches for c in merged) == 480
    (file,) = TrafficHistory(tmp_path).files()
    assert file.stat().st_size < 6000  # 480 lines take 50 kB


def append_for_ever(path):
    history = TrafficHistory(path, merge_bytes=2000)
    for n in range(10**9):
        history.append([counts(NOON, searches=1, latency=Counter({n % 200: 1}))], NOON)
        os.write(1, b".")


def test_kills_leave_a_history_that_is_read_and_continued(tmp_path):
    context = multiprocessing.get_context("fork")
    written = 0
    for round in range(4):
        reader, writer = os.pipe()
        worker = context.Process(target=lambda w=writer: (os.dup2(w, 1), append_for_ever(tmp_path)))
        worker.start()
        os.close(writer)
        time.sleep(0.3 + 0.05 * round)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        confirmed = 0
        while chunk := os.read(reader, 65_536):
            confirmed += len(chunk)
        os.close(reader)
        total = sum(c.searches for c in TrafficHistory(tmp_path).read())
        assert written + confirmed <= total <= written + confirmed + 1  # the last append may not have been confirmed
        written = total
    assert written > 20


def test_a_torn_line_is_removed_and_not_counted_twice(tmp_path):
    history = TrafficHistory(tmp_path)
    history.append([counts(NOON, searches=5)], NOON)
    (file,) = history.files()
    file.write_bytes(file.read_bytes() + file.read_bytes()[:-1])  # a whole line but its end: its writer was told that it failed
    assert sum(c.searches for c in history.read()) == 10
    history.append([counts(NOON, searches=1)], NOON)
    assert sum(c.searches for c in history.read()) == 6


def test_on_a_full_disk_all_or_nothing_is_appended(tmp_path):
    history = TrafficHistory(tmp_path)
    history.append([counts(NOON, searches=5)], NOON)
    (file,) = history.files()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 120, hard))
    try:
        with pytest.raises(OSError, match="File too large|No space left"):
            history.append([counts(NOON + DAY, searches=2), counts(NOON, searches=3), counts(NOON, "v2", searches=4)], NOON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [c.searches for c in history.read()] == [5]
    history.append([counts(NOON, "v2", searches=4)], NOON)
    assert [(c.key.version, c.searches) for c in history.read()] == [("v1", 5), ("v2", 4)]


def test_old_days_become_hours_and_are_deleted(tmp_path):
    history = TrafficHistory(tmp_path)
    for day in range(-40, 1):
        history.append([counts(NOON + day * DAY + 300 * n, searches=1) for n in range(24)], NOON + day * DAY)
    days = {p.name[:10]: len(p.read_bytes().split(b"\n")) - 1 for p in history.files()}
    assert len(days) == 36  # today and 35 before
    assert list(days.values()) == [2] * 34 + [24, 24]  # 12:00 to 14:00, by hours; the last two days by five minutes
    assert sum(c.searches for c in history.read()) == 36 * 24
    assert sum(c.searches for c in history.read(NOON, NOON + 600)) == 2


def test_the_files_are_bounded(tmp_path):
    history = TrafficHistory(tmp_path, max_bytes=4000)
    for day in range(30):
        for n in range(5):
            history.append([counts(NOON + day * DAY + HOUR * n, searches=1)], NOON + day * DAY)
    assert sum(p.stat().st_size for p in history.files()) <= 4500 and len(history.files()) > 2
    assert history.files()[-1].name == max(p.name for p in history.files())


def test_a_damaged_file_is_named_and_blocks_nothing(tmp_path):
    history = TrafficHistory(tmp_path)
    history.append([counts(NOON - 3 * DAY, searches=1)], NOON)
    (file,) = history.files()
    for damage in (b'{"at": "2026-13-45", "version": "v1", "by": "x"}\n', b'{"searches": 1}\n', b"gibberish\n"):
        file.write_bytes(damage + b'{"at": "x"}\n')
        TrafficHistory(tmp_path).append([counts(NOON, searches=1)], NOON)
        with pytest.raises(DataError, match=file.name):
            history.read()
    assert sum(c.searches for c in history.read(NOON)) == 3


def test_the_keeping_time_covers_a_month():
    assert traffic_history.KEEP_DAYS >= 31
