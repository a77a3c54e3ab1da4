"""A scorer as a verifier of mined candidates."""

import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.data.shards.dataset import open_data
from mmtune.mining.mine_vectors import mine_vectors
from tests.support.mining_shop import COLOURS, content_vectors, unguarded


class Judge:
    """Scores 1 where query and candidate name one colour: a verifier that knows less than the labels."""

    def __init__(self):
        self.pairs_scored = 0

    def score(self, pairs):
        self.pairs_scored += len(pairs)
        return [float(any(c in a and c in b for c in COLOURS)) for a, b in pairs]


def test_drops_candidates_that_score_as_high_as_the_positive(shop, tmp_path):
    data = open_data(shop)
    judge = Judge()
    o = unguarded(negatives=3, window=11, directions=["text->text"])
    mine_vectors(content_vectors(data), tmp_path / "t.parquet", o, data=data, verifier=judge)
    row = {i: n for n, i in enumerate(data.ids)}
    text = {i: data.read(n, "text").decode().lower() for i, n in row.items()}
    colour = {i: next(c for c in COLOURS if c in t) for i, t in text.items()}
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert judge.pairs_scored == 0, "every text is its own positive only: nothing to compare with"
    o = unguarded(negatives=3, window=11, directions=["text->image"])

    class Colours(Judge):
        def score(self, pairs):
            self.pairs_scored += len(pairs)
            return [1.0 if words.lower().split()[1] == known[picture.tobytes()] else 0.0 for words, picture in pairs]

    known = {modalities.get("image").decode(data.read(n, "image")).tobytes(): colour[i] for i, n in row.items()}
    judge = Colours()
    mine_vectors(content_vectors(data), tmp_path / "t.parquet", o, data=data, verifier=judge)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    dropped = [r for r in table if r["reason"] == "verifier"]
    mined = [r for r in table if r["verdict"] == "mined"]
    assert judge.pairs_scored and dropped and mined
    assert all(colour[r["query_id"]] == colour[r["negative_id"]] for r in dropped)
    assert all(colour[r["query_id"]] != colour[r["negative_id"]] for r in mined)
