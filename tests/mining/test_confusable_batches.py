"""Batches of confusable rows: every row as often as before, neighbours together, groups spread."""

import numpy as np

from mmtune.data.shards.dataset import open_data
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.confusable_batches import ConfusableBatches
from mmtune.mining.mine_vectors import mine_vectors
from tests.support.mining_shop import content_vectors, unguarded


def test_each_row_occurs_once_and_neighbours_share_a_batch(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(
        content_vectors(data), tmp_path / "t.parquet", unguarded(negatives=1, window=1, directions=["image->image"]), data=data
    )
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")

    def rows(epoch):
        return np.random.default_rng([7, epoch]).permutation(24)

    def share(batches):
        """Of all rows, how many have their negative beside them."""
        return np.mean([int(negatives.of("image->image", r)[0]) in batch for batch in batches for r in batch.tolist()])

    plan = ConfusableBatches(negatives, rows, 6, seed=3, confusable=0.9)
    for epoch in range(3):
        batches = plan(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(24))
        assert [len(b) for b in batches] == [6] * 4
        assert all((x == y).all() for x, y in zip(batches, plan(epoch), strict=True))
    assert any((x != y).any() for x, y in zip(plan(0), plan(1), strict=True))
    plain_share = np.mean([share(np.split(rows(e), 4)) for e in range(5)])
    assert np.mean([share(plan(e)) for e in range(5)]) > 2 * plain_share
    twice = ConfusableBatches(negatives, lambda e: np.r_[np.arange(24), 3], 6, confusable=0.5)(0)
    assert sorted(np.concatenate(twice).tolist()) == sorted([*range(24), 3]) and [len(b) for b in twice] == [6, 6, 6, 7]


def test_every_group_has_its_even_share_of_a_batch(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(
        content_vectors(data), tmp_path / "t.parquet", unguarded(negatives=2, window=4, directions=["image->image"]), data=data
    )
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")
    groups = np.r_[np.full(12, 5), np.repeat([6, 7, 8], 2), np.zeros(6, np.int64)]  # one large, three small, six rows alone
    for epoch in range(5):
        rows = np.random.default_rng([9, epoch]).permutation(24)
        batches = ConfusableBatches(negatives, lambda _, r=rows: r, 6, 1, 0.8, groups)(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(24)) and [len(b) for b in batches] == [6] * 4
        per_batch = [np.bincount(groups[b], minlength=9) for b in batches]
        assert all(h[5] == 3 for h in per_batch) and all(h[6:].max() <= 1 for h in per_batch)
