"""Streamed batches: every row once, the same for any number of processes and threads, resumable, uneven shards, bad values."""

import json
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from mmtune.contracts import Batch
from mmtune.data.loader.stream_batches import divide_evenly
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError, DataWarning
from mmtune.recipe.train_block import TrainConfig
from mmtune.runtime.distributed import Processes
from mmtune.training.checkpoint import TrainerState
from mmtune.training.epochs import StreamedEpochs
from tests.support.data_helpers import picture


class Length:
    """A preprocessing that keeps a trace of the decoded value and of the random numbers."""

    def __call__(self, signal, rng=None):
        size = signal.size[0] if hasattr(signal, "size") else len(signal)
        return {"x": torch.tensor([float(size), rng.random() if rng else 0.0])}

    def is_deterministic(self, signal) -> bool:
        return False

    def collate(self, items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {"x": torch.stack([i["x"] for i in items])}


def shards(folder: Path, counts: Sequence[int], bad: Sequence[int] = (), texts: int = 7) -> str:
    """One tar for each count, rows numbered through; captions repeat; groups of three."""
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for k, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{k:03d}.tar")) as writer:
            for _ in range(count):
                image = b"not a picture" if n in bad else picture(n, size=8)
                meta = {"id": f"{folder.name}-{n}", "group": n // 3, "price": n / 4} | ({"sold": n} if n % 3 else {})
                writer.write({"__key__": f"{n:06d}", "png": image, "txt": f"caption {n % texts}", "json": meta})
                n += 1
    return str(folder)


def loader(*specs: str, weights: Sequence[float] = (), **options) -> StreamLoader:
    sets = StreamedSets(list(specs), list(weights) or [1.0] * len(specs), ShardCache(0))
    fixed = {"pairs": [("image", "text")], "batch_size": 8, "shuffle_buffer": 40, **options}
    return StreamLoader(sets, {"image": Length(), "text": Length()}, {}, **fixed)


def ids(batches: Sequence[Batch]) -> list[list[str]]:
    return [b.ids for b in batches]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> str:
    return shards(tmp_path_factory.mktemp("stream") / "uneven", [13, 1, 30, 5, 8, 0, 22, 4, 9, 17, 6])


def test_every_row_once_full_batches_shuffled_and_different_in_each_epoch(uneven):
    stream = loader(uneven)
    first, second = list(stream.epoch(0)), list(stream.epoch(1))
    every = open_data(uneven).ids
    for batches in (first, second):
        assert sorted(i for b in batches for i in b.ids) == sorted(every)
        assert [len(b.ids) for b in batches] == [8] * (len(every) // 8) + [len(every) % 8]
    assert ids(first) != ids(second) and ids(list(loader(uneven).epoch(0))) == ids(first)
    flat = [i for b in first for i in b.ids]
    distance = np.abs(np.diff([every.index(i) for i in flat]))
    assert np.median(distance) > 10  # neighbours in a batch are no neighbours in a shard


def test_batches_carry_labels_and_items_of_the_indexed_loader(uneven):
    data = open_data(uneven)
    row_of = {i: n for n, i in enumerate(data.ids)}
    for batch in loader(uneven).epoch(0):
        rows = [row_of[i] for i in batch.ids]
        for k, labels in batch.labels.items():
            assert labels.tolist() == (data.labels[k][rows].tolist() if k in data.labels else [0] * len(rows))
        for m in ("image", "text"):
            distinct = len(set(data.labels[m][rows].tolist()))
            assert len(batch.inputs[m]["x"]) == distinct == int(batch.item_of_row[m].max()) + 1
        length = batch.inputs["text"]["x"][batch.item_of_row["text"], 0]
        assert length.tolist() == [len(data.read(r, "text")) for r in rows]


@pytest.mark.parametrize("workers", [1, 3])
def test_resumed_after_any_batch_is_the_same(uneven, workers):
    whole = list(loader(uneven, workers=2).epoch(3))
    for stop in (1, 5, len(whole) - 1, len(whole)):
        stream = loader(uneven, workers=workers)
        iterator = stream.epoch(3)
        begun = [next(iterator) for _ in range(stop)]
        state = json.loads(json.dumps(stream.state(stop)))
        iterator.close()
        rest = list(loader(uneven, workers=workers).epoch(3, stop, state))
        assert ids(begun + rest) == ids(whole)
        for a, b in zip(begun + rest, whole, strict=True):
            assert all(torch.equal(a.inputs[m]["x"], b.inputs[m]["x"]) for m in a.inputs)


class _Group:
    """Processes as threads of this process: `gather_bytes` over a barrier."""

    def __init__(self, world: int):
        self.world, self.barrier, self.parts = world, threading.Barrier(world, timeout=60), [b""] * world

    def gather(self, rank: int, data: bytes) -> list[bytes]:
        self.parts[rank] = data
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts


class _Threads(Processes):
    def __init__(self, rank: int, group: _Group):
        super().__init__(rank, group.world)
        self.group = group

    def gather_bytes(self, data, group=None):
        return self.group.gather(self.rank, data)

    def new_group(self):
        return None


def in_world(world: int, run) -> list:
    group, results, errors = _Group(world), [None] * world, []

    def start(rank: int) -> None:
        try:
            results[rank] = run(_Threads(rank, group))
        except BaseException as e:
            errors.append(e)
            group.barrier.abort()

    threads = [threading.Thread(target=start, args=(r,)) for r in range(world)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors, errors
    return results


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_processes_gives_the_same_batches_and_shares_the_items(uneven, world):
    columns = {"price": "objective[0].weights", "sold": "objective[1].weights"}
    whole = list(loader(uneven, columns=columns).epoch(0))
    ranks = in_world(world, lambda p: list(loader(uneven, processes=p, columns=columns).epoch(0)))
    data = open_data(uneven)
    price = dict(zip(data.ids, data.column("price"), strict=True))
    assert all(b.columns["price"].tolist() == [price[i] for i in b.ids] for b in whole)
    assert any(b.columns["sold"].isnan().any() and not b.columns["sold"].isnan().all() for b in whole)
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        for part in parts:
            assert part.ids == batch.ids
            assert all(torch.equal(part.labels[k], batch.labels[k]) for k in batch.labels)
            assert all(torch.equal(part.columns[k].nan_to_num(-1), batch.columns[k].nan_to_num(-1)) for k in columns)
            assert all(torch.equal(part.item_of_row[m], batch.item_of_row[m]) for m in batch.item_of_row)
        for m in ("image", "text"):
            joined = torch.cat([p.inputs[m]["x"] for p in parts if m in p.inputs])
            assert torch.equal(joined, batch.inputs[m]["x"])  # the same augmentation, too
            n = len(batch.inputs[m]["x"])
            for rank, part in enumerate(parts):
                assert (len(part.inputs[m]["x"]) if m in part.inputs else 0) == Processes(rank, world).local_size(n)


def test_processes_read_different_shards_and_a_resumed_run_may_have_more_or_fewer(uneven, monkeypatch):
    whole = ids(list(loader(uneven).epoch(0)))
    read: list[tuple[int, str]] = []
    original = StreamedSets.read

    def run(p):
        stream = loader(uneven, processes=p)

        def counted(sets, shard, notes):
            read.append((p.rank, shard.name))
            return original(sets, shard, notes)

        stream.sets.read = counted.__get__(stream.sets)
        iterator = stream.epoch(0)
        begun = [next(iterator).ids for _ in range(5)]
        state = stream.state(5)
        iterator.close()
        return begun, state

    (begun, state), (_, other) = in_world(2, run)
    assert begun == whole[:5] and state == other
    assert {n for r, n in read if r == 0}.isdisjoint({n for r, n in read if r == 1})
    for world in (1, 3):
        if world == 1:
            rest = [ids(list(loader(uneven).epoch(0, 5, state)))]
        else:
            rest = in_world(world, lambda p: ids(list(loader(uneven, processes=p).epoch(0, 5, state))))
        assert all(r == whole[5:] for r in rest)


def test_values_that_cannot_be_decoded_cost_their_row_and_are_counted(tmp_path):
    folder = shards(tmp_path / "bad", [10, 12], bad=[3, 17])
    stream = loader(folder)
    with pytest.warns(DataWarning, match="2 rows left out, because a value cannot be decoded.*'bad-"):
        seen = [i for b in stream.epoch(0) for i in b.ids]
    assert sorted(seen) == sorted(f"bad-{n}" for n in range(22) if n not in (3, 17)) and stream.left_out == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranks = in_world(2, lambda p: ids(list(loader(folder, processes=p).epoch(0))))
        assert ranks[0] == ranks[1] == ids(list(loader(folder).epoch(0)))


def test_lanes_decide_the_batches_and_a_resumed_epoch_keeps_its_own(uneven):
    four = list(loader(uneven, lanes=4).epoch(0))
    assert sorted(i for b in four for i in b.ids) == sorted(open_data(uneven).ids)
    assert ids(four) != ids(list(loader(uneven).epoch(0)))
    stream = loader(uneven, lanes=4)
    begun = stream.epoch(0)
    first = [next(begun) for _ in range(3)]
    state = stream.state(3)
    begun.close()
    assert state["lanes"] == 4
    assert ids(first) + ids(list(loader(uneven, lanes=8).epoch(0, 3, state))) == ids(four)


def test_the_position_of_a_step_is_known_while_the_next_steps_are_loaded(uneven):
    """With accumulation, all batches of the next optimizer step are loaded before a checkpoint of this one may be written."""
    config = TrainConfig(batch_size=2, gradient_accumulation_steps=16, epochs=1, samples=110)
    stream = loader(uneven, batch_size=2, workers=1)
    epochs, state = StreamedEpochs(stream, config), TrainerState()
    remaining = epochs.batches(state)
    seen = [batch.ids for _, batch in zip(range(17), remaining.loaded, strict=False)]
    state.record_step(16, 32, 1.0, 0.0)
    state.stream = epochs.stream_state(state)
    remaining.loaded.close()
    again = StreamedEpochs(loader(uneven, batch_size=2, workers=1), config)
    rest = again.batches(state)
    assert next(rest.loaded).ids == seen[16]
    rest.loaded.close()
    assert again.stream_state(state) == state.stream  # before a batch of the resumed epoch is trained on
    with pytest.raises(RuntimeError, match="not kept any more"):
        stream.state(3000)


def test_a_damaged_shard_is_an_error_or_counted(tmp_path):
    folder = Path(shards(tmp_path / "cut", [10, 12]))
    data = (folder / "001.tar").read_bytes()
    (folder / "001.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"001\.tar: truncated"):
        list(loader(str(folder)).epoch(0))
    with pytest.warns(DataWarning, match="1 damaged shards"):
        seen = [i for b in loader(str(folder), skip_damaged=True).epoch(0) for i in b.ids]
    assert 10 < len(seen) < 22 and len(set(seen)) == len(seen)


def test_weights_repeat_sets_or_take_a_part_of_them(tmp_path):
    a, b, c = shards(tmp_path / "a", [20, 20]), shards(tmp_path / "b", [15]), shards(tmp_path / "c", [10] * 40)
    stream = loader(a, b, c, weights=[2.0, 1.0, 0.5])
    seen = [Counter(i for batch in stream.epoch(e) for i in batch.ids) for e in range(2)]
    for counts in seen:
        assert {n for i, n in counts.items() if i.startswith("a-")} == {2} and sum(i.startswith("a-") for i in counts) == 40
        assert {n for i, n in counts.items() if i.startswith("b-")} == {1} and sum(i.startswith("b-") for i in counts) == 15
        assert sum(i.startswith("c-") for i in counts) == 200
    assert seen[0] != seen[1]
    half = loader(b, weights=[0.5])
    counts = [sum(len(x.ids) for x in half.epoch(e)) for e in range(20)]
    assert 5 < np.mean(counts) < 10  # a set of one shard: about half of its rows


def test_uneven_shares_are_fair_over_time():
    totals: Counter[int] = Counter()
    for turn in range(8):
        totals.update(divide_evenly(7, list(range(8)), turn))
    assert set(totals.values()) == {7}
    assert divide_evenly(3, [4, 9], 0) == {4: 2, 9: 1} and divide_evenly(3, [4, 9], 1) == {4: 1, 9: 2}


def test_rows_without_a_pair_and_single_rows_at_the_end(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar")) as writer:
        for i in range(18):
            writer.write({"__key__": f"{i}", "png": picture(i, size=8)} | ({"txt": f"t {i}"} if i != 5 else {}))
    with pytest.warns(DataWarning, match="1 rows left out: they do not have both sides"):
        batches = list(loader(str(folder)).epoch(0))
    assert [len(b.ids) for b in batches] == [8, 9] and "5" not in [i for b in batches for i in b.ids]


def test_changed_shards_are_not_resumed(tmp_path):
    folder = Path(shards(tmp_path / "d", [20, 20]))
    stream = loader(str(folder))
    iterator = stream.epoch(0)
    next(iterator)
    state = stream.state(1)
    iterator.close()
    (folder / "000.tar").rename(folder / "005.tar")
    with pytest.raises(DataError, match="differ from those"):
        list(loader(str(folder)).epoch(0, 1, state))
