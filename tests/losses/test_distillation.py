"""Distillation losses and Matryoshka against loops."""

import math

import numpy as np
import pytest
import torch

from mmtune.errors import DataError, RecipeError
from mmtune.losses.distillation import DistillationBlock, kl, margin_mse, score_mse
from mmtune.training.build_objective import build_objective
from mmtune.training.teacher_outputs import TeacherScores, TeacherVectors
from tests.support.losses_helpers import ROWS, make_batch, unit

PAIR = [("a", "b")]


def scale_of(a, b):
    return torch.tensor(5.0), None


def teacher_block():
    g = torch.Generator().manual_seed(3)
    sim, scores = torch.rand(4, 6, generator=g), torch.rand(4, 6, generator=g)
    scores[0, 1:3] = scores[2] = math.nan
    scores[2, 4] = 0.3  # one scored candidate has no order
    pos = torch.zeros(4, 6, dtype=torch.bool)
    pos[:, 0] = pos[1, 3] = True
    return DistillationBlock(sim.requires_grad_(), scores, pos, ~pos, torch.tensor(5.0))


def test_kl_equals_a_loop():
    t, per_query = teacher_block(), []
    for q in (0, 1, 3):
        known = [c for c in range(6) if not math.isnan(t.teacher_scores[q, c])]
        teach = np.array([float(t.teacher_scores[q, c]) / 0.2 for c in known])
        student = np.array([5 * float(t.similarity[q, c].detach()) for c in known])
        p, s = (np.exp(x) / np.exp(x).sum() for x in (teach, student))
        per_query.append(float((p * np.log(p / s)).sum()))
    value = kl(t, temperature=0.2)
    assert float(value.detach()) == pytest.approx(sum(per_query) / 3, rel=1e-5)
    value.backward()
    assert torch.isfinite(t.similarity.grad).all() and float(t.similarity.grad[2].abs().sum()) == 0


def test_score_mse_and_margin_mse_equal_loops():
    t = teacher_block()
    s, y = t.similarity.detach(), t.teacher_scores
    known = [(q, c) for q in range(4) for c in range(6) if not math.isnan(y[q, c])]
    assert float(score_mse(t).detach()) == pytest.approx(sum(float(s[k] - y[k]) ** 2 for k in known) / len(known), rel=1e-5)
    each = []
    for q in range(4):
        p = [c for c in range(6) if t.positives[q, c] and (q, c) in known]
        n = [c for c in range(6) if t.negatives[q, c] and (q, c) in known]
        if p and n:
            gaps = [float((s[q, i] - s[q, j]) - 2 * (y[q, i] - y[q, j])) ** 2 for i in p for j in n]
            each.append(sum(gaps) / len(gaps))
    assert float(margin_mse(t, factor=2.0).detach()) == pytest.approx(sum(each) / len(each), rel=1e-4)


def data():
    batch = make_batch(ROWS)
    return {m: unit(int(batch.item_of_row[m].max()) + 1, 6, s) for m, s in (("a", 1), ("b", 2))}, batch


@pytest.mark.parametrize("loss", ["kl", "score_mse"])
def test_within_one_modality_an_item_is_not_compared_with_itself(loss):
    rows = [(0, 10 + i, 50 + i, True) for i in range(4)]
    batch, z = make_batch(rows), {"a": unit(4, 6, 1), "b": unit(4, 6, 2)}
    vectors = {m: unit(4, 5, 8) for m in "ab"}
    teacher = TeacherVectors("big", {m: v.numpy() for m, v in vectors.items()}, {m: np.arange(4) for m in "ab"}, "print")
    term = {"loss": loss, "teacher": "big", **({"temperature": 0.5} if loss == "kl" else {})}
    value, _ = build_objective([term], [("a", "a")], teachers={"big": teacher})(z, batch, scale_of)
    want = 0.0
    for i in range(4):
        others = [j for j in range(4) if j != i]
        student = (z["a"][i] @ z["a"][others].T) * (5.0 if loss == "kl" else 1.0)
        scores = (vectors["a"][i] @ vectors["a"][others].T) / (0.5 if loss == "kl" else 1.0)
        if loss == "kl":
            p, q = scores.softmax(0), student.log_softmax(0)
            want += float((p * (p.log() - q)).sum()) / 4
        else:
            want += float((student - scores).square().sum()) / 12
    assert float(value) == pytest.approx(want, rel=1e-4)


def vectors_teacher(dim, lacking=None):
    row = {m: np.arange(len(ROWS)) for m in "ab"}
    if lacking is not None:
        row["b"][lacking] = -1
    return TeacherVectors("big", {m: unit(len(ROWS), dim, s).numpy() for m, s in (("a", 8), ("b", 9))}, row, "print")


def test_feature_distillation_follows_the_teacher_by_row():
    z, batch = data()
    teacher = vectors_teacher(6)
    objective = build_objective([{"loss": "feature", "teacher": "big"}], PAIR, dim=6, teachers={"big": teacher})
    assert not list(objective.parameters())
    want = 0.0
    takes = {"a": [0, 1, 2, 3, 4, 5, 10], "b": [0, 1, 2, 4, 8, 9, 10]}  # the first row of each item of the pair
    for m, rows in takes.items():
        gap = [(z[m][batch.item_of_row[m][r]] - teacher.vectors[m][r]).square().sum() for r in rows]
        want += float(sum(gap) / len(gap)) / 2
    assert float(objective(z, batch, scale_of)[0]) == pytest.approx(want, rel=1e-5)


