"""A scorer as a verifier of mined candidates."""

import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.data.shards.dataset import open_data
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.relevance.judgments import Verdict
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


def test_a_negative_by_verdict_is_kept_whatever_the_verifier_says(shop, tmp_path):
    data = open_data(shop)

    class Everything:
        def score(self, pairs):
            return [1.0] * len(pairs)

    o = unguarded(negatives=3, window=24, directions=["text->image"])
    first = data.ids[0]
    other = next(i for n, i in enumerate(data.ids) if data.groups[n] != data.groups[0] and data.present["image"][n])
    judged = [Verdict(first, other, False, "text->image")]
    mine_vectors(content_vectors(data), tmp_path / "t.parquet", o, data=data, verifier=Everything(), judged=judged)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    row = {i: n for n, i in enumerate(data.ids)}
    mined = [(r["query_id"], r["negative_id"]) for r in table if r["verdict"] == "mined"]
    assert len(mined) == 1, "the verifier drops all but the pair of the verdict"
    for m, got, want in (("text", mined[0][0], first), ("image", mined[0][1], other)):
        assert data.labels[m][row[got]] == data.labels[m][row[want]]
