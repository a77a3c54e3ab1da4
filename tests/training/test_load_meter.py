"""The note of training's progress: waiting, bytes read and decoded per second, cache hits."""

import re
import time

from mmtune.contracts import LoadTimes
from mmtune.runtime.progress import Progress
from mmtune.training.checkpoint import TrainerState
from mmtune.training.load_meter import LoadMeter


def test_the_note_says_how_much_is_read_and_how_fast_a_thread_decodes():
    meter = LoadMeter()
    state = TrainerState(step=2, seconds=4.0, wait_seconds=1.0)
    assert meter.note(state, 0.5) == "epoch 1 loss 0.500 waiting 25%"  # nothing was loaded yet
    for _ in range(2):
        meter.add(LoadTimes(read=0.1, decode=0.25, size=3_000_000, values=10, cached=4))
        time.sleep(0.05)
    note = meter.note(state, 0.5)
    # 6 MB in half a second of decoding; by the clock only what came after the first batch counts
    assert "decoding 12.0 MB/s a thread" in note and "cache hits 40%" in note
    assert 10 < float(re.search(r"reading ([\d.]+) MB/s", note)[1]) <= 60


def test_values_from_the_cache_are_neither_read_nor_decoded():
    meter = LoadMeter()
    meter.add(LoadTimes(values=10, cached=10))
    assert meter.note(TrainerState(), 0.5) == "epoch 1 loss 0.500 waiting 0% cache hits 100%"


def test_an_unknown_total_is_not_shown_as_zero(capsys, monkeypatch):
    monkeypatch.setattr("mmtune.runtime.progress.LINE_SECONDS", 0.0)
    with Progress("embed", 0) as progress:
        progress.advance(1200)
    assert re.fullmatch(r"embed: 1200 [\d.]+ rows/s\n", capsys.readouterr().err)
    with Progress("embed", 2400) as progress:
        progress.advance(1200)
    assert re.fullmatch(r"embed: 1200/2400 [\d.]+ rows/s \S+ left\n", capsys.readouterr().err)