def test_another_width_gets_a_projection_that_trains():
    z, batch = data()
    objective = build_objective([{"loss": "feature", "teacher": "big"}], PAIR, dim=6, teachers={"big": vectors_teacher(10)})
    before = objective(z, batch, scale_of)[0]
    optimizer = torch.optim.Adam(objective.parameters(), 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(z, batch, scale_of)[0]
        loss.backward()
        optimizer.step()
    assert {tuple(p.shape) for p in objective.parameters()} == {(10, 6)} and len(list(objective.parameters())) == 2
    assert float(loss.detach()) < 0.7 * float(before.detach())


def test_scores_are_found_by_content_in_both_directions():
    z, batch = data()
    a, b, score = np.array([11, 11, 12, 15]), np.array([21, 23, 22, 24]), np.array([0.9, 0.1, 0.8, 0.7])
    teacher = TeacherScores("judge", {("a", "b"): (a, b, score)}, "print")
    found = teacher.between(("a", "b"), torch.tensor([11, 12, 99]), torch.tensor([23, 21, 22]))
    assert torch.equal(torch.nan_to_num(found, -1), torch.tensor([[0.1, 0.9, -1], [-1, -1, 0.8], [-1, -1, -1]]))
    turned = teacher.between(("b", "a"), torch.tensor([23, 21, 22]), torch.tensor([11, 12, 99]))
    assert torch.equal(torch.nan_to_num(turned, -1), torch.nan_to_num(found, -1).T)
    loss, _ = build_objective([{"loss": "score_mse", "teacher": "judge"}], PAIR, teachers={"judge": teacher})(
        z, batch, scale_of
    )
    gaps = []
    for x, y, s in zip(a.tolist(), b.tolist(), score.tolist(), strict=True):
        u, v = (batch.item_of_row[m][batch.labels[m].tolist().index(c)] for m, c in (("a", x), ("b", y)))
        gaps.append((float(z["a"][u] @ z["b"][v]) - s) ** 2)
    assert float(loss) == pytest.approx(sum(gaps) / 4, rel=1e-5)


@pytest.mark.parametrize(
    "term,teacher,says",
    [
        ({"loss": "kl"}, None, "objective[0].teacher: kl needs the name of a teacher"),
        ({"loss": "kl", "teacher": "bgi"}, "v", "objective[0].teacher: there is no teacher 'bgi'; did you mean 'big'"),
        (
            {"loss": "info_nce", "guide": "big"},
            None,
            "objective[0].guide: there is no teacher 'big'; the recipe has no `teachers`",
        ),
        ({"loss": "feature", "teacher": "big"}, "s", "only scores pairs; the feature loss needs embeddings"),
        ({"loss": "info_nce", "guide": "big"}, "s", "only scores pairs; a guide needs embeddings"),
    ],
)
def test_teacher_mistakes_name_their_key(term, teacher, says):
    score = TeacherScores("big", {("a", "b"): (np.array([1]), np.array([1]), np.array([0.5]))}, "f")
    teachers = {"big": {"v": vectors_teacher(6), "s": score}[teacher]} if teacher else {}
    with pytest.raises(RecipeError) as e:
        build_objective([term], PAIR, dim=6, teachers=teachers)
    assert says in str(e.value)


def test_a_row_without_teacher_vector_is_an_error():
    z, batch = data()
    objective = build_objective([{"loss": "kl", "teacher": "big"}], PAIR, teachers={"big": vectors_teacher(6, lacking=1)})
    with pytest.raises(DataError, match="teachers.big: there is no b embedding of training row number 1"):
        objective(z, batch, scale_of)


def test_scores_outside_a_cosine_are_refused_by_the_loss_that_needs_one():
    z, batch = data()
    teacher = TeacherScores("judge", {("a", "b"): (np.array([11]), np.array([21]), np.array([7.5]))}, "f")
    objective = build_objective([{"loss": "score_mse", "teacher": "judge"}], PAIR, teachers={"judge": teacher})
    with pytest.raises(DataError, match=r"objective\[0\]: teacher 'judge' gives a score of 7.5, outside"):
        objective(z, batch, scale_of)
    with pytest.raises(DataError, match="teachers.judge: score number 0 of a-b is nan"):
        TeacherScores("judge", {("a", "b"): (np.array([11]), np.array([21]), np.array([np.nan]))}, "f")


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid", "triplet"])
def test_matryoshka_is_the_weighted_mean_over_prefixes(loss):
    z, batch = data()
    terms = [{"loss": loss}]
    plain = build_objective(terms, PAIR)
    cut = {d: {m: torch.nn.functional.normalize(v[:, :d], dim=1) for m, v in z.items()} for d in (2, 4, 6)}
    value = {d: float(plain(v, batch, lambda a, b: (torch.tensor(5.0), torch.tensor(-1.0)))[0]) for d, v in cut.items()}
    nested = build_objective(terms, PAIR, dim=6, matryoshka={"dims": [2, 4], "weights": [0.5, 2.0]})
    loss, logs = nested(z, batch, lambda a, b: (torch.tensor(5.0), torch.tensor(-1.0)))
    assert float(loss) == pytest.approx((0.5 * value[2] + 2 * value[4] + value[6]) / 3.5, rel=1e-5)
    assert logs["dim 2"] == pytest.approx(value[2])


@pytest.mark.parametrize(
    "given", [{"dims": [8]}, {"dims": []}, {"dims": [2, 2]}, {"dims": [2], "weights": [1, 2]}, {"dim": [2]}]
)
def test_matryoshka_mistakes(given):
    with pytest.raises(RecipeError, match="matryoshka"):
        build_objective([{"loss": "auto"}], PAIR, dim=6, matryoshka=given)
