"""Training sets whose ids are equal: tables by id reach the right rows, or are refused with the sets and an id."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.given_negatives import load_given
from mmtune.mining.mine_vectors import mine_vectors
from tests.support.data_helpers import picture, write_csv
from tests.support.mining_shop import content_vectors, unguarded

PAIR = [("image", "text")]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of 8 rows with the ids 0 to 7 and different contents, and all 16 rows as one set with ids of their own."""
    root = tmp_path_factory.mktemp("sets")
    every = []
    for name, first in (("a", 0), ("b", 50)):
        rows = []
        for i in range(8):
            (root / f"{first + i}.png").write_bytes(picture(first + i))
            rows.append(
                {"id": str(i), "image": f"{first + i}.png", "text": f"thing {first + i}", "group": f"s{first + i // 2}"}
            )
        pack(write_csv(root / f"{name}.csv", rows), root / name)
        every += [{**r, "id": f"{name}{r['id']}"} for r in rows]
    pack(write_csv(root / "all.csv", every), root / "all")
    return root


def concat(*specs):
    return WeightedConcat([open_data(str(s)) for s in specs], [1.0] * len(specs))


def by_content(data, negatives):
    """{(direction, content of the query): contents of its negatives}."""
    found = {}
    for name in negatives.directions:
        a, _, b = name.partition("->")
        for row in range(len(data)):
            rows = negatives.of(name, row)
            found[name, int(data.labels[a][row])] = sorted(int(data.labels[b][n]) for n in rows)
    return found


def test_mined_negatives_of_sets_with_equal_ids_are_those_of_the_same_rows_with_unique_ids(sets, tmp_path):
    both, whole = concat(sets / "a", sets / "b"), concat(sets / "all")
    assert len(set(both.ids)) == 16
    found = []
    for data, name in ((both, "both"), (whole, "whole")):
        path = tmp_path / f"{name}.parquet"
        mine_vectors(content_vectors(data), path, unguarded(negatives=3, window=6), data=data)
        found.append(by_content(data, BatchNegatives(path, data, "print")))
    assert found[0] == found[1] and sum(map(len, found[0].values())) == 2 * 16 * 3


def test_a_table_with_an_id_of_several_sets_is_refused_with_the_sets(sets, tmp_path):
    one = concat(sets / "a")
    mine_vectors(content_vectors(one), tmp_path / "a.parquet", unguarded(negatives=2, window=6), data=one)
    says = rf"a\.parquet: several training sets have a row with id '\d' \({sets}/a and {sets}/b\); make the ids unique"
    with pytest.raises(DataError, match=says):
        BatchNegatives(tmp_path / "a.parquet", concat(sets / "a", sets / "b"), "print")
    other = concat(sets / "a", sets / "all")  # no id of `a` is one of `all`
    BatchNegatives(tmp_path / "a.parquet", other, "print")


def test_judgments_of_an_id_of_several_sets_are_refused(sets, tmp_path):
    both = concat(sets / "a", sets / "b")
    judged = tmp_path / "j.jsonl"
    judged.write_text(json.dumps({"query": "1", "item": "2", "verdict": "positive"}) + "\n")
    options = unguarded(negatives=3, window=6, judgments=str(judged))
    with pytest.raises(DataError, match=r"j\.jsonl: several training sets have a row with id '[12]'"):
        mine_vectors(content_vectors(both), tmp_path / "t.parquet", options, data=both)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_own_negatives_of_several_sets(sets, tmp_path, kind):
    pairs = [("a1", "a5"), ("a2", "b3"), ("3", "6")]
    path = tmp_path / f"own.{kind}"
    if kind == "csv":
        write_csv(path, [{"query_id": q, "negative_id": n} for q, n in pairs])
    else:
        pq.write_table(pa.table({"query_id": [q for q, _ in pairs], "negative_id": [n for _, n in pairs]}), path)
    data = concat(sets / "all", sets / "a")
    given = load_given(data, [path], PAIR, beside=False)
    row = {i: n for n, i in enumerate(data.ids)}
    want = [[row[q], row[n]] for q, n in pairs]
    assert {name: sorted(rows.tolist()) for name, rows in given.pairs.items()} == dict.fromkeys(
        ["image->text", "text->image"], sorted(want)
    )
    with pytest.raises(DataError, match=r"row 3: several training sets have a row with id '[36]'"):
        load_given(concat(sets / "a", sets / "b", sets / "all"), [path], PAIR, beside=False)


def test_an_own_file_says_that_its_scores_are_not_used(sets, tmp_path):
    path = write_csv(tmp_path / "own.csv", [{"query_id": "1", "negative_id": "5", "score": "0.2"}])
    given = load_given(concat(sets / "a"), [path], PAIR, beside=False)
    assert given.lines()[1:] == [
        f"{path}: the column 'score' is not used, every pair counts the same; to train on scores of pairs, make the file a "
        "teacher (recipe key teachers.NAME.scores)"
    ]
    assert np.concatenate([*given.pairs.values()]).shape == (2, 2)
