"""Batch plans have the properties that their descriptions promise, for any subset of rows, batch size and seed."""

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmtune
from mmtune.data.loader.batch_plan import plan_batches
from mmtune.data.loader.loader import Loader
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import MmtuneError, RecipeError
from mmtune.recipe.batches_block import PLANS, BalancedBatches, BucketBatches, CustomBatches, GroupBatches, OneSourceBatches
from mmtune.recipe.recipe import Recipe

N = 90
COLUMNS = ("group", "even", "skewed", "pairs")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of 60 and 30 captions: groups of random sizes, 18 rows of each of 5, one huge and many tiny, pairs; a third has none."""
    root, rng, out = tmp_path_factory.mktemp("plans"), np.random.default_rng(0), []
    for name, rows in (("a", range(60)), ("b", range(60, N))):
        with open(root / f"{name}.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["id", "text", "group", "even", "skewed", "pairs", "seconds"])
            for i in rows:
                text = f"caption {i} " + "x" * int(rng.integers(0, 400))
                skewed = "huge" if i < 50 else f"tiny {i // 2}"
                group = "" if i % 7 == 0 else f"g{int(rng.integers(0, 12))}"
                table.writerow([f"r{i}", text, group, f"e{i % 5}", skewed, f"p{i // 2}", int(rng.integers(1, 100))])
        pack(root / f"{name}.csv", root / name)
        out.append(open_data(str(root / name)))
    return out


@pytest.fixture(scope="module")
def data(sets):
    return WeightedConcat(sets, [1.0, 1.0])


masks = st.sets(st.integers(0, N - 1), min_size=12).map(lambda s: np.isin(np.arange(N), list(s)))


def flat(batches):
    return np.concatenate(batches).tolist()


def values(data, column):
    """The value of every row; rows without one are alone."""
    return [v or f"alone {i}" for i, v in enumerate(data.column(column))]


@settings(max_examples=60, deadline=None)
@given(usable=masks, column=st.sampled_from(COLUMNS), k=st.integers(2, 5), p=st.integers(2, 6), seed=st.integers(0, 9))
def test_groups_x_rows(data, usable, column, k, p, seed):
    plan = plan_batches(data, usable, p * k, seed, GroupBatches(groups=p, rows=k, column=column))
    value = values(data, column)
    size = Counter(value[i] for i in np.flatnonzero(usable))
    if max(size.values()) < 2:
        with pytest.raises(RecipeError, match="no two rows"):
            plan(0)
        return
    batches = plan(1)
    assert sorted(flat(batches)) == np.flatnonzero(usable).tolist() and plan.notes == []
    parts = sum(-(-n // k) for n in size.values())  # by hand: every group in parts of at most K rows
    n_batches = -(-parts // p)
    assert len(batches) in (n_batches, max(n_batches - 1, 1))
    for batch in batches:
        held = Counter(value[i] for i in batch)
        if len(batches) == n_batches:
            assert len(batch) <= p * k
            assert all(n <= k or -(-size[g] // k) > n_batches for g, n in held.items())  # more only if the group is too large
            assert len(held) <= p
    assert [b.tolist() for b in plan(1)] == [b.tolist() for b in batches]


def test_exactly_p_groups_of_k_rows_where_groups_are_multiples_of_k(data):
    plan = plan_batches(data, np.arange(N) < 90, 9, 0, GroupBatches(groups=3, rows=3, column="even"))  # 5 groups of 18
    for epoch in range(3):
        for batch in plan(epoch):
            assert sorted(Counter(values(data, "even")[i] for i in batch).values()) == [3, 3, 3]
    assert [b.tolist() for b in plan(0)] != [b.tolist() for b in plan(1)]


@settings(max_examples=60, deadline=None)
@given(usable=masks, column=st.sampled_from(COLUMNS), size=st.integers(2, 20), seed=st.integers(0, 9))
def test_balanced(data, usable, column, size, seed):
    plan = plan_batches(data, usable, size, seed, BalancedBatches(column=column))
    labelled = [i for i in np.flatnonzero(usable) if data.column(column)[i]]
    classes = Counter(data.column(column)[i] for i in labelled)
    if len(classes) < 2:
        with pytest.raises(RecipeError, match="balancing needs 2"):
            plan(0)
        return
    batches = plan(0)
    used = Counter(data.column(column)[i] for i in flat(batches))
    assert len(flat(batches)) == len(labelled) and used.keys() == classes.keys()
    assert max(used.values()) - min(used.values()) <= 1
    times = Counter(flat(batches))
    for value in classes:  # within a class, no row is used twice more often than another
        of_class = [times[i] for i in labelled if data.column(column)[i] == value]
        assert max(of_class) - min(of_class) <= 1
    for batch in batches:
        held = Counter(data.column(column)[i] for i in batch)
        counts = [held[value] for value in classes]
        assert max(counts) - min(counts) <= 1 and len(batch) <= size
    left_out = int(usable.sum()) - len(set(flat(batches)))
    assert any(f"leaves out {left_out:,} of {int(usable.sum()):,} rows" in line for line in plan.notes) == (left_out > 0)


@settings(max_examples=40, deadline=None)
@given(usable=masks, column=st.sampled_from([None, *COLUMNS]), size=st.integers(2, 20), seed=st.integers(0, 9))
def test_one_source(data, usable, column, size, seed):
    plan = plan_batches(data, usable, size, seed, OneSourceBatches(column=column))
    source = ["ab"[i >= 60] for i in range(N)] if column is None else [v or "" for v in data.column(column)]
    count = Counter(source[i] for i in np.flatnonzero(usable))
    if max(count.values()) < 2:
        return
    batches = plan(0)
    assert sorted(flat(batches)) == [i for i in np.flatnonzero(usable) if count[source[i]] > 1]
    for batch in batches:
        assert len({source[i] for i in batch}) == 1 and 2 <= len(batch) <= size + 1


@settings(max_examples=40, deadline=None)
@given(
    usable=masks,
    size=st.integers(2, 8),
    many=st.integers(2, 5),
    seed=st.integers(0, 9),
    by=st.sampled_from(["bytes", "seconds"]),
)
def test_buckets(data, usable, size, many, seed, by):
    block = BucketBatches(
        column="seconds" if by == "seconds" else None, modality=None if by == "seconds" else "text", sorted_batches=many
    )
    plan = plan_batches(data, usable, size, seed, block)
    batches = plan(0)
    length = data.column("seconds") if by == "seconds" else [len(data.read(i, "text")) for i in range(N)]
    assert sorted(flat(batches)) == np.flatnonzero(usable).tolist()
    rng = np.random.default_rng([seed, 0, 1])
    order = [i for i in data.epoch_rows(rng) if usable[i]]
    wanted, starts = [], list(range(0, len(order), size * many))
    if len(order) - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        block_rows = sorted(order[start:stop], key=lambda i: length[i])
        cuts = [j for j in range(0, len(block_rows), size) if not (j and len(block_rows) - j == 1)]
        wanted += [sorted(block_rows[a:b]) for a, b in zip(cuts, [*cuts[1:], len(block_rows)], strict=True)]
    assert sorted(sorted(length[i] for i in b) for b in batches) == sorted(sorted(length[i] for i in b) for b in wanted)


def test_weights_of_training_sets_are_kept_and_epochs_resume(sets):
    data = WeightedConcat(sets, [2.0, 0.5])
    for block in (GroupBatches(rows=2), OneSourceBatches(), BucketBatches(modality="text")):
        plan = plan_batches(data, np.ones(N, bool), 10, 3, block)
        times = Counter(flat(plan(0)))
        assert [times[i] for i in range(60)] == [2] * 60 and sorted(times[i] for i in range(60, N)) == [0] * 15 + [1] * 15
        again = plan_batches(data, np.ones(N, bool), 10, 3, block)  # a resumed run starts in the middle of a later epoch
        assert [b.tolist() for b in again(4)[3:]] == [b.tolist() for b in plan(4)[3:]]


def test_any_number_of_threads_gives_the_same_batches(data):
    class Length:
        def __call__(self, signal, rng=None):
            import torch

            return {"n": torch.tensor([len(signal)])}

        def collate(self, items):
            import torch

            return {"n": torch.stack([i["n"] for i in items])}

    batches = plan_batches(data, np.ones(N, bool), 8, 0, GroupBatches(rows=4, column="even"))(0)
    ids = [[b.ids for b in Loader(data, {"text": Length()}, {}, workers=w).epoch(0, batches)] for w in (1, 4)]
    assert ids[0] == ids[1] == [[data.ids[i] for i in batch] for batch in batches]


def strided(epoch, *, stride: int, drop: int = 0):
    rows = np.sort(epoch.rows)[drop:]
    return [rows[j::stride] for j in range(stride)]


def test_a_plan_from_outside(data):
    spec = "tests.data.loader.test_batch_plan:strided"
    plan = plan_batches(data, np.ones(N, bool), 8, 0, CustomBatches(plan=spec, stride=6, drop=2))
    assert plan(0)[1].tolist() == list(range(3, N, 6))
    assert plan.notes == [f"data.batches: {spec} leaves out 2 of 90 rows in the first epoch"]
    before = dict(PLANS)
    try:
        mmtune.register_batch_plan("strided", spec)
        recipe = Recipe.parse({"model": "m", "data": {"train": "x", "batches": {"plan": "strided", "stride": 6}}})
        assert len(plan_batches(data, np.ones(N, bool), 8, 0, recipe.data.batches)(0)) == 6
    finally:
        PLANS.clear()
        PLANS.update(before)
    with pytest.raises(RecipeError, match="stride: is missing"):
        plan_batches(data, np.ones(N, bool), 8, 0, CustomBatches(plan=spec))
    with pytest.raises(RecipeError, match="no such option; did you mean 'stride'"):
        plan_batches(data, np.ones(N, bool), 8, 0, CustomBatches(plan=spec, stide=6))


WRONG = [
    ("spred", "data.batches: 'spred'; did you mean 'spread'?"),
    ({"groups": 8, "rows": 4}, "data.batches: 8 groups x 4 rows are 32 rows, but train.batch_size is 64; set it to 32"),
    ({"rows": 40}, "leave no room for a second group"),
    ({"rows": 4, "colum": "sku"}, "data.batches.colum: the batch plan groups has no such option; did you mean 'column'?"),
    ({"plan": "buckets"}, "set either column (numeric metadata) or modality"),
    ({"plan": "random", "rows": 3}, "the batch plan random has no such option"),
    (3, "is no batch plan"),
]


@pytest.mark.parametrize("batches,message", WRONG)
def test_wrong_blocks_are_one_line(batches, message):
    with pytest.raises(RecipeError) as e:
        Recipe.parse({"model": "m", "data": {"train": "x", "batches": batches}})
    assert message in str(e.value) and "\n" not in str(e.value)


def test_batches_of_near_neighbours_only_with_plans_that_allow_them():
    document = {"model": "m", "data": {"train": "x", "batches": {"rows": 4}}, "mining": {"use": {"confusable": 0.5}}}
    with pytest.raises(RecipeError, match="near neighbours do not keep the rows"):
        Recipe.parse(document)
    Recipe.parse({**document, "data": {"train": "x", "batches": {"plan": "balanced"}}})


def test_wrong_columns_are_named(data):
    for block, message in (
        (GroupBatches(rows=2, column="evn"), "data.batches: .*no row has a column 'evn'; did you mean 'even'"),
        (BucketBatches(column="even"), "data.batches: column 'even' of row 'r0' is 'e0', not a number"),
        (BucketBatches(modality="image"), "data.batches.modality: .* has no 'image'; it has text"),
    ):
        with pytest.raises(MmtuneError, match=message):
            plan_batches(data, np.ones(N, bool), 8, 0, block)(0)
