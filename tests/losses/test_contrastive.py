"""Every contrastive loss against a plain loop over rows, on a batch with repeats, groups, gaps and extra negatives."""

import pytest
import torch

from mmtune.losses.positives_mask import PositivesMask
from mmtune.training.build_objective import build_objective
from tests.support.losses_helpers import ROWS, make_batch, naive_contrastive, naive_info_nce, naive_sigmoid, naive_triplet, unit

SCALE, BIAS = 7.0, -3.0
CASES = [
    ({"loss": "info_nce"}, naive_info_nce(SCALE)),
    ({"loss": "info_nce", "positives": "sum"}, naive_info_nce(SCALE, "sum")),
    ({"loss": "info_nce", "positives": "mask"}, naive_info_nce(SCALE, "mask")),
    ({"loss": "info_nce", "smoothing": 0.1}, naive_info_nce(SCALE, smoothing=0.1)),
    ({"loss": "info_nce", "smoothing": 0.1, "positives": "mask"}, naive_info_nce(SCALE, "mask", smoothing=0.1)),
    ({"loss": "info_nce", "hardness": 0.5}, naive_info_nce(SCALE, hardness=0.5)),
    ({"loss": "info_nce", "hardness": 0.5, "positives": "mask"}, naive_info_nce(SCALE, "mask", hardness=0.5)),
    ({"loss": "info_nce", "hardness": 0.5, "positives": "sum"}, naive_info_nce(SCALE, "sum", hardness=0.5)),
    ({"loss": "info_nce", "robustness": 0.7}, naive_info_nce(SCALE, robustness=0.7)),
    ({"loss": "info_nce", "robustness": 0.3, "positives": "mask"}, naive_info_nce(SCALE, "mask", robustness=0.3)),
    ({"loss": "info_nce", "robustness": 1.0, "positives": "sum"}, naive_info_nce(SCALE, "sum", robustness=1.0)),
    ({"loss": "info_nce", "robustness": 0.5, "smoothing": 0.1}, naive_info_nce(SCALE, smoothing=0.1, robustness=0.5)),
    ({"loss": "info_nce", "scale": 3.0}, naive_info_nce(3.0)),
    ({"loss": "sigmoid"}, naive_sigmoid(SCALE, BIAS)),
    ({"loss": "triplet"}, naive_triplet(0.2, "cosine", "hard")),
    ({"loss": "triplet", "mining": "semi_hard", "margin": 0.5}, naive_triplet(0.5, "cosine", "semi_hard")),
    ({"loss": "triplet", "distance": "euclidean"}, naive_triplet(0.2, "euclidean", "hard")),
    ({"loss": "triplet", "distance": "euclidean", "mining": "semi_hard"}, naive_triplet(0.2, "euclidean", "semi_hard")),
]


def scale_of(a, b):
    return torch.tensor(SCALE), torch.tensor(BIAS)


@pytest.fixture(scope="module")
def data():
    batch = make_batch(ROWS)
    return batch, {m: unit(len(batch.inputs[m]["x"]), 6, seed) for m, seed in (("a", 1), ("b", 2))}


@pytest.mark.parametrize("term,naive", CASES, ids=[str(c[0]) for c in CASES])
@pytest.mark.parametrize("directions", ["both", "forward", "backward"])
@pytest.mark.parametrize("queries", ["rows", "items"])
def test_equals_a_naive_loop(data, term, naive, directions, queries):
    batch, z = data
    want = {}
    for name, (a, b) in {"forward": ("a", "b"), "backward": ("b", "a")}.items():
        want[name] = naive_contrastive(batch, z, a, b, naive, by_item=queries == "items")
    want["both"] = (want["forward"] + want["backward"]) / 2
    objective = build_objective([{**term, "directions": directions, "queries": queries}], [("a", "b")])
    loss, logs = objective(z, batch, scale_of)
    assert float(loss) == pytest.approx(want[directions], rel=1e-5)
    assert logs[term["loss"]] == pytest.approx(float(loss))


@pytest.mark.parametrize("term,naive", CASES, ids=[str(c[0]) for c in CASES])
@pytest.mark.parametrize("tile", ["never", "always"])
def test_a_mined_candidate_is_a_negative_of_the_queries_that_mined_it(data, term, naive, tile):
    batch, z = make_batch(ROWS), data[1]
    objective = build_objective([{**term, "tile": tile}], [("a", "b")])
    for_all = float(objective(z, batch, scale_of)[0])
    batch.hard_negatives = {"a->b": torch.tensor([[0, 3, 4], [8, 8, 9]]), "b->a": torch.tensor([[4], [10]])}
    want = sum(naive_contrastive(batch, z, a, b, naive) for a, b in (("a", "b"), ("b", "a"))) / 2
    got = float(objective(z, batch, scale_of)[0])
    assert got == pytest.approx(want, rel=1e-5) and got != for_all
    batch.hard_negatives = {"a->b": batch.hard_negatives["a->b"]}
    want = sum(naive_contrastive(batch, z, a, b, naive) for a, b in (("a", "b"), ("b", "a"))) / 2
    assert float(objective(z, batch, scale_of)[0]) == pytest.approx(want, rel=1e-5), (
        "nothing mined in a direction: no extra there"
    )


@pytest.mark.parametrize("positives", ["mask", "mean", "sum"])
def test_with_graded_weights_only_row_pairs_are_positives(data, positives):
    batch, z = data
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    batch.columns["grade"] = weights
    naive = naive_info_nce(SCALE, positives)
    want = sum(naive_contrastive(batch, z, *p, naive, weights) for p in (("a", "b"), ("b", "a"))) / 2
    loss, _ = build_objective([{"loss": "info_nce", "positives": positives, "weights": "grade"}], [("a", "b")])(
        z, batch, scale_of
    )
    assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("positives", ["mask", "mean", "sum"])
