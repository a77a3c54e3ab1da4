"""Tiled losses have the value and the gradients of dense ones, at any tile size, for every contrastive loss."""

import pytest
import torch

from mmtune.losses import tiled
from mmtune.training import objective, tiled_both_directions
from mmtune.training.build_objective import build_objective
from mmtune.training.teacher_outputs import TeacherVectors
from tests.losses.test_contrastive import CASES
from tests.support.losses_helpers import ROWS, make_batch, unit


def outcome(terms, batch, logs_scale, memory=None, teachers=None, steps=1):
    """(loss, gradients of vectors, scales and bias) after `steps` batches, all in one vector."""
    objective = build_objective(terms, [("a", "b")], memory=memory, teachers=teachers)
    z = {m: unit(int(batch.item_of_row[m].max()) + 1, 6, s).requires_grad_() for m, s in (("a", 1), ("b", 2))}
    learned = {
        "ab": torch.tensor(float(logs_scale[0]), requires_grad=True),
        "ba": torch.tensor(float(logs_scale[1]), requires_grad=True),
    }
    bias = torch.tensor(-2.0, requires_grad=True)
    for step in range(steps):
        shifted = {m: torch.nn.functional.normalize(v + 0.1 * step, dim=1) for m, v in z.items()}
        loss, _ = objective(shifted, batch, lambda a, b: (learned[a + b].exp(), bias))
    loss.backward()
    found = [loss.detach().reshape(1)]
    for x in (*z.values(), *learned.values(), bias):
        found.append(torch.zeros(1) if x.grad is None else x.grad.flatten())
    return found


def close(got, want, rel=1e-5, small=1e-6):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        assert float((x - y).norm()) <= rel * float(y.norm()) + small


EXTRA = [
    {"loss": "info_nce", "weights": "grade"},
    {"loss": "info_nce", "weights": "grade", "positives": "mask"},
    {"loss": "info_nce", "guide": "other", "guide_margin": 0.1},
    {"loss": "sigmoid", "guide": "other"},
    {"loss": "info_nce", "queries": "items"},
    {"loss": "info_nce", "directions": "forward"},
]


@pytest.mark.parametrize("scales", [(2.0, 2.0), (4.4, 4.4), (2.0, 1.5)], ids=["one", "large", "two"])
@pytest.mark.parametrize("term", [c[0] for c in CASES] + EXTRA, ids=str)
def test_tiles_equal_dense(term, scales, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", {"cpu": (3, 2)})
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 1)
    monkeypatch.setattr(tiled, "PAIRS_AT_ONCE", 2)
    rows = ROWS + [(7, 40 + i, 60 + i, True) for i in range(21)] + [(8, 90, 91, False)]  # more than one block of 16
    batch = make_batch(rows, {"grade": torch.linspace(0, 2, len(rows))})
    n = len(rows)
    teacher = TeacherVectors("other", {m: unit(n, 4, 9) for m in "ab"}, {m: torch.arange(n).numpy() for m in "ab"}, "f")
    got, want = (outcome([{**term, "tile": t}], batch, scales, teachers={"other": teacher}) for t in ("always", "never"))
    close(got, want)


@pytest.mark.parametrize("scales", [(5.6, 5.6), (5.6, 5.5)], ids=["one", "two"])
@pytest.mark.parametrize("positives", ["mean", "mask"])
def test_sums_that_underflow_are_computed_with_a_running_maximum(scales, positives):
    """Scales past any model's (270) and opposite vectors: e^-540 of the largest term is nothing in float32."""
    n, found = 8, []
    near = torch.nn.functional.normalize(unit(1, 3, 1) + 0.05 * unit(n + 1, 3, 2), dim=1)
    for way in ("tiled", "dense"):
        a, b = torch.cat([near[:n], -near[n:]]).requires_grad_(), near.clone().requires_grad_()
        sa, sb = (torch.tensor(s).exp().requires_grad_() for s in scales)
        i = torch.arange(n + 1)
        if way == "tiled":
            share = torch.full((n + 1,), 0.5 / (n + 1))
            ignored = None if positives == "mean" else (i, i)
            loss = tiled.tiled_info_nce(a, b, (i, i), (share, share), (sa, sb), ignored)
        else:
            cross = torch.nn.functional.cross_entropy
            loss = (cross(a @ b.T * sa, i) + cross(b @ a.T * sb, i)) / 2
        loss.backward()
        found.append([loss.detach().reshape(1), a.grad, b.grad, sa.grad.reshape(1), sb.grad.reshape(1)])
    tiles = tiled._Tiles(a.detach(), b.detach(), float(sa.detach()), float(sb.detach()))
    tiles.log_normalisers()
    assert tiles.running_maximum
    close(*found, rel=1e-4, small=1e-5)  # logits of 270 have four digits after the point


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid", "triplet"])
def test_tiles_equal_dense_with_a_memory(loss, monkeypatch):
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 1)
    batch = make_batch(ROWS)
    batch.labels["a"][4] = batch.labels["b"][4] = 0
    got, want = (
        outcome([{"loss": loss, "tile": t}], batch, (2.0, 2.0), memory={"size": 50}, steps=3) for t in ("always", "never")
    )
    close(got, want)


