"""Candidates by text (BM25) and by metadata."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.mining.mine_vectors import mine_vectors
from tests.support.mining_shop import content_vectors, unguarded


def test_lexical_and_siblings_propose_other_candidates_than_vectors(shop, tmp_path):
    data = open_data(shop)
    meta = {i: data.meta(n) for n, i in enumerate(data.ids)}
    by = {}
    for sources in (["lexical"], ["siblings"], ["nearest", "siblings"]):
        o = unguarded(
            negatives=20, window=8, sources=sources, siblings={"same": ["kind"], "other": "truth"}, directions=["text->image"]
        )
        mine_vectors(content_vectors(data), tmp_path / "t.parquet", o, data=data)
        by["+".join(sources)] = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for r in by["siblings"]:
        q, n = meta[r["query_id"]], meta[r["negative_id"]]
        assert r["reason"] == "siblings" and q["kind"] == n["kind"] and q["truth"] != n["truth"]
    assert len({r["negative_id"] for r in by["siblings"]}) == 24
    same_colour = [meta[r["query_id"]]["kind"] == meta[r["negative_id"]]["kind"] for r in by["lexical"] if r["rank"] <= 3]
    assert np.mean(same_colour) > 0.9  # "a red thing number 3" is most like other red things
    every = by["nearest+siblings"]
    assert len({(r["query_id"], r["negative_id"]) for r in every}) == len(every), "a pair counts once"
    assert {r["reason"] for r in every} == {"nearest", "siblings"}
    with pytest.raises(DataError, match="needs the data"):
        mine_vectors(content_vectors(data), tmp_path / "t.parquet", o)
