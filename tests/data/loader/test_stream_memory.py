"""The memory of the shuffle buffers of streamed training: rows whose metadata are much larger than their values."""

import gc
import hashlib
import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from mmtune.data.loader import stream_loader
from mmtune.data.loader.stream_lanes import Lane, LaneOptions
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow
from tests.data.loader.test_stream_loader import ids, loader, shards
from tests.support.data_helpers import picture

ROWS, NOTE = 200, 20_000


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> str:
    """Rows of some hundred bytes, whose numbers have as many digits as a page has letters, beside a note of that length."""
    folder = tmp_path_factory.mktemp("stream-memory") / "wordy"
    folder.mkdir()
    for k in range(4):
        with webdataset.TarWriter(str(folder / f"{k:03d}.tar")) as writer:
            for i in range(k * ROWS // 4, (k + 1) * ROWS // 4):
                meta = {"id": f"r{i}", "price": "0" * NOTE + str(i), "note": "é" * NOTE}
                writer.write({"__key__": f"{i:06d}", "png": picture(i, size=8), "txt": f"caption {i}", "json": meta})
    return str(folder)


def resident(row: StreamedRow) -> int:
    """The memory of a row as the interpreter counts it."""
    parts = [row, row.id, row.values, row.labels, row.place, row.meta, *row.values.values(), *row.labels.values(), *row.place]
    return sum(map(sys.getsizeof, parts))


def lane(spec: str, buffer_bytes: int, columns: tuple[str, ...]) -> Lane:
    sets = StreamedSets([spec], [1.0], ShardCache(0))
    options = LaneOptions(0, 0, 10_000, buffer_bytes, lambda row: True, columns=columns)
    return Lane(0, dict(enumerate(sets.epoch_shards(0, 0))), sets, options)


def test_metadata_that_is_kept_counts_and_the_buffer_stays_within_its_limit(wordy):
    limit = 500_000
    reading = lane(wordy, limit, ("price",))
    seen = []
    while row := reading.draw(1):
        buffer = reading._buffer
        assert sum(r.size for r in buffer) <= limit and len(buffer) <= limit // NOTE
        assert all(0.8 < r.size / resident(r) < 1.25 for r in (*buffer, *row))
        seen += [r.id for r in row]
        assert row[0].numbers({"price": "key"}) == [float(row[0].id[1:])]
    assert sorted(seen) == sorted(f"r{i}" for i in range(ROWS)) and seen != sorted(seen, key=lambda i: int(i[1:]))


def test_metadata_that_no_loss_uses_is_not_kept(wordy):
    def buffered(columns: tuple[str, ...]) -> Iterator[int]:
        gc.collect()
        tracemalloc.start()
        reading = lane(wordy, 1 << 30, columns)
        reading.draw(1)
        assert len(reading._buffer) == ROWS - 1
        yield tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()

    without, used = next(buffered(())), next(buffered(("price",)))
    assert without < 2_000_000 and used > ROWS * NOTE * 0.9  # both columns together are 12 MB


def test_a_short_buffer_has_every_row_once_resumes_and_is_the_same_for_any_reader(wordy, monkeypatch):
    monkeypatch.setattr(stream_loader, "BUFFER_BYTES", 800_000)
    columns = {"price": "objective[0].weights"}
    stream = loader(wordy, columns=columns, shuffle_buffer=10_000)
    iterator = stream.epoch(0)
    begun = [next(iterator) for _ in range(6)]
    state = json.loads(json.dumps(stream.state(6)))
    assert all(len(x["buffer"].split()) <= 200_000 // NOTE for x in state["states"].values())
    iterator.close()
    rest = list(loader(wordy, columns=columns, shuffle_buffer=10_000, workers=3).epoch(0, 6, state))
    batches = ids(begun + rest)
    assert sorted(i for b in batches for i in b) == sorted(f"r{i}" for i in range(ROWS))
    assert batches == ids(list(loader(wordy, columns=columns, shuffle_buffer=10_000).epoch(0)))
    assert all(b.columns["price"].tolist() == [float(i[1:]) for i in b.ids] for b in rest)


def test_the_order_of_a_seed_is_that_of_earlier_versions_where_the_limit_is_not_reached(tmp_path: Path):
    spec = shards(tmp_path / "same", [40, 25, 60, 3])
    order = [
        "|".join(i for b in loader(spec, seed=seed, columns=c).epoch(1) for i in b.ids)
        for seed, c in ((3, None), (4, {"price": "k"}))
    ]
    assert [hashlib.sha256(o.encode()).hexdigest()[:16] for o in order] == ["1b065fe0e029f40c", "dc9f4fa13d7d80b8"]
