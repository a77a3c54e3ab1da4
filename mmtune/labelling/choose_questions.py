"""Choose which pairs to ask next.

- unsure: P(match) near 1/2 under the metric that the answers so far have taught (mined negatives that a guard could not settle)
- disagreement: the base and the tuned model rank the candidate differently
- dense: near pairs in dense regions of queries without a label, where one answer says most about the others
- random: any pair, for comparison

The strategies take turns, and no query is asked twice in one batch before every query in reach had its turn.
"""

from collections.abc import Sequence

import numpy as np

from mmtune.errors import DataError
from mmtune.labelling.pair_metric import PairMetric, cosine_metric, fit_pair_metric
from mmtune.labelling.question_pool import QuestionPool

UNSURE, DISAGREEMENT, DENSE, RANDOM = "unsure", "disagreement", "dense", "random"
STRATEGIES = (UNSURE, DISAGREEMENT, DENSE, RANDOM)
MIN_ANSWERS = 10
"""Fewest answers from which the metric is fitted."""
PRIOR_QUANTILE = 0.8
"""Without answers, pairs at this quantile of the candidates' scores count as undecided."""


def strategies_of(text: str | None, pool: QuestionPool) -> list[str]:
    """Parse `--choose unsure,dense`; None means all that the pool allows. Raises DataError for an unknown or impossible one."""
    possible = [UNSURE, *([DISAGREEMENT] if pool.tuned is not None else []), *([DENSE] if not pool.labelled.all() else [])]
    if text is None:
        return possible
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown or not names:
        raise DataError(f"--choose {text}: use {', '.join(STRATEGIES)}")
    if DISAGREEMENT in names and pool.tuned is None:
        raise DataError("--choose disagreement needs --tuned MODEL")
    return names


def metric_of(pool: QuestionPool, asked: np.ndarray, match: np.ndarray) -> PairMetric:
    """The metric that the answers teach.

    asked: int [A], pairs of the pool that were answered by match or not; match: bool [A]
    """
    start = cosine_metric(pool.score, PRIOR_QUANTILE)
    start = PairMetric(np.repeat(start.weight, pool.query_vectors.shape[1]), start.bias)
    if len(asked) < MIN_ANSWERS:
        return start
    a, b = pool.features(asked)
    return fit_pair_metric(a, b, match, start)


def choose(
    pool: QuestionPool,
    count: int,
    strategies: Sequence[str],
    asked: np.ndarray,
    match: np.ndarray,
    seed: int = 0,
    skip: np.ndarray | None = None,
) -> list[tuple[int, str]]:
    """Choose the next `count` questions: (pair of the pool, strategy).

    asked, match: what was answered, as in `metric_of`
    skip: int, further pairs that are not asked (again)
    """
    rng = np.random.default_rng([seed, len(asked)])
    free = np.ones(len(pool), bool)
    free[asked] = False
    if skip is not None:
        free[skip] = False
    orders = {name: _order(pool, name, asked, match, rng) for name in strategies}
    position = dict.fromkeys(strategies, 0)
    per_query: dict[int, int] = {}
    chosen: list[tuple[int, str]] = []
    limit, turn, idle = 1, 0, 0
    while len(chosen) < count and free.any():
        name = strategies[turn % len(strategies)]
        turn += 1
        order, at = orders[name], position[name]
        while at < len(order) and not (free[order[at]] and per_query.get(int(pool.pair[order[at], 0]), 0) < limit):
            at += 1
        position[name] = at
        if at == len(order):
            idle += 1
            if idle >= len(strategies):  # every query in reach had its turn
                limit, idle, position = limit + 1, 0, dict.fromkeys(strategies, 0)
            continue
        idle = 0
        pair = int(order[at])
        free[pair] = False
        query = int(pool.pair[pair, 0])
        per_query[query] = per_query.get(query, 0) + 1
        chosen.append((pair, name))
    return chosen


def _order(pool: QuestionPool, name: str, asked: np.ndarray, match: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All pairs, those that a strategy would ask first in front."""
    if name == RANDOM:
        return rng.permutation(len(pool))
    if name == DISAGREEMENT:
        assert pool.tuned_rank is not None
        change = np.abs(np.log1p(pool.rank) - np.log1p(pool.tuned_rank))
        return np.argsort(-change, kind="stable")
    metric = metric_of(pool, asked, match)
    p = np.concatenate(
        [metric.probability(*pool.features(part)) for part in np.array_split(np.arange(len(pool)), len(pool) // 8192 + 1)]
    )
    unsure = -np.abs(p - 0.5)
    if name == UNSURE:
        return np.argsort(-unsure, kind="stable")
    density = np.bincount(pool.pair[:, 0], pool.score, len(pool.queries)) / np.maximum(
        np.bincount(pool.pair[:, 0], minlength=len(pool.queries)), 1
    )
    density = np.where(pool.labelled, -np.inf, density)[pool.pair[:, 0]]
    return np.lexsort((-unsure, -density))
