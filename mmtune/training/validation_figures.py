"""Figures for trackers at each validation: loss terms, scores of matching and other pairs, similarities, confusions of groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmtune.contracts import Embeddings, Pair, direction
from mmtune.evaluation.tasks.classify import classifications
from mmtune.modalities.draw_figures import heatmap_figure, histograms_figure, lines_figure
from mmtune.modalities.picture_strip import Picture
from mmtune.relevance.items import Items
from mmtune.relevance.positives import relevant_blocks
from mmtune.runtime.files import read_jsonl_log
from mmtune.search.vectors import normalize_rows
from mmtune.training.metrics_log import VALIDATION

QUERIES, PAIRS = 500, 200_000
"""Queries of a histogram of scores, spread evenly over the data, and the most other pairs that it counts."""
VALUES = 24
"""Rows and columns of a heatmap."""
NO_LOSS = ("step", "epoch", "grad_norm", "lr", "pairs_per_second", "wait")
"""Values of a step's line in metrics.jsonl that are no loss."""


def validation_figures(
    vectors: Mapping[str, Embeddings], items: Mapping[str, Items], pairs: Sequence[Pair], log: Path
) -> dict[str, Picture]:
    """Draw the figures of a validation. Returns {"figures NAME": picture}; what the data do not allow is left out.

    vectors, items: embeddings of the validation data, and their unique items
    pairs: the trained pairs of modalities
    log: metrics.jsonl of the run
    """
    figures: dict[str, Picture] = {}
    terms = loss_terms(log)
    if terms:
        figures["loss terms"] = lines_figure("Loss terms", terms, "step")
    for a, b in pairs:
        if a not in items or b not in items:
            continue
        matching, others = pair_scores(items[a], items[b])
        if len(matching) and len(others):
            name = f"scores {a}-{b}"
            figures[name] = histograms_figure(name, {"matching pairs": matching, "other pairs": others}, "cosine")
        rows = _rows_of_both(vectors[a], vectors[b]) if a != b else []
        if len(rows) > 1:
            left, right = (_vectors_of(vectors[m], m, rows) for m in (a, b))
            name = f"similarity {a}-{b}"
            figures[name] = heatmap_figure(f"Cosines of rows: {a} down, {b} across", left @ right.T, rows, rows)
    trained = {direction(*d) for a, b in pairs for d in ((a, b), (b, a))}
    for found in classifications(vectors):
        counts = np.asarray(found.confusion)
        most = np.sort(np.argsort(-counts.sum(1), kind="stable")[:VALUES])
        names = [found.classes[i] for i in most]
        shares = counts[np.ix_(most, most)] / np.maximum(counts.sum(1)[most, None], 1)
        if found.direction in trained or len(set(found.direction.split("->"))) == 1:
            title = f"Confusions {found.direction}: true group down, predicted across"
            figures[f"confusion {found.direction}"] = heatmap_figure(title, shares, names, names)
    return {f"figures {name}": picture for name, picture in figures.items()}


def loss_terms(log: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read {name: (steps [n], values [n])} of the loss and its terms from metrics.jsonl."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in read_jsonl_log(log) if log.exists() else []:
        for name, value in line.items():
            if name not in NO_LOSS and not name.startswith(VALIDATION) and np.isfinite(value):
                series.setdefault(name, []).append((line["step"], value))
    return {name: (np.array([s for s, _ in v]), np.array([x for _, x in v])) for name, v in series.items()}


def pair_scores(queries: Items, candidates: Items) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines of (matching pairs, other pairs) of some queries, spread evenly over the data, with all candidates.

    Other pairs are at most PAIRS, at equal distances in the order of queries and candidates. An item is no pair of itself.
    """
    chosen = _spread(len(queries), QUERIES)
    scores = np.asarray(queries.query_vectors[chosen]) @ np.asarray(candidates.vectors).T
    matches = np.zeros(scores.shape, bool)
    place = {int(q): n for n, q in enumerate(chosen)}
    for block in relevant_blocks(queries, candidates, 4096):
        for query in range(block.stop - block.start):
            if (at := place.get(block.start + query)) is not None:
                matches[at, block.items[query]] = True
    counted = np.ones(scores.shape, bool)
    if queries is candidates:
        counted[np.arange(len(chosen)), chosen] = False
    others = scores[counted & ~matches]
    return scores[counted & matches], others[_spread(len(others), PAIRS)]


def _spread(length: int, count: int) -> np.ndarray:
    return (
        np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)) if length else np.empty(0, np.int64)
    )


def _rows_of_both(a: Embeddings, b: Embeddings) -> list[str]:
    """Ids of up to VALUES rows that have both modalities, by group."""
    both = set(a.ids) & set(b.ids)
    ordered = sorted((str(group or ""), i) for i, group in zip(a.ids, a.groups, strict=True) if i in both)
    return [ordered[n][1] for n in _spread(len(ordered), VALUES)]


def _vectors_of(e: Embeddings, name: str, ids: Sequence[str]) -> np.ndarray:
    row_of = {i: n for n, i in enumerate(e.ids)}
    return normalize_rows(np.asarray(e.vectors)[[row_of[i] for i in ids]], name)
