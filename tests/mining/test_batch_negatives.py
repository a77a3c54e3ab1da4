"""From a negatives table to rows that join a batch."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.mine_vectors import mine_vectors
from tests.support.mining_shop import content_vectors, unguarded


def test_drawn_rows_are_those_of_the_table_and_no_known_positives(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(content_vectors(data), tmp_path / "t.parquet", unguarded(negatives=3, window=6), data=data)
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    row = {i: n for n, i in enumerate(data.ids)}
    allowed = {}
    for r in table:
        if r["verdict"] == "mined":
            a, b = r["direction"].split("->")
            for q in np.flatnonzero(data.labels[a] == data.labels[a][row[r["query_id"]]]):
                same = np.flatnonzero(data.labels[b] == data.labels[b][row[r["negative_id"]]])
                allowed.setdefault((r["direction"], int(q)), set()).update(same.tolist())
    batch = np.array([0, 5, 9])
    drawn = set()
    for epoch in range(6):
        once, again = (negatives.draw(batch, 2, seed=1, epoch=epoch) for _ in range(2))
        assert set(once) == {"image->text", "text->image"}
        for name, pairs in once.items():
            np.testing.assert_array_equal(pairs, again[name])
            assert not set(pairs[1].tolist()) & set(batch.tolist()) and 1 <= pairs.shape[1] <= 3 * 2
            assert all(n in allowed[name, int(batch[q])] for q, n in pairs.T.tolist()), "each is its own query's"
            drawn |= {(name, q, n) for q, n in pairs.T.tolist()}
    assert len(drawn) > sum(pairs.shape[1] for pairs in once.values()), "other negatives in other epochs"
    only = negatives.draw(batch, {"image->text": 1}, seed=1)
    assert set(only) == {"image->text"} and only["image->text"].shape[1] <= 3, "a direction without columns brings nothing"
    with pytest.raises(DataError, match="other weights"):
        BatchNegatives(tmp_path / "t.parquet", data, "newer")
    assert "other weights" in BatchNegatives(tmp_path / "t.parquet", data, "newer", allow_stale=True).notes[0]
    with pytest.raises(DataError, match="mined on other data"):
        BatchNegatives(tmp_path / "t.parquet", Elsewhere(data), "print")


class Elsewhere:
    """The same data under other ids."""

    def __init__(self, data):
        self.spec, self.ids, self.labels, self.present = "elsewhere", [f"x{i}" for i in data.ids], data.labels, data.present

    def __len__(self):
        return len(self.ids)


def test_a_users_own_table_needs_three_columns(shop, tmp_path):
    import pyarrow as pa

    data = open_data(shop)
    own = pa.table({"direction": ["text->image"] * 2, "query_id": ["row00", "row02"], "negative_id": ["row04", "gone"]})
    pq.write_table(own, tmp_path / "own.parquet")
    with pytest.raises(DataError, match="does not store the fingerprint"):
        BatchNegatives(tmp_path / "own.parquet", data, "print")
    negatives = BatchNegatives(tmp_path / "own.parquet", data, "print", allow_stale=True)
    row = {i: n for n, i in enumerate(data.ids)}
    assert negatives.of("text->image", row["row01"]).tolist() == [row["row04"]]  # the same caption as row00
    assert any("1 of 2 pairs" in n for n in negatives.notes)
    pq.write_table(own.drop(["negative_id"]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="negative_id"):
        BatchNegatives(tmp_path / "bad.parquet", data, "print")
