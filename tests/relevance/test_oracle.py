"""Positives by plain loops over rows: the numpy model of evaluation and mining, and its torch twin in the losses, on the same
random corpora with shared content, groups, rows without labels, missing modalities and judgments."""

import numpy as np
import pytest
import torch

from mmtune.contracts import Embeddings
from mmtune.losses.positives_mask import PositivesMask
from mmtune.relevance import positives as positives_module
from mmtune.relevance.items import Items, take_rows, unique_items
from mmtune.relevance.judgments import Judgments, Verdict, judged_pairs
from mmtune.relevance.positives import Positives, relevant_blocks

SEEDS = range(40)
KINDS = {"all": None, "own rows": ("id",), "groups": ("group",), "rows and groups": ("id", "group")}


def corpus(seed: int) -> dict[str, Embeddings]:
    """Rows of modalities "a" and "b" (and content labels of a third) in any order; 0 is no group, no content."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    group = rng.integers(0, int(rng.integers(1, 8)), n)
    labels = {"id": rng.permutation(n) + 1, "group": group}
    for kind in ("a", "b", "c"):
        labels[kind] = rng.integers(0, int(rng.integers(1, 2 * n)) + 1, n) + (kind != "c") * 1000
    out = {}
    for name in ("a", "b"):
        table = rng.standard_normal((3 * n + 1001, 6))
        x = table[labels[name]]
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        groups = [f"g{g}" if g else None for g in group]
        whole = Embeddings([f"r{i:03d}" for i in labels["id"]], groups, {k: v.astype(np.int64) for k, v in labels.items()}, x)
        keep = np.flatnonzero(rng.random(n) < (0.8 if seed % 2 else 1.0))
        out[name] = take_rows(whole, rng.permutation(keep if len(keep) else np.arange(n)))
    return out


def naive_items(name: str, e: Embeddings) -> list[list[int]]:
    """Rows of each item, items by descending smallest id."""
    by_content: dict[object, list[int]] = {}
    for row in range(len(e.ids)):
        content = int(e.labels[name][row])
        by_content.setdefault(content or ("row", row), []).append(row)
    return sorted(by_content.values(), key=lambda rows: min(e.ids[r] for r in rows), reverse=True)


def naive_related(a: Embeddings, b: Embeddings, kinds) -> list[list[bool]]:
    """Whether row i of a and row j of b share a non-zero label of one of the kinds."""
    kinds = kinds or sorted({*a.labels} | {*b.labels})
    return [
        [any(a.labels[k][i] != 0 and a.labels[k][i] == b.labels[k][j] for k in kinds) for j in range(len(b.ids))]
        for i in range(len(a.ids))
    ]


def naive_matrix(a: str, b: str, e: dict[str, Embeddings], kinds) -> np.ndarray:
    """bool [query items, candidate items], within a modality with the item itself."""
    related = naive_related(e[a], e[b], kinds)
    left, right = naive_items(a, e[a]), naive_items(b, e[b])
    out = [[any(related[i][j] for i in x for j in y) for y in right] for x in left]
    return np.array(out) | (np.eye(len(left), dtype=bool) if a == b else False)


def sides(a: str, b: str, e: dict[str, Embeddings]) -> tuple[Items, Items]:
    queries = unique_items(a, e[a])
    return queries, queries if a == b else unique_items(b, e[b])


def every_pair(p: Positives) -> np.ndarray:
    q, c = np.arange(len(p.queries)), np.arange(len(p.candidates))
    return p.contains(q, np.broadcast_to(c, (len(q), len(c))))


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a"), ("a", "a"), ("b", "b")])
def test_numpy_positives_are_those_of_the_loops(kinds, pair, monkeypatch):
    some = 0
    for seed in SEEDS:
        e = corpus(seed)
        expected = naive_matrix(*pair, e, KINDS[kinds])
        queries, candidates = sides(*pair, e)
        for big in (positives_module.BIG, 1):  # pair by pair, and by rectangle
            monkeypatch.setattr(positives_module, "BIG", big)
            p = Positives(queries, candidates, KINDS[kinds])
            np.testing.assert_array_equal(every_pair(p), expected)
        without_itself = expected & ~np.eye(len(expected), dtype=bool) if pair[0] == pair[1] else expected
        for limit in (3, 4096):
            monkeypatch.setattr(positives_module, "MAX_PAIRS", 5)
            lists = [b.items[i].tolist() for b in p.blocks(limit) for i in range(b.stop - b.start)]
            assert lists == [np.flatnonzero(row).tolist() for row in without_itself]
        some += int(without_itself.sum())
    assert some > 50 or kinds == "own rows"


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("pair", [("a", "b"), ("a", "a")])
def test_the_torch_positives_are_the_same(kinds, pair):
    for seed in SEEDS:
        e = corpus(seed)
        queries, candidates = sides(*pair, e)
        chosen = KINDS[kinds] or ("a", "b", "c", "group", "id")

        def entries(items: Items, kinds=chosen) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
            item = torch.from_numpy(items.of_row)
            return {k: (item, torch.from_numpy(items.labels[k])) for k in kinds}

        mask = PositivesMask(entries(queries), entries(candidates), (len(queries), len(candidates)))
        related = torch.cat([mask.block(i, min(i + 4, len(queries))) for i in range(0, len(queries), 4)]).numpy()
        related = related | np.eye(len(related), dtype=bool) if pair[0] == pair[1] else related
        np.testing.assert_array_equal(related, naive_matrix(*pair, e, KINDS[kinds]))
        np.testing.assert_array_equal(related, every_pair(Positives(queries, candidates, KINDS[kinds])))


def test_own_positives_and_group_positives(monkeypatch):
    for seed in SEEDS:
        e = corpus(seed)
        queries, candidates = sides("a", "b", e)
        p = Positives(queries, candidates)
        own = naive_matrix("a", "b", e, ("id",))
        assert [p.own()[i].tolist() for i in range(len(queries))] == [np.flatnonzero(row).tolist() for row in own]
        everything = naive_matrix("a", "b", e, None)
        q, c = p.group_positives(np.arange(len(queries)))
        listed = np.zeros_like(everything)
        listed[q, c] = True
        np.testing.assert_array_equal(listed, everything)  # fewer than the limit: all of them
        monkeypatch.setattr(positives_module, "MAX_GROUP_POSITIVES", 2)
        q, c = p.group_positives(np.arange(len(queries)))
        assert everything[q, c].all() and (np.bincount(q, minlength=len(queries)) == np.minimum(everything.sum(1), 2)).all()
        monkeypatch.undo()
        first = Positives(queries, candidates, ("id",), first_row_only=True)
        head = [min(rows, key=lambda r: e["a"].ids[r]) for rows in naive_items("a", e["a"])]
        expected = [
            [any(e["a"].labels["id"][h] == e["b"].labels["id"][r] for r in y) for y in naive_items("b", e["b"])] for h in head
        ]
        np.testing.assert_array_equal(every_pair(first), np.array(expected))


def test_judgments_decide_for_evaluation_and_add_positives_for_mining():
    for seed in SEEDS:
        e = corpus(seed)
        rng = np.random.default_rng(seed)
        ids = sorted({*e["a"].ids, *e["b"].ids})
        qrels = Judgments()
        for q in ids:
            qrels[q] = {d: int(rng.integers(-1, 4)) for d in rng.choice(ids, 3)}
        qrels.directed["a->b"] = {ids[0]: {ids[-1]: 3}}
        for pair in (("a", "b"), ("a", "a")):
            queries, candidates = sides(*pair, e)
            left, right = naive_items(pair[0], e[pair[0]]), naive_items(pair[1], e[pair[1]])
            expected = np.zeros((len(left), len(right)), np.int64)
            for i, x in enumerate(left):
                for j, y in enumerate(right):
                    for q in x:
                        of_query = dict(qrels[e[pair[0]].ids[q]])
                        if pair == ("a", "b"):
                            of_query |= qrels.directed["a->b"].get(e["a"].ids[q], {})
                        grades = [of_query.get(e[pair[1]].ids[c], 0) for c in y]
                        expected[i, j] = max([expected[i, j], *grades])
            if pair[0] == pair[1]:
                np.fill_diagonal(expected, 0)
            grades_QC = np.zeros_like(expected)
            for block in relevant_blocks(queries, candidates, 4, qrels):
                owner = np.repeat(np.arange(block.start, block.stop), block.items.counts)
                grades_QC[owner, block.items.values] = block.grades
            np.testing.assert_array_equal(grades_QC, expected)
            verdicts = [Verdict(q, d, bool(rng.random() < 0.5)) for q in ids for d in rng.choice(ids, 2)]
            judged = judged_pairs(verdicts, "->".join(pair), queries, candidates)
            naive = naive_verdicts(verdicts, pair, e)
            every = naive_matrix(*pair, e, None)
            for (i, j), positive in naive.items():
                every[i, j] |= positive
                assert (j in judged.negative[i].tolist()) == (not positive)
            p = Positives(queries, candidates, judged=judged.positive)
            np.testing.assert_array_equal(every_pair(p), every)


def naive_verdicts(verdicts: list[Verdict], pair: tuple[str, str], e: dict[str, Embeddings]) -> dict[tuple[int, int], bool]:
    """The last verdict on each pair of items; it holds both ways."""
    left, right = ({e[m].ids[r]: i for i, rows in enumerate(naive_items(m, e[m])) for r in rows} for m in pair)
    out = {}
    for v in verdicts:
        for q, c in ((v.query, v.item), (v.item, v.query)):
            if q in left and c in right:
                out[left[q], right[c]] = v.positive
    return out
