"""Batches that worker processes prepare are those of threads, bit by bit: indexed, streamed, augmented, with mined negatives."""

import sys

import numpy as np
import pytest
import torch

import mmtune
from mmtune import modalities
from mmtune.contracts import Batch
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.stacked_inputs import StackedInputs
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError, DataWarning
from mmtune.model.compose import from_spec
from tests.data.loader.test_stream_loader import shards
from tests.support import corpora
from tests.support.http_server import http_server
from tests.training.test_dist_train import weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
KINDS = [("threads", 1), ("threads", 3), ("processes", 1), ("processes", 3)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> str:
    return corpora.packed(tmp_path_factory.mktemp("processes"), 30)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal in every bit."""
    found: list[torch.Tensor] = []
    a.map_tensors(lambda x: (found.append(x), x)[1])
    wanted, found = found, []
    b.map_tensors(lambda x: (found.append(x), x)[1])
    pairs = zip(wanted, found, strict=True)
    return a.ids == b.ids and all(x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def equal(runs: list[list[Batch]]) -> None:
    assert len(runs[0]) > 3
    for other in runs[1:]:
        assert len(other) == len(runs[0]) and all(map(same, runs[0], other))


def test_indexed_batches(packed):
    data = WeightedConcat([open_data(packed)], [1.0])
    model = from_spec("tiny:clip")
    preprocess = {m: model.towers[m].preprocess for m in ("image", "text")}
    augment = {"image": modalities.get("image").augment(crop=0.5, flip=True, color=0.2)}
    rows = np.random.default_rng(0).permutation(30)
    batches = [rows[i : i + 7] for i in range(0, 30, 7)]
    mined = lambda rows: {"image->text": np.stack([np.arange(2), (rows[:2] + 5) % 30])}  # noqa: E731
    runs = []
    for kind, workers in KINDS:
        loader = Loader(data, preprocess, augment, seed=3, workers=workers, worker_kind=kind, cache_bytes=10_000)
        runs.append([b for epoch in (0, 1) for b in loader.epoch(epoch, batches, mined)])
        loader.close()
    equal(runs)
    assert not same(runs[0][0], runs[0][5])  # another augmentation in the second epoch


def test_streamed_batches_with_values_that_cannot_be_decoded(tmp_path):
    folder = shards(tmp_path / "rows", [9, 14, 3, 20], bad=[4, 30])
    model = from_spec("tiny:clip")
    preprocess = {m: model.towers[m].preprocess for m in ("image", "text")}
    augment = {"image": modalities.get("image").augment(flip=True, rotate=20)}
    runs = []
    for kind, workers in KINDS:
        sets = StreamedSets([folder], [1.0], ShardCache(0))
        options = {"pairs": [("image", "text")], "batch_size": 8, "shuffle_buffer": 20, "workers": workers, "worker_kind": kind}
        loader = StreamLoader(sets, preprocess, augment, **options)
        with pytest.warns(DataWarning, match="2 rows left out"):
            whole = list(loader.epoch(0))
        some = loader.epoch(1)
        part = [next(some), next(some)]
        state = loader.state(2)
        some.close()
        rest = loader.epoch(1, 2, state)
        runs.append([*whole, *part, next(rest), next(rest)])
        rest.close()
        loader.close()
    equal(runs)


def test_runs_end_with_equal_weights_and_an_undecodable_value_is_one_line(packed, tmp_path):
    def train(name, kind, data=packed, **more):
        recipe = {
            "model": "tiny:clip",
            "data": {"train": data, "workers": 2, "worker_kind": kind, **more},
            "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
            "augment": {"image": {"flip": True}},
            "run": {"dir": str(tmp_path / name)},
        }
        return mmtune.train(recipe, quiet=True)

    for read in ("index", "stream"):
        train(f"threads-{read}", "threads", read=read)
        train(f"processes-{read}", "processes", read=read)
        assert weights(tmp_path / f"threads-{read}") == weights(tmp_path / f"processes-{read}")
    bad = shards(tmp_path / "bad", [9, 14], bad=[11])
    with pytest.raises(DataError, match=r"row 'bad-11': image: not a readable picture.*--skip-bad") as error:
        train("bad", "processes", bad)
    assert "\n" not in str(error.value)


def test_processes_fetch_remote_shards(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    from pathlib import Path

    preprocess = {"text": from_spec("tiny:clip").towers["text"].preprocess}
    batches = [np.arange(i, i + 6) for i in range(0, 30, 6)]
    with http_server(Path(packed)) as server:
        data = open_data(server.url)  # has used fsspec's thread; no shard is fetched yet
        runs = []
        for kind in ("processes", "threads"):
            loader = Loader(WeightedConcat([data], [1.0]), preprocess, {}, workers=2, worker_kind=kind)
            runs.append(list(loader.epoch(0, batches)))
            loader.close()
    equal(runs)


def test_stacked_inputs_keep_items_shapes_and_order():
    rng = torch.Generator().manual_seed(0)
    inputs = {("image", n): {"x": torch.rand(2 + n % 2, 3, generator=rng), "n": torch.tensor(n)} for n in (5, 2, 8, 1)} | {
        ("text", 5): {"y": torch.arange(3)}
    }
    stacked = StackedInputs.stack(inputs)
    assert len(stacked.groups) == 3
    found = stacked.unstack()
    assert list(found) == list(inputs)
    assert all(
        torch.equal(found[k][n], v) and found[k].keys() == inputs[k].keys() for k in inputs for n, v in inputs[k].items()
    )
    assert StackedInputs.stack({}).unstack() == {}