def test_large_batches_are_tiled_automatically(monkeypatch):
    used = []
    real = tiled_both_directions.tiled_info_nce
    monkeypatch.setattr(tiled_both_directions, "tiled_info_nce", lambda *a: used.append(1) or real(*a))
    batch = make_batch(ROWS)
    outcome([{"loss": "info_nce"}], batch, (2.0, 2.0))
    assert not used
    monkeypatch.setattr(objective, "TILE_ABOVE", 10)
    outcome([{"loss": "info_nce"}], batch, (2.0, 2.0))
    assert used


def test_the_queue_counts_for_the_tiles_and_its_columns_for_the_loss(monkeypatch):
    """Batches of 4 pairs stay below the limit alone; with the queue they are tiled, and equal a loop over queries."""
    monkeypatch.setattr(objective, "TILE_ABOVE", 4 * 4)
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 1)
    calls = []
    real = objective.tiled_loss
    monkeypatch.setattr(objective, "tiled_loss", lambda *a: calls.append(1) or real(*a))
    made = build_objective([{"loss": "info_nce"}], [("a", "b")], memory={"size": 6})
    old = {m: unit(4, 6, s) for m, s in (("a", 3), ("b", 4))}
    new = {m: unit(4, 6, s).requires_grad_() for m, s in (("a", 1), ("b", 2))}
    made(old, make_batch([(0, 10 + i, 20 + i, True) for i in range(4)]), lambda a, b: (torch.tensor(7.0), None))
    assert not calls
    batch = make_batch([(0, 30 + i, 40 + i, True) for i in range(4)])
    batch.labels["id"] = batch.labels["id"] + 1000
    loss, _ = made(new, batch, lambda a, b: (torch.tensor(7.0), None))
    assert len(calls) == 2
    naive = []
    for a, b in (("a", "b"), ("b", "a")):
        candidates = torch.cat([new[b], old[b]])
        for q in range(4):
            logits = 7 * candidates @ new[a][q]
            naive.append(torch.logsumexp(logits, 0) - logits[q])
    want = torch.stack(naive).mean()
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    for got, expected in zip(*(torch.autograd.grad(x, [*new.values()]) for x in (loss, want)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_huge_batches_keep_their_precision():
    """An item of a batch of a million weighs 1e-9 and less; with cosines near 1 that is divided by sums of e^75 no more."""
    n, found = 9, []
    near = torch.nn.functional.normalize(unit(1, 5, 1) + 0.02 * unit(n, 5, 2), dim=1)
    for share in (1e-9, 1.0):
        a, b, scale = near.clone().requires_grad_(), near.flip(0).clone().requires_grad_(), torch.tensor(100.0)
        i = torch.arange(n)
        weight = torch.full((n,), share)
        tiled.tiled_info_nce(a, b, (i, i), (weight, weight), (scale, scale)).backward()
        found.append((a.grad / share, b.grad / share))
    for small, whole in zip(*found, strict=True):
        torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_very_common_labels_fall_back_to_blocks(monkeypatch):
    monkeypatch.setattr(tiled, "MATCH_LIMIT", 0.5)
    batch = make_batch([(1, 10 + i, 50 + i, True) for i in range(20)])
    close(*(outcome([{"loss": "info_nce", "tile": t}], batch, (2.0, 2.0)) for t in ("always", "never")))


def test_no_graph_without_gradients_and_one_backward_only():
    batch = make_batch(ROWS)
    objective = build_objective([{"loss": "info_nce", "tile": "always"}], [("a", "b")])
    z = {m: unit(int(batch.item_of_row[m].max()) + 1, 6, 1).requires_grad_() for m in "ab"}
    with torch.no_grad():
        assert not objective(z, batch, lambda a, b: (torch.tensor(5.0), None))[0].requires_grad
    loss, _ = objective(z, batch, lambda a, b: (torch.tensor(5.0), None))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called twice"):
        loss.backward()


def test_the_logits_never_exist():
    """No tensor has the size of all logits: with 4,096 x 4,096 the largest one is far smaller."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return out

    n = 4096
    slot, labels = torch.arange(n), {k: torch.arange(1, n + 1) for k in ("id", "a", "b")}
    batch = make_batch(ROWS)
    batch.is_query, batch.index, batch.item_of_row = torch.ones(n, dtype=torch.bool), slot, {"a": slot, "b": slot}
    batch.labels = labels | {"group": torch.zeros(n, dtype=torch.int64)}
    for term in ({"loss": "info_nce"}, {"loss": "sigmoid"}):
        z = {m: unit(n, 8, 1).requires_grad_() for m in "ab"}
        with Watch():
            build_objective([term], [("a", "b")])(z, batch, lambda a, b: (torch.tensor(5.0), torch.tensor(-1.0)))[0].backward()
        assert largest <= 20 << 20 < n * n * 4
