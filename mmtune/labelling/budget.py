"""What a number of answers would buy: labelling is simulated on data whose groups are known, chosen questions against random ones.

Half of the groups are hidden and asked about; the other half, which no question touches, is searched. The answers teach a metric
(`pair_metric`), and mean average precision on the searched half says what it is worth. This measures the questions, not a training
run: what a tuned model gains is larger or smaller, but good questions are good for both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import DataError
from mmtune.labelling.choose_questions import RANDOM, UNSURE, choose, metric_of
from mmtune.labelling.question_pool import make_pool
from mmtune.runtime.progress import Progress

BATCH = 10
"""Answers after which the next questions are chosen anew."""
MIN_GROUPS = 8


@dataclass(frozen=True)
class BudgetCurve:
    """MAP after a number of answers, chosen and random, by seed.

    direction: "a->b"
    answers: the numbers of answers
    chosen, random: [seed][answers] MAP on the searched half
    matches_chosen, matches_random: [seed][answers] number of answers that were a match
    without: [seed] MAP of the plain cosine
    """

    direction: str
    answers: list[int]
    chosen: list[list[float]] = field(default_factory=list)
    random: list[list[float]] = field(default_factory=list)
    matches_chosen: list[list[int]] = field(default_factory=list)
    matches_random: list[list[int]] = field(default_factory=list)
    without: list[float] = field(default_factory=list)

    def to_dict(self) -> JsonObject:
        """The curve as data that JSON can represent."""
        return asdict(self)

    def __str__(self) -> str:
        base = np.mean(self.without)
        lines = [
            f"{self.direction}: MAP {base:.3f} without answers ({len(self.without)} halvings of the groups; mean ± sd of the gain)"
        ]
        for i, n in enumerate(self.answers):
            parts = []
            for name, scores, matches in (
                ("chosen", self.chosen, self.matches_chosen),
                ("random", self.random, self.matches_random),
            ):
                gain = np.array(scores)[:, i] - np.array(self.without)
                parts.append(
                    f"{name} {gain.mean():+.4f} ± {gain.std(ddof=1) if len(gain) > 1 else 0:.4f} ({np.array(matches)[:, i].mean():.0f} matches)"
                )
            lines.append(f"  {n} answers: " + ", ".join(parts))
        return "\n".join(lines)


def simulate_budget(
    vectors: dict[str, Embeddings],
    pair: tuple[str, str],
    answers: Sequence[int],
    *,
    truth: np.ndarray,
    strategies: Sequence[str] = (UNSURE,),
    seeds: int = 3,
    quiet: bool = True,
) -> BudgetCurve:
    """Simulate labelling.

    vectors: embeddings by modality; both modalities of the pair have the same rows
    truth: int64 [N], the true group of each row, 0 if unknown; rows without one are left out
    answers: numbers of answers, ascending

    Raises DataError if there are fewer than MIN_GROUPS groups of several rows.
    """
    groups, sizes = np.unique(truth[truth != 0], return_counts=True)
    groups = groups[sizes > 1]
    if len(groups) < MIN_GROUPS:
        raise DataError(f"--budget: {len(groups)} groups of at least two rows; the simulation needs {MIN_GROUPS}")
    curve = BudgetCurve(f"{pair[0]}->{pair[1]}", list(answers))
    with Progress("label budget", seeds * 2, "simulations", quiet) as progress:
        for seed in range(seeds):
            shuffled = np.random.default_rng(seed).permutation(groups)
            asked_rows = np.flatnonzero(np.isin(truth, shuffled[: len(groups) // 2]))
            searched_rows = np.flatnonzero(np.isin(truth, shuffled[len(groups) // 2 :]))
            searched = {m: _take(vectors[m], searched_rows) for m in pair}
            curve.without.append(_map(searched, pair, truth[searched_rows], None))
            pool_vectors = {m: _take(vectors[m], asked_rows) for m in pair}
            for names, scores, matches in (
                (strategies, curve.chosen, curve.matches_chosen),
                ([RANDOM], curve.random, curve.matches_random),
            ):
                weights, found = _label(pool_vectors, pair, truth[asked_rows], answers, names, seed)
                scores.append([_map(searched, pair, truth[searched_rows], w) for w in weights])
                matches.append(found)
                progress.advance(1)
    return curve


def _take(e: Embeddings, rows: np.ndarray) -> Embeddings:
    """The rows, without groups, so that no pair of one group is known to match."""
    labels = {k: v[rows] for k, v in e.labels.items() if k != "group"} | {"group": np.zeros(len(rows), np.int64)}
    return Embeddings([e.ids[i] for i in rows], [None] * len(rows), labels, np.asarray(e.vectors)[rows], e.fingerprint)


def _label(
    vectors: dict[str, Embeddings],
    pair: tuple[str, str],
    truth: np.ndarray,
    answers: Sequence[int],
    strategies: Sequence[str],
    seed: int,
) -> tuple[list[np.ndarray], list[int]]:
    """Ask and answer by the truth; the metric's weights and the number of matches after each of `answers`."""
    pool = make_pool(vectors, pair)
    group_of = [dict(zip(vectors[m].ids, truth.tolist(), strict=True)) for m in pair]
    match = np.array([group_of[0][pool.queries[q]] == group_of[1][pool.candidates[c]] for q, c in pool.pair.tolist()])
    asked = np.zeros(0, np.int64)
    weights, found = [], []
    for n in answers:
        while len(asked) < n:
            chosen = choose(pool, min(BATCH, n - len(asked)), strategies, asked, match[asked], seed)
            if not chosen:
                raise DataError(f"--budget {n}: only {len(asked)} pairs can be asked in half of the data")
            asked = np.append(asked, [p for p, _ in chosen])
        weights.append(metric_of(pool, asked, match[asked]).weight)
        found.append(int(match[asked].sum()))
    return weights, found


def _map(vectors: dict[str, Embeddings], pair: tuple[str, str], truth: np.ndarray, weight: np.ndarray | None) -> float:
    """Mean average precision of the rows of one group for each other, the row itself left out within one modality."""
    q, c = (np.asarray(vectors[m].vectors, np.float64) for m in pair)
    scores = (q if weight is None else q * weight) @ c.T
    relevant = truth[:, None] == truth[None, :]
    if pair[0] == pair[1]:
        np.fill_diagonal(scores, -np.inf)
        np.fill_diagonal(relevant, False)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, 1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    counts = hits.sum(1)
    return float(((precision * hits).sum(1)[counts > 0] / counts[counts > 0]).mean())
