"""Learn from answered pairs which dimensions of an embedding matter: logistic regression with the plain cosine as its prior."""

from dataclasses import dataclass

import numpy as np

MIN_OF_A_KIND = 2
"""Fewest matches, and fewest other answers, from which the weights are fitted; with fewer, only the threshold moves."""


@dataclass(frozen=True)
class PairMetric:
    """P(match) = sigmoid(sum_d weight_d * a_d * b_d + bias) of a pair of unit vectors a, b.

    weight: float [D]; equal weights rank as the cosine does
    """

    weight: np.ndarray
    bias: float

    def probability(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float [N], of pairs a, b [N, D]."""
        return 1 / (1 + np.exp(-np.clip((a * b) @ self.weight + self.bias, -30, 30)))


def cosine_metric(scores: np.ndarray, positive: float = 0.5) -> PairMetric:
    """A metric for no answers: half of the pairs at the quantile `positive` of the scores match.

    scores: cosines of candidate pairs, float [N]
    """
    spread = max(float(np.std(scores)), 1e-3)
    scale = 2.0 / spread
    return PairMetric(np.array([scale]), -scale * float(np.quantile(scores, positive)))


def fit_pair_metric(a: np.ndarray, b: np.ndarray, match: np.ndarray, start: PairMetric, ridge: float = 1.0) -> PairMetric:
    """Fit the metric to answers.

    a, b: unit vectors of the pairs, float [N, D]; match: bool [N]; start: the metric without answers
    ridge: strength of the prior; with 1 a weight deviates from the common scale by as much as that scale

    First scale and bias of the plain cosine are fitted, then, if there are answers of both kinds, the weights around that scale, by
    Newton's method on the penalised likelihood, which is convex.
    """
    y = match.astype(np.float64)
    level = float(np.mean(start.weight))
    cosine = (a * b).sum(1, keepdims=True).astype(np.float64)
    prior = np.array([level, start.bias])
    scale, bias = _newton(np.hstack([cosine, np.ones_like(cosine)]), y, prior, np.array([1 / level**2, 0.05]))
    scale = max(scale, 0.1 * level)
    dims = a.shape[1]
    if min(match.sum(), (~match).sum()) < MIN_OF_A_KIND:
        return PairMetric(np.full(dims, scale), float(bias))
    features = np.hstack([(a * b).astype(np.float64), np.ones_like(cosine)])
    penalty = np.append(np.full(dims, ridge / scale**2), 0.05)
    fitted = _newton(features, y, np.append(np.full(dims, scale), bias), penalty)
    return PairMetric(fitted[:-1], float(fitted[-1]))


def _newton(x: np.ndarray, y: np.ndarray, prior: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Minimise logistic loss + sum(penalty * (w - prior)**2) / 2."""

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float(np.logaddexp(0, z).sum() - y @ z + (penalty * (w - prior) ** 2).sum() / 2)

    w, best = prior.copy(), loss(prior)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + penalty * (w - prior)
        step = _solve(x, p * (1 - p) + 1e-12, penalty, gradient)
        size = 1.0
        while loss(w - size * step) > best and size > 1e-6:
            size /= 2
        w = w - size * step
        value = loss(w)
        if best - value < 1e-9 * max(1.0, abs(best)):
            break
        best = value
    return w


def _solve(x: np.ndarray, curvature: np.ndarray, penalty: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Solve (x.T @ diag(curvature) @ x + diag(penalty)) step = gradient; with fewer rows than columns by Woodbury's identity."""
    if len(x) >= x.shape[1]:
        return np.linalg.solve((x * curvature[:, None]).T @ x + np.diag(penalty), gradient)
    scaled = x / penalty
    small = np.diag(1 / curvature) + scaled @ x.T
    return gradient / penalty - scaled.T @ np.linalg.solve(small, scaled @ gradient)