def test_a_graded_query_moves_towards_the_candidate_of_the_higher_weight(positives):
    """One query, two captions of different grade, one negative: the gradient is larger for the better caption."""
    batch = make_batch([(1, 10, 20, True), (1, 10, 21, True), (2, 11, 22, True)], {"grade": torch.tensor([9.0, 1.0, 1.0])})
    z = {"a": unit(2, 4, 1), "b": torch.nn.functional.normalize(torch.ones(3, 4), dim=1).requires_grad_()}
    term = {"loss": "info_nce", "weights": "grade", "positives": positives, "directions": "forward"}
    build_objective([term], [("a", "b")])(z, batch, scale_of)[0].backward()
    pull = (z["b"].grad @ z["a"][0]).tolist()
    assert pull[0] < pull[1] < pull[2]


def test_auto_is_sigmoid_with_a_bias_and_info_nce_without(data):
    batch, z = data
    auto = build_objective([{"loss": "auto"}], [("a", "b")])
    plain = {n: build_objective([{"loss": n}], [("a", "b")]) for n in ("sigmoid", "info_nce")}
    assert auto(z, batch, scale_of)[0] == plain["sigmoid"](z, batch, scale_of)[0]

    def without(a, b):
        return torch.tensor(SCALE), None

    assert auto(z, batch, without)[0] == plain["info_nce"](z, batch, without)[0]


def test_sigmoid_learns_a_bias_of_its_own_for_a_model_without(data):
    batch, z = data
    objective = build_objective([{"loss": "sigmoid", "bias": BIAS}], [("a", "b")])
    loss, _ = objective(z, batch, lambda a, b: (torch.tensor(SCALE), None))
    assert float(loss.detach()) == pytest.approx(float(objective(z, batch, scale_of)[0]), rel=1e-6)
    loss.backward()
    (bias,) = objective.parameters()
    assert bias.grad is not None and float(bias.grad) != 0


def test_matches_torch_on_a_plain_batch():
    rows = [(0, 10 + i, 50 + i, True) for i in range(9)]
    batch, z = make_batch(rows), {"a": unit(9, 5, 1), "b": unit(9, 5, 2)}
    logits = z["a"] @ z["b"].T * SCALE
    labels = torch.arange(9)
    cross = torch.nn.functional.cross_entropy
    want = (cross(logits, labels) + cross(logits.T, labels)) / 2
    loss, _ = build_objective([{"loss": "info_nce"}], [("a", "b")])(z, batch, lambda a, b: (torch.tensor(SCALE), None))
    assert float(loss) == pytest.approx(float(want), rel=1e-6)


def test_identical_content_in_two_slots_is_one_candidate(data):
    batch, z = data
    twice = make_batch(ROWS)
    twice.item_of_row["b"][5] = len(z["b"])  # row 5's content 21 arrives in a slot of its own, as from another process
    more = {"a": z["a"], "b": torch.cat([z["b"], z["b"][:1]])}
    objective = build_objective([{"loss": "info_nce"}], [("a", "b")])
    assert float(objective(more, twice, scale_of)[0]) == pytest.approx(float(objective(z, batch, scale_of)[0]), rel=1e-6)


def test_within_one_modality_an_item_is_not_compared_with_itself():
    rows = [(g, 10 + i, 50 + i, True) for i, g in enumerate((1, 1, 2, 2, 3))]
    batch, z = make_batch(rows), {"a": unit(5, 4, 1), "b": unit(5, 4, 2)}
    sim = z["a"] @ z["a"].T * SCALE
    want = []
    for i, partner in ((0, 1), (1, 0), (2, 3), (3, 2)):  # the fifth has no positive and does not count
        others = [j for j in range(5) if j != i]
        want.append(float(torch.logsumexp(sim[i, others], 0) - sim[i, partner]))
    loss, _ = build_objective([{"loss": "info_nce"}], [("a", "a")])(z, batch, lambda a, b: (torch.tensor(SCALE), None))
    assert float(loss) == pytest.approx(sum(want) / 4, rel=1e-5)


def test_positives_mask_blocks_equal_a_double_loop(monkeypatch):
    g = torch.Generator().manual_seed(0)
    q, c = (torch.randint(0, 6, (n, 3), generator=g) for n in (37, 53))
    want = torch.tensor([[any(x == y and x for x, y in zip(r, s, strict=True)) for s in c.tolist()] for r in q.tolist()])
    for at_once in (7, 1 << 20):  # a common label is expanded in several goes
        monkeypatch.setattr("mmtune.losses.positives_mask.MATCHES_AT_ONCE", at_once)
        mask = PositivesMask.from_arrays(q, c)
        assert torch.equal(torch.cat([mask.block(0, 20), mask.block(20, 37)]), want)
        assert torch.equal(mask.transposed.block(0, 53), want.T)
    assert mask.pairs(0, 37, limit=10) is None


def test_gradients_are_finite_when_a_query_has_no_negatives():
    batch = make_batch([(1, 10, 20, True), (1, 11, 21, True)])
    for term, _ in CASES:
        z = {"a": unit(2, 4, 1).requires_grad_(), "b": unit(2, 4, 2).requires_grad_()}
        loss, _ = build_objective([term], [("a", "b")])(z, batch, scale_of)
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(v.grad).all() for v in z.values()), term
