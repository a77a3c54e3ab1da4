"""An epoch has every row once, whatever the number of processes, and each process prepares only its share of it."""

import hashlib

import numpy as np
import pytest
import torch

from mmtune.data.loader.batch_plan import plan_batches
from mmtune.data.loader.loader import Loader
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.runtime.distributed import Processes
from tests.support.corpora import packed


class Marks:
    """Prepares a signal as a number that its content has."""

    def __init__(self, of):
        self.of = of

    def __call__(self, signal, rng=None):
        digest = hashlib.blake2b(self.of(signal), digest_size=7).digest()
        return {"mark": torch.tensor(int.from_bytes(digest, "big"))}

    def collate(self, items):
        return {"mark": torch.stack([i["mark"] for i in items])}


@pytest.mark.parametrize("how", ["random", "spread"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_row_once(tmp_path, count, how):
    data = WeightedConcat([open_data(packed(tmp_path, 30, columns=("image", "text")))], [1.0])
    prepare = {"image": Marks(lambda p: p.tobytes()), "text": Marks(str.encode)}
    batches = plan_batches(data, np.ones(len(data), bool), 8, seed=3, how=how)(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(data)))
    streams = [Loader(data, prepare, {}, processes=Processes(rank, count)) for rank in range(count)]
    alone = Loader(data, prepare, {})
    for whole, *parts in zip(alone.epoch(0, batches), *(s.epoch(0, batches) for s in streams), strict=True):
        for part in parts:
            assert part.ids == whole.ids and all(torch.equal(part.item_of_row[m], whole.item_of_row[m]) for m in prepare)
        for m in prepare:
            shares = [p.inputs[m]["mark"] for p in parts if m in p.inputs]
            assert torch.equal(torch.cat(shares), whole.inputs[m]["mark"])  # in order, none left out, none twice
            assert max(map(len, shares)) == -(-len(whole.inputs[m]["mark"]) // count)
