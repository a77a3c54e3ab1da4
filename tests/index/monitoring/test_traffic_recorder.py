"""The counts of one server process: what is written when, what waits, and what is never written."""

import numpy as np
import pytest
from safetensors.numpy import save

from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.monitoring import traffic_recorder
from mmtune.index.monitoring.gate_queries import fourier_features, kernel_frequencies, path_of, read_gate_queries
from mmtune.index.monitoring.traffic_history import TrafficHistory
from mmtune.index.monitoring.traffic_recorder import TrafficRecorder
from mmtune.runtime.files import write_bytes, write_json

NOON = 1_796_040_000.0 - 1_796_040_000 % 86_400 + 43_200


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def layout(tmp_path):
    made = CollectionLayout(tmp_path / "coll", create=True)
    write_json(made.directory("v1") / "x.json", {})
    return made


def vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def store_gate(layout, seed: int = 1) -> None:
    some = vectors(30, seed)
    frequencies = kernel_frequencies(some, seed)
    features = fourier_features(some, frequencies).astype(np.float32)
    arrays = {"text/scores": np.full(30, 0.3, np.float32), "text/features": features, "text/frequencies": frequencies}
    write_bytes(path_of(layout, "v1"), save(arrays, {"at": "now", "source": "held", "fingerprint": "x"}))


def summed(layout):
    return [c for c in TrafficHistory(layout.path).read() if c.features is not None]


def test_sums_of_features_are_of_five_queries_or_more(layout):
    store_gate(layout)
    clock, queries = Clock(), vectors(9)
    recorder = TrafficRecorder(layout, TrafficHistory(layout.path), clock)
    for n in range(4):
        recorder.searched("v1", "text", 0.01, 5, 0.3, queries[n])
    recorder.flush()
    assert not summed(layout) and sum(c.searches for c in TrafficHistory(layout.path).read()) == 4
    clock.now += 600
    recorder.searched("v1", "text", 0.01, 5, 0.3, queries[4])
    recorder.flush()
    gate = read_gate_queries(layout, "v1").samples["text"]
    (one,) = summed(layout)
    assert one.embedded == 5 and one.key.start == NOON + 600 and one.key.reference == gate.id
    assert np.abs(one.features - gate.features_of(queries[:5]).sum(0)).max() < 0.003
    recorder.searched("v1", "image", 0.01, 5, 0.3, queries[5])  # no gate's queries of that modality
    recorder.searched("v1", "text", 0.01, 5, 0.3, None)  # an embedding that is not known
    recorder.searched("v1", "text", 0.01, 5, 0.3, queries[6])
    recorder.flush(last=True)
    assert len(summed(layout)) == 1 and sum(c.searches for c in TrafficHistory(layout.path).read()) == 8


def test_another_reference_is_noticed(layout):
    recorder = TrafficRecorder(layout, TrafficHistory(layout.path), Clock())
    queries = vectors(15)
    for seed in (None, 1, 2):
        if seed is not None:
            store_gate(layout, seed)
            recorder._gates = {v: (-1.0, g) for v, (_, g) in recorder._gates.items()}  # a file system with coarse times
            recorder.flush()
        for q in queries[:5]:
            recorder.searched("v1", "text", 0.01, 5, 0.3, q)
    recorder.flush()
    assert len({c.key.reference for c in summed(layout)}) == 2
    path_of(layout, "v1").write_bytes(b"damaged")
    recorder._gates.clear()
    recorder.searched("v1", "text", 0.01, 5, 0.3, queries[0])  # a damaged file costs no search
    recorder.flush()


def test_counts_wait_while_the_disk_is_full(layout, monkeypatch):
    clock = Clock()
    recorder = TrafficRecorder(layout, TrafficHistory(layout.path), clock)
    real = TrafficHistory.append
    monkeypatch.setattr(TrafficHistory, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr(traffic_recorder, "MAX_WAITING", 3)
    for _ in range(5):
        recorder.searched("v1", "text", 0.01, 0, None)
        recorder.failed(503)
        with pytest.raises(OSError, match="No space"):
            recorder.flush()
        clock.now += 300
    monkeypatch.setattr(TrafficHistory, "append", real)
    recorder.flush()
    counts = TrafficHistory(layout.path).read()
    assert recorder.lost == 7 and len(counts) == 3 and counts[-1].key.start == NOON + 1200
    assert sum(c.searches for c in counts) + sum(c.errors for c in counts) == 3


def test_failures_belong_to_the_version_that_answered_last(layout):
    recorder = TrafficRecorder(layout, TrafficHistory(layout.path), Clock())
    recorder.failed(503)
    recorder.searched("v1", "item", 0.5, 3, 0.9)
    recorder.failed(500)
    recorder.failed(429)
    recorder.flush()
    found = {(c.key.version, c.key.by): (c.searches, c.empty, c.errors, c.refused) for c in TrafficHistory(layout.path).read()}
    assert found == {("", ""): (0, 0, 1, 0), ("v1", "item"): (1, 0, 0, 0), ("v1", ""): (0, 0, 1, 1)}
