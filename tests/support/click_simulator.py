"""A click log from a known click model: position bias, noise, bots, and a ranker that puts some wrong items high."""

from dataclasses import dataclass

import numpy as np


@dataclass
class SimulatedLog:
    """columns: the log. truth: {(query, item): relevance 0 to 1}. examination: probability by rank, from rank 1."""

    columns: dict[str, np.ndarray]
    truth: dict[tuple[str, str], float]
    examination: np.ndarray

    def table(self):
        import pyarrow as pa

        return pa.table({k: pa.array(v) for k, v in self.columns.items()})


def simulate(
    sessions=6000, queries=30, items_per_query=12, shown=8, noise=0.05, bots=3, bot_sessions=40, exponent=1.0, swaps=0.7, seed=0
):
    """Position-based model: P(click) = examination(rank) * attractiveness, attractiveness = noise + (1 - noise) * relevance.

    The ranker orders by a score that agrees with relevance only in part, and a jitter (`swaps`) moves results between lists, as in
    any live system. Bots search very fast and click everything they see.
    """
    rng = np.random.default_rng(seed)
    relevance = rng.choice([0.0, 0.15, 0.45, 0.9], (queries, items_per_query), p=[0.45, 0.25, 0.2, 0.1])
    score = 0.5 * relevance + rng.normal(0, 0.5, relevance.shape)
    examination = np.arange(1, shown + 1) ** -exponent
    human = sessions
    q = np.concatenate([rng.integers(0, queries, human), rng.integers(0, queries, bots * bot_sessions)])
    is_bot = np.arange(len(q)) >= human
    jitter = rng.normal(0, swaps, (len(q), items_per_query))
    order = np.argsort(-(score[q] + jitter), axis=1)[:, :shown]
    attract = noise + (1 - noise) * relevance[q[:, None], order]
    clicked = rng.random(order.shape) < examination * attract
    clicked |= is_bot[:, None]
    session = np.arange(len(q))
    user = np.where(is_bot, 10_000_000 + (session - human) // bot_sessions, session // 3)
    start = np.sort(rng.uniform(1_767_225_600, 1_767_225_600 + 30 * 86400, len(q)))
    start = np.where(is_bot, 1_767_300_000 + user % 1000 * 3600 + (session - human) % bot_sessions * 0.3, start)
    rows = order.size
    shuffle = rng.permutation(rows)
    query_names = np.array([f"query {i:03d}" for i in range(queries)])
    item_names = np.array([[f"item-{i:03d}-{j:02d}" for j in range(items_per_query)] for i in range(queries)])
    columns = {
        "q": np.repeat(query_names[q], shown)[shuffle],
        "sku": item_names[q[:, None], order].ravel()[shuffle],
        "rank": np.tile(np.arange(1, shown + 1), len(q))[shuffle],
        "clicked": clicked.ravel()[shuffle],
        "ts": np.repeat(start, shown)[shuffle],
        "session": np.repeat(session, shown)[shuffle],
        "user": np.repeat(user, shown)[shuffle],
    }
    truth = {(query_names[i], item_names[i, j]): float(relevance[i, j]) for i in range(queries) for j in range(items_per_query)}
    return SimulatedLog(columns, truth, examination)
