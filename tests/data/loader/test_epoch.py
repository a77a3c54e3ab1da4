"""An epoch has every row once, for any number of processes, and each process prepares only its part."""

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


class ContentHash:
    """A preprocess that maps a signal to a hash of its content."""

    def __init__(self, of):
        self.of = of

    def __call__(self, signal, rng=None):
        digest = hashlib.blake2b(self.of(signal), digest_size=7).digest()
        return {"hash": torch.tensor(int.from_bytes(digest, "big"))}

    def collate(self, items):
        return {"hash": torch.stack([i["hash"] for i in items])}


@pytest.mark.parametrize("how", ["random", "spread"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_row_is_in_one_batch_and_prepared_by_one_process(tmp_path, count, how):
    data = WeightedConcat([open_data(packed(tmp_path, 30, columns=("image", "text")))], [1.0])
    preprocess = {"image": ContentHash(lambda p: p.tobytes()), "text": ContentHash(str.encode)}
    batches = plan_batches(data, np.ones(len(data), bool), 8, seed=3, how=how)(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(data)))
    loaders = [Loader(data, preprocess, {}, processes=Processes(rank, count)) for rank in range(count)]
    single = Loader(data, preprocess, {})
    for whole, *parts in zip(single.epoch(0, batches), *(loader.epoch(0, batches) for loader in loaders), strict=True):
        for part in parts:
            assert part.ids == whole.ids and all(torch.equal(part.item_of_row[m], whole.item_of_row[m]) for m in preprocess)
        for m in preprocess:
            parts_of_m = [p.inputs[m]["hash"] for p in parts if m in p.inputs]
            assert torch.equal(torch.cat(parts_of_m), whole.inputs[m]["hash"])  # in order, none left out, none twice
            assert max(map(len, parts_of_m)) == -(-len(whole.inputs[m]["hash"]) // count)
