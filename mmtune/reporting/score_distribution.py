"""Score distributions of relevant and other pairs, before and after tuning."""

from dataclasses import dataclass

import numpy as np

from mmtune.evaluation.tasks.roc import auroc
from mmtune.reporting.measured import SIDES, Measured
from mmtune.reporting.plots import Chart, Series, line_chart
from mmtune.search.tie_order import to_scores

MAX_QUERIES, MAX_PAIRS, BINS = 500, 200_000, 36  # queries; pairs that are not relevant; bins of a histogram
BLOCK_SCORES = 20_000_000  # maximum number of scores in memory at once


@dataclass
class ScoreSection:
    """The score distributions of one direction. The keys of the dicts are "before" and "after".

    charts: histograms
    separation: probability that a relevant pair scores above another pair (AUROC; 0.5 is chance)
    """

    direction: str
    charts: dict[str, Chart]
    separation: dict[str, float]


def score_sections(measured: Measured, seed: int = 0) -> list[ScoreSection]:
    """Return histograms over at most MAX_QUERIES queries for each pair of modalities, from the same pairs for both models."""
    out: list[ScoreSection] = []
    done: set[frozenset[str]] = set()
    for name in measured.cross_modal_directions:
        if frozenset(name.split("->")) in done:
            continue  # the opposite direction has the same pairs
        done.add(frozenset(name.split("->")))
        rng, relevant = np.random.default_rng(seed), measured.relevant_items(name)
        usable = np.array([i for i, r in enumerate(relevant) if len(r)], np.int64)
        queries = np.sort(rng.permutation(usable)[:MAX_QUERIES])
        scores = {side: _pair_scores(measured, name, side, queries, relevant, seed) for side in SIDES}
        if all(len(positive) and len(negative) for positive, negative in scores.values()):
            out.append(_section(name, scores))
    return out


def _pair_scores(
    measured: Measured, name: str, side: str, queries: np.ndarray, relevant: list[np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines of the queries' relevant pairs, and of about MAX_PAIRS other pairs. The sample depends only on the seed."""
    rng = np.random.default_rng(seed)
    positive: list[np.ndarray] = []
    negative: list[np.ndarray] = []
    each = max(1, MAX_PAIRS // max(len(queries), 1))
    block = max(1, BLOCK_SCORES // max(len(measured.items_of(name, side)[1]), 1))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        for keys, query in zip(measured.score_keys(name, side, part), part, strict=True):
            other = np.ones(len(keys), bool)
            other[relevant[query]] = False
            at = np.flatnonzero(other & (keys > np.iinfo(np.int32).min))
            positive.append(keys[relevant[query]])
            negative.append(keys[at[rng.integers(0, len(at), each)] if len(at) > each else at])
    return _scores(positive), _scores(negative)


def _scores(keys: list[np.ndarray]) -> np.ndarray:
    return to_scores(np.concatenate(keys)) if keys else np.empty(0, np.float32)


def _section(name: str, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> ScoreSection:
    every = np.concatenate([x for pair in scores.values() for x in pair])
    step = max(float(every.max() - every.min()), 1e-3) / BINS
    # An empty bin at each end makes both curves start and end at 0.
    edges = float(every.min()) + step * np.arange(-1, BINS + 2)
    middle = (edges[1:] + edges[:-1]) / 2
    charts, separation = {}, {}
    for side, (positive, negative) in scores.items():
        labels = np.repeat([True, False], [len(positive), len(negative)])
        separation[side] = auroc(np.concatenate([positive, negative]), labels)
        caption = (
            f"Cosine of relevant pairs: median {np.median(positive):.2f}; of other pairs: median {np.median(negative):.2f}."
        )
        percent = [np.histogram(x, edges)[0] / len(x) * 100 for x in (negative, positive)]
        series = [
            Series("other pairs", "area wrong", middle, percent[0]),
            Series("relevant pairs", "area right", middle, percent[1]),
        ]
        charts[side] = line_chart(side.capitalize(), caption, series, "cosine, % of pairs", from_zero=True, legend=False)
    return ScoreSection(name, charts, separation)
