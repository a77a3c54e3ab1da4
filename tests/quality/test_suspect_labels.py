"""Labels that a leave-one-out classifier doubts: its scores are those of refits, and planted errors are found."""

import numpy as np

from mmtune.quality import suspect_labels as module
from mmtune.quality.suspect_labels import RIDGE, suspect_labels


def corpus(rng, classes=12, rows=25, dim=20):
    """(vectors, classes): clusters with some overlap."""
    of = np.repeat(np.arange(classes), rows)
    return rng.standard_normal((classes, dim))[of] + 0.7 * rng.standard_normal((len(of), dim)), of


def refit(x, of):
    """The scores of each row by a regression on all the others, with the features' and the classes' means of all rows."""
    x = x - x.mean(0)
    y = np.eye(of.max() + 1)[of]
    share = y.mean(0)
    ridge = RIDGE * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
    # the mean is a feature that is not regularised; the row's own part of it is left out, too
    x1 = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.zeros((x1.shape[1], x1.shape[1]))
    penalty[:-1, :-1] = ridge
    scores = np.empty_like(y)
    for i in range(len(x)):
        kept = np.arange(len(x)) != i
        a = x1[kept]
        scores[i] = x1[i] @ np.linalg.solve(a.T @ a + penalty, a.T @ (y[kept] - share)) + share
    return scores


def test_the_scores_are_those_of_refits(monkeypatch):
    x, of = corpus(np.random.default_rng(0), classes=5, rows=12, dim=8)
    of = of.copy()
    of[[3, 20]] = [2, 4]
    scores = refit(x, of)
    best, own = scores.argmax(1), scores[np.arange(len(of)), of]
    threshold = np.array([own[of == c].mean() for c in range(5)])
    want = (best != of) & (scores.max(1) >= threshold[best]) & (own < threshold[of] / 2) & (threshold[best] > 0)
    for block in (1, 64 << 20):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
        found = suspect_labels(x, of)
        assert found.rows.tolist() == np.flatnonzero(want).tolist() and found.predicted.tolist() == best[want].tolist()
    assert 20 in found.rows


def test_a_fifth_of_wrong_labels_is_found_with_few_false_alarms():
    rng = np.random.default_rng(1)
    x, of = corpus(rng)
    assert len(suspect_labels(x, of).rows) <= 0.02 * len(of)
    wrong = rng.permutation(len(of))[: len(of) // 5]
    noisy = of.copy()
    noisy[wrong] = (of[wrong] + rng.integers(1, 12, len(wrong))) % 12
    found = suspect_labels(x, noisy)
    right = np.isin(found.rows, wrong)
    assert right.mean() >= 0.9 and right.sum() >= 0.5 * len(wrong)
    assert np.mean(found.predicted == of[found.rows]) >= 0.9


def test_without_a_signal_nothing_is_suspected():
    rng = np.random.default_rng(2)
    assert not len(suspect_labels(rng.standard_normal((200, 6)), rng.integers(0, 10, 200)).rows)
